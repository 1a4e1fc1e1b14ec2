"""Arms: each completion of a question is drawn in a style of its own and at a temperature of its own.

An arm is a named style (a system or instruction text) with a temperature. The rows of a question are one group, although they
continue several prompts; a prompt is computed once for each style. A row keeps the prompt and the temperature that it was drawn
with, so that learner and sampler agree on its log-probabilities.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedTokenizerBase

from lit_rl.models.policy import Policy
from lit_rl.sampling.sampler import Draws, SampleKey, Sampler, draw_uniforms
from lit_rl.text.chat import QUESTION, user_turn, with_style
from lit_rl.text.encoding import encode, encode_bare
from lit_rl.types import PromptBatch, Sample

STYLES = {
    "precise": "You solve problems exactly. Turn every statement into an equation, do one calculation a line, and write no "
    "sentence that does not carry the calculation on.",
    "reflective": "You think about a problem before you calculate. Say in your own words what is given and what is asked, "
    "weigh how to go about it, calculate, and then see whether the result can be true.",
}
"""Styles that are known by name."""

Choose = Callable[[SampleKey, int, int], Sequence[int]]
"""(key, number of a sample, size of its group) -> numbers of the arms that draw the group's rows."""


@dataclass(frozen=True)
class Arm:
    """One way to draw a completion."""

    name: str
    """Name in the log and in the table of samples."""
    style: str
    """Name of the style."""
    temperature: float
    """Divisor of the logits, above 0."""
    top_p: float = 1.0
    """Probability that the most likely tokens to sample from hold together; 1 keeps all."""


def default_arms() -> list[Arm]:
    """Eight arms: two styles at four temperatures."""
    nuclei = {"precise": 0.95, "reflective": 0.9}
    return [
        Arm(f"{style}-{temperature}", style, temperature, top_p)
        for style, top_p in nuclei.items()
        for temperature in (0.2, 0.3, 0.4, 0.5)
    ]


@dataclass
class ArmSampler(Sampler):
    """Draws the completions of a question by different arms, in turn, or as a callback such as `Bandit` chooses them.

    A style stands in the system turn of the chat template, or before the question if there is none; the data's own instruction
    stays. Evaluation is without arms.
    """

    arms: list[Arm] | None = None
    """The arms; null: the styles ``precise`` (top_p 0.95) and ``reflective`` (0.9) at 0.2, 0.3, 0.4 and 0.5. The sampler's
    own ``temperature`` is a factor on theirs."""
    styles: dict[str, str] = field(default_factory=dict)
    """More styles by name, or other texts of ``precise`` and ``reflective``; an empty text leaves prompts as they are."""
    choose: Choose | None = field(default=None, init=False, repr=False)
    """Arms of a question's rows; None draws by all arms in turn. For callbacks."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._arms = default_arms() if self.arms is None else self.arms
        if isinstance(self.temperature, list) or self.top_p != 1:
            raise ValueError("sampler: temperature is one factor on the arms' own, and top_p belongs to each arm; write arms.")
        if not self._arms or len(set(self.arm_names)) < len(self._arms):
            raise ValueError(f"sampler.arms are named {', '.join(self.arm_names) or 'nothing'}; name one or more, each once.")
        for arm in self._arms:
            self._check_arm(arm)
        if len({arm.top_p < 1 for arm in self._arms}) > 1:
            # The tokens that a nucleus leaves are recorded: for the arms without one it would be the whole vocabulary.
            raise ValueError("sampler.arms: top_p is 1 for some arms only; write it below 1 for all of them, or for none.")

    def _check_arm(self, arm: Arm) -> None:
        known = {**STYLES, **self.styles}
        if arm.style not in known:
            raise ValueError(
                f"sampler.arms: {arm.name!r} has the style {arm.style!r}; known are {', '.join(known)}; add its text to "
                "sampler.styles."
            )
        if not arm.temperature > 0 or not 0 < arm.top_p <= 1:
            raise ValueError(
                f"sampler.arms: {arm.name!r} has temperature {arm.temperature} and top_p {arm.top_p}; write a temperature "
                "above 0, and a top_p above 0 and up to 1."
            )
        if not arm.name or "/" in arm.name:
            raise ValueError(f"sampler.arms: the name {arm.name!r} stands between slashes in the log; write one without.")

    @property
    def arm_names(self) -> tuple[str, ...]:
        return tuple(arm.name for arm in self._arms)

    def added_tokens(self, tokenizer: PreTrainedTokenizerBase) -> int:
        # In a prompt: a system turn has tokens of its own. Without a template any character serves that the tokenizer has.
        probe = QUESTION if tokenizer.chat_template else "0"
        prompt = user_turn(probe, tokenizer)
        shown = [with_style(prompt, probe, text, tokenizer) for text in self._texts().values()]
        bare, *styled = (len(ids) for ids in encode_bare([prompt, *shown], tokenizer))
        return max(0, *(count - bare for count in styled))

    def check(self, group_size: int, samples: Sequence[Sample]) -> None:
        if self.choose is None and group_size < len(self._arms):
            raise ValueError(
                f"model.group_size is {group_size} and sampler.arms has {len(self._arms)} arms, of which the last would draw "
                "nothing; raise it, list fewer arms, or let the callback Bandit choose."
            )
        for sample in samples:
            _check_question(sample)

    def plan(self, policy: Policy, prompts: PromptBatch, group_size: int, key: SampleKey) -> Draws:
        # Rows by prompt: (place of the question, style) -> (member of the group, arm) of each row.
        rows: dict[tuple[int, str], list[tuple[int, int]]] = {}
        for place, number in enumerate(prompts.numbers):
            for member, arm in enumerate(self._arms_of(key, number, group_size)):
                rows.setdefault((place, self._arms[arm].style), []).append((member, arm))
        device = prompts.ids.device
        counts = [len(each) for each in rows.values()]
        members, arms = torch.tensor([row for each in rows.values() for row in each]).T  # (N) each
        groups = torch.tensor([place for place, _ in rows]).repeat_interleave(torch.tensor(counts))  # (N)
        # Each member of a group has draws of its own, whichever prompts the group has.
        uniforms = draw_uniforms(key, prompts.numbers, group_size, self.max_new_tokens)[groups * group_size + members]
        temperature = (
            torch.tensor([arm.temperature for arm in self._arms], dtype=torch.float32)[arms] * self._given_temperatures()[0]
        )
        top_p = torch.tensor([arm.top_p for arm in self._arms], dtype=torch.float32)[arms].to(device)
        fields = {"group": groups.to(device), "arm": arms.to(device)}
        fields["prompt"] = torch.arange(len(rows)).repeat_interleave(torch.tensor(counts)).to(device)
        shown = self._shown(policy.tokenizer, prompts, list(rows))
        nucleus = self._arms[0].top_p < 1
        return Draws(shown, counts, uniforms.to(device), temperature.to(device), top_p if nucleus else 1.0, fields)

    def _arms_of(self, key: SampleKey, number: int, group_size: int) -> Sequence[int]:
        """Arm of each row of a question."""
        if self.choose is not None:
            return self.choose(key, number, group_size)
        return [member % len(self._arms) for member in range(group_size)]

    def _shown(self, tokenizer: PreTrainedTokenizerBase, prompts: PromptBatch, shown: Sequence[tuple[int, str]]) -> PromptBatch:
        """A prompt for each pair of a question's place and a style."""
        texts, samples = self._texts(), []
        for place, style in shown:
            sample = prompts.samples[place]
            _check_question(sample)
            text = with_style(sample.prompt, sample.question.strip(), texts[style], tokenizer)
            samples.append(sample._replace(prompt=text))
        ids = encode([sample.prompt for sample in samples], tokenizer)
        completions = [prompts.completions[place] for place, _ in shown]
        return PromptBatch.pad(ids, completions, samples, int(tokenizer.pad_token_id)).to(prompts.ids.device)

    def _texts(self) -> dict[str, str]:
        """Texts of the styles that the arms have, without white space around them, which templates remove."""
        known = {**STYLES, **self.styles}
        return {arm.style: known[arm.style].strip() for arm in self._arms}


def _check_question(sample: Sample) -> None:
    if not sample.question.strip():
        raise ValueError(
            f"sample {sample.number} has no question, which ArmSampler puts into the styles of its arms; train on data of "
            "questions, such as GSM8K, or without arms."
        )
