"""Rewards for derivations in modular arithmetic: does a value end the completion, is it right, are the steps true?

Texts come without their end token (`lit_rl.sampling.renderer`), so a control token in a text is a word that does not belong.
"""

from __future__ import annotations

from itertools import pairwise
from math import isfinite
from typing import Literal

import torch
from torch import Tensor

from lit_rl.options import check_choice
from lit_rl.rewards.base import AnswerReward, Reward, WeightedSum
from lit_rl.rollouts import Rollouts
from lit_rl.tasks.rpn import derivation, is_step, operands, read_prompt, read_steps, vocabulary
from lit_rl.types import Sample

RewardType = Literal["boxed", "correct", "combined"]
WEIGHTS = (0.3, 0.7)
"""Default weights of format and correctness."""


class RPNFormat(AnswerReward[str]):
    """1 if the completion ends and is expressions, ``=`` before each, of which exactly the last is a single value, else 0.

    The value is an operand below the modulus as the task writes it (``7``, not ``07``), and only words of the task stand
    before it. Truth does not matter: ``= 0`` has the form.

    Args:
        modulus: modulus of the data.
    """

    name = "boxed"

    def __init__(self, modulus: int = 13) -> None:
        self.modulus = modulus

    def read(self, text: str, sample: Sample) -> str | None:
        return final_value(text, self.modulus)

    def is_right(self, answer: str | None, sample: Sample) -> bool:
        return answer is not None


class RPNAnswer(AnswerReward[str]):
    """1 if the completion has the form of `RPNFormat` and its value is the reference, else 0.

    With ``derivation`` every expression must also follow from the one before, the first from the prompt's, by replacing ready
    triples by their values, at least one a step: a bare ``= 0`` does not answer an expression that takes two steps. Majority
    votes of an evaluation count values, with true steps or without.

    Args:
        modulus: modulus of the data.
        derivation: whether true steps must lead to the value; without them the final value alone counts, and the mean is the
            accuracy of exact answers.
    """

    name = "correct"

    def __init__(self, modulus: int = 13, derivation: bool = True) -> None:
        self.modulus, self.derivation = modulus, derivation

    def score(self, rollouts: Rollouts) -> Tensor:
        right = super().score(rollouts)
        if not self.derivation:
            return right
        rows = zip(rollouts.texts, rollouts.samples, strict=True)
        # A product and not part of `is_right`: that one sees the value alone, as a majority vote needs.
        return right * torch.tensor([self._steps_are_true(text, sample) for text, sample in rows])

    def read(self, text: str, sample: Sample) -> str | None:
        return final_value(text, self.modulus)

    def is_right(self, answer: str | None, sample: Sample) -> bool:
        given_expression(sample, self.modulus)  # refuses data of another modulus
        return answer == sample.reference

    def _steps_are_true(self, text: str, sample: Sample) -> bool:
        expressions = [given_expression(sample, self.modulus), *read_steps(text)]
        # True without any step too; such a text has no value and is wrong already.
        return all(is_step(before, after, self.modulus) for before, after in pairwise(expressions))


class RPNProgress(Reward):
    """Share of the expression's operations that the completion carries out before its first false step, from 0 to 1.

    A step that repeats an expression or gives a false value ends the count, so ``0 = 0`` earns nothing. True steps count in a
    truncated completion too, and in one that goes on after the value: `RPNFormat` pays for a good end.

    Args:
        modulus: modulus of the data.
    """

    name = "partial_credit"
    alone = True

    def __init__(self, modulus: int = 13) -> None:
        self.modulus = modulus

    def score(self, rollouts: Rollouts) -> Tensor:
        rows = zip(rollouts.texts, rollouts.samples, strict=True)
        return torch.tensor([self._share(text, sample) for text, sample in rows])

    def _share(self, text: str, sample: Sample) -> float:
        expression = reached = given_expression(sample, self.modulus)
        for step in read_steps(text):
            # A step that a limit cut off is false as a rule, and so ends the count by itself.
            if not is_step(reached, step, self.modulus):
                break
            reached = step
        # Each operation takes two words away; the value is the one word left.
        return (len(expression) - len(reached)) / (len(expression) - 1)


class RPNReward(WeightedSum):
    """Format, correctness, or a weighted sum of both, each logged as a part: ``rewards/boxed`` and ``rewards/correct``.

    Args:
        reward_type: ``boxed`` pays the format alone, ``correct`` the right answer alone, ``combined`` their weighted sum.
        boxed_weight: weight of `RPNFormat` in ``combined``, 0 or more.
        correct_weight: weight of `RPNAnswer` in ``combined``, 0 or more.
        modulus: modulus of the data.
        derivation: whether a right answer needs true steps, as in `RPNAnswer`.
    """

    name = "combinedreward"

    def __init__(
        self,
        reward_type: RewardType = "combined",
        boxed_weight: float = WEIGHTS[0],
        correct_weight: float = WEIGHTS[1],
        modulus: int = 13,
        derivation: bool = True,
    ) -> None:
        check_choice("reward.reward_type", reward_type, RewardType)
        weights = (boxed_weight, correct_weight)
        if not all(isfinite(weight) and weight >= 0 for weight in weights) or not any(weights):
            raise ValueError(f"reward.boxed_weight and correct_weight are {weights}; write 0 or more, and one above 0.")
        if reward_type != "combined" and weights != WEIGHTS:
            raise ValueError(f"reward weights {weights} do not go with reward_type {reward_type}; write reward_type combined.")
        if reward_type == "boxed" and not derivation:
            raise ValueError("reward.derivation false does not go with reward_type boxed, which reads no steps; leave it out.")
        boxed, correct = RPNFormat(modulus), RPNAnswer(modulus, derivation)
        if reward_type == "combined":
            super().__init__([boxed, correct], list(weights))
        else:
            super().__init__([boxed if reward_type == "boxed" else correct], [1.0])


def final_value(text: str, modulus: int) -> str | None:
    """Value that ends a finished completion; None if the completion does not have the form of `RPNFormat`."""
    # The empty list stands for a text without `=`, whose value is then missing.
    *steps, last = read_steps(text) or [[]]
    known = set(vocabulary(modulus))
    # A step of one word is a value before the end: a second answer.
    if not all(len(step) > 1 and known.issuperset(step) for step in steps):
        return None
    return last[0] if len(last) == 1 and last[0] in operands(modulus) else None


def given_expression(sample: Sample, modulus: int) -> list[str]:
    """Expression in a sample's prompt.

    Raises:
        ValueError: if its value is not the reference.
    """
    expression = read_prompt(sample.prompt)
    # Another modulus would judge every answer falsely, and in silence. Below three words there is no operation.
    if len(expression) < 3 or derivation(expression, modulus)[-1] != [sample.reference]:
        raise ValueError(
            f"the reference {sample.reference!r} of sample {sample.number} is not the value of {sample.prompt!r} modulo "
            f"{modulus}; set modulus of the reward and of the evaluation as in the data, which is RPN."
        )
    return expression
