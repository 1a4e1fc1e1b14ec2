"""Reward of Reinforcement Pre-Training: is the prediction a prefix of the true continuation?"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lit_rl.options import check_choice
from lit_rl.rewards.base import AnswerReward
from lit_rl.rollouts import Rollouts
from lit_rl.text.token_bytes import read_pieces
from lit_rl.types import Sample

Credit = Literal["exact", "partial", "first_token"]


@dataclass(frozen=True)
class AnswerFormat:
    r"""Place of the prediction in a completion: by default the last ``\boxed{...}`` after the last ``</think>``.

    White space inside counts. Braces in a box must balance. With all three empty the whole completion is the prediction.
    """

    after: str = "</think>"
    """Text that ends the reasoning; only the text after it is read, and without it there is no prediction. Empty: all is
    read."""
    opening: str = r"\boxed{"
    """Text that opens the prediction; empty: all that is read is the prediction."""
    closing: str = "}"
    """Text that closes the prediction."""

    def __post_init__(self) -> None:
        if bool(self.opening) != bool(self.closing):
            raise ValueError(
                f"answer.opening is {self.opening!r} and answer.closing {self.closing!r}; write both or leave both empty."
            )

    def read(self, text: str) -> str | None:
        """Prediction in the text of a completion; None without one."""
        if self.after:
            # The last one: a reasoning may quote the text that ends it.
            _, found, text = text.rpartition(self.after)
            if not found:
                return None
        if not self.opening:
            return text
        return self._last_balanced(text) if self.closing == "}" else self._last_closed(text)

    def _last_closed(self, text: str) -> str | None:
        """Text between the last opening that is closed and its closing."""
        start = len(text)
        while (start := text.rfind(self.opening, 0, start)) >= 0:
            inside = start + len(self.opening)
            if (end := text.find(self.closing, inside)) >= 0:
                return text[inside:end]
        return None

    def _last_balanced(self, text: str) -> str | None:
        """Text of the last box that is closed, braces inside balanced."""
        # In one pass: policies like to repeat an opening without end, and a pass for each of them would take hours.
        opened: list[tuple[int, bool]] = []  # of each open brace: where its inside begins, and whether it opens a prediction
        last, prediction = -1, None
        # A match of the opening takes its own brace along, so that no brace counts twice.
        for mark in re.finditer(re.escape(self.opening) + "|[{}]", text):
            if mark[0] != "}":
                opened.append((mark.end(), mark[0] == self.opening))
                continue
            # A closing brace that nothing opened is plain text.
            inside, is_prediction = opened.pop() if opened else (-1, False)
            # Of nested boxes the inner one closes first and opens last: the last opening wins.
            if is_prediction and inside > last:
                last, prediction = inside, text[inside : mark.start()]
        return prediction


def matched_tokens(prediction: bytes, pieces: Sequence[bytes]) -> int:
    """Number of whole tokens that the prediction is equal to, from the first on; 0 for any other prediction.

    The reward of arXiv 2506.08007, equation 3, is 1 if this number is above 0: the bytes of the prediction are a prefix of
    the bytes that follow, and its length is the end of one of their tokens.

    Args:
        prediction: bytes of the predicted text.
        pieces: bytes of each token of the true continuation.
    """
    end = 0
    for count, piece in enumerate(pieces, start=1):
        # Past the prediction's end the slice is short and differs: no credit for a stop inside a token.
        if prediction[end : end + len(piece)] != piece:
            return 0
        end += len(piece)
        # An unused id has no bytes and fits everywhere; `end > 0` keeps an empty prediction from matching it.
        if end == len(prediction) and end > 0:
            return count
    return 0


def agreed_tokens(prediction: bytes, pieces: Sequence[bytes]) -> int:
    """Number of whole tokens of the true continuation that the prediction begins with."""
    end = count = 0
    while count < len(pieces) and end < len(prediction) and prediction.startswith(pieces[count], end):
        end += len(pieces[count])
        count += 1
    return count


class PrefixMatch(AnswerReward[bytes]):
    """1 if the prediction is a prefix of the true continuation and ends where one of its tokens ends, else 0.

    Tokens are compared as bytes (`lit_rl.text.token_bytes`): a prediction of several tokens counts, one that stops inside a
    token or a character does not. A completion that ran into its limit has no prediction, unless the whole completion is the
    prediction. Logged too: ``answered``, whether there is a prediction, and ``matched_tokens``, tokens of matching predictions.

    Args:
        answer: place of the prediction in a completion.
        credit: ``exact`` as above; ``partial`` gives the share of the prediction's bytes before it goes wrong, in whole tokens;
            ``first_token`` gives 1 if the prediction begins with the next token (arXiv 2506.08007, appendix A).
        no_answer: reward of a completion without a prediction, 0 or less.
    """

    name = "prefix_match"
    reads_thoughts = True  # `answer.after` says where thoughts end

    def __init__(self, answer: AnswerFormat = AnswerFormat(), credit: Credit = "exact", no_answer: float = 0.0) -> None:
        check_choice("reward.credit", credit, Credit)
        if no_answer > 0:
            raise ValueError(f"reward.no_answer is {no_answer}; it is a penalty: write 0 or less.")
        self.answer, self.credit, self.no_answer = answer, credit, no_answer
        self.reads_truncated = not (answer.after or answer.opening)  # such completions often end at their limit

    def parts(self, rollouts: Rollouts) -> dict[str, Tensor]:
        predictions = self.answers(rollouts)
        pairs = list(zip(predictions, rows_pieces(rollouts), strict=True))
        return {
            self.name: torch.tensor([self._credit(prediction, pieces) for prediction, pieces in pairs]),
            "answered": torch.tensor([float(prediction is not None) for prediction in predictions]),
            "matched_tokens": torch.tensor([float(matched_tokens(prediction or b"", pieces)) for prediction, pieces in pairs]),
        }

    def total(self, parts: dict[str, Tensor]) -> Tensor:
        return parts[self.name] + self.no_answer * (1 - parts["answered"])

    def hits(self, rollouts: Rollouts) -> Tensor:
        return super().score(rollouts)  # by `is_right`: whatever the credit, an accuracy is a share of exact predictions

    def score(self, rollouts: Rollouts) -> Tensor:
        # Not from `is_right`, as in the base class: partial credit and the penalty count too.
        return self.total(self.parts(rollouts))

    def read(self, text: str, sample: Sample) -> bytes | None:
        prediction = self.answer.read(text)
        # Bytes that are not a whole character stand as surrogates in a completion's text.
        return None if prediction is None else prediction.encode("utf-8", "surrogateescape")

    def is_right(self, answer: bytes | None, sample: Sample) -> bool:
        return answer is not None and matched_tokens(answer, read_pieces(sample.reference)) > 0

    def example(self, sample: Sample) -> str:
        first = b"".join(read_pieces(sample.reference)[:1]).decode("utf-8", "surrogateescape")
        return f"{self.answer.after}{self.answer.opening}{first}{self.answer.closing}"

    def _credit(self, prediction: bytes | None, pieces: list[bytes]) -> float:
        if not prediction:
            return 0.0
        if self.credit == "partial":
            # Over the prediction's length: a longer guess must stay right to keep its credit.
            return sum(map(len, pieces[: agreed_tokens(prediction, pieces)])) / len(prediction)
        if self.credit == "first_token":
            return float(bool(pieces) and prediction.startswith(pieces[0]))
        return float(matched_tokens(prediction, pieces) > 0)


def rows_pieces(rollouts: Rollouts) -> list[list[bytes]]:
    """Bytes of the tokens that truly follow each row's prompt."""
    by_prompt = [read_pieces(sample.reference) for sample in rollouts.prompts.samples]
    return [by_prompt[number] for number in rollouts.prompt.tolist()]
