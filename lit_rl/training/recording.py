"""Recording: rollouts as entries of plain types, one for each question, which `lit_rl.datamodules.recorded` reads again."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from lit_rl.rewards.base import AnswerReward
from lit_rl.rollouts import Rollouts
from lit_rl.types import PromptBatch


def question_entries(rollouts: Rollouts, judge: AnswerReward, arm_names: tuple[str, ...]) -> list[dict[str, Any]]:
    """One entry for each group, of JSON's types: a question with all its completions.

    Args:
        rollouts: scored completions.
        judge: reads answers.
        arm_names: names of the arms by their numbers.
    """
    columns = _columns(rollouts, judge, arm_names)
    entries = []
    for group in range(rollouts.num_groups):
        rows = rollouts.rows_of([group]).tolist()
        prompts = sorted({int(number) for number in rollouts.prompt[rows]})
        outputs = [{name: column[row] for name, column in columns.items()} for row in rows]
        for output, row in zip(outputs, rows, strict=True):
            output["prompt"] = prompts.index(int(rollouts.prompt[row]))
        rewards = [output["reward"] for output in outputs if output["reward"] is not None]
        sample = rollouts.samples[rows[0]]
        entries.append(
            {
                "number": sample.number,
                "question": sample.question or sample.prompt,
                "gold_answer": sample.reference,
                "reward": _short(sum(rewards) / len(rewards)) if rewards else None,
                "arm_outputs": outputs,
                "prompts": [_prompt(rollouts.prompts, number) for number in prompts],
            }
        )
    return entries


def _columns(rollouts: Rollouts, judge: AnswerReward, arm_names: tuple[str, ...]) -> dict[str, list[Any]]:
    """Fields of an output, each a list with a value for each row."""
    lengths, arms = rollouts.lengths.tolist(), rollouts.arm.tolist() if rollouts.has("arm") else []
    parts = {name: _numbers(values) for name, values in rollouts.parts.items()}
    columns = {
        "arm": [arm_names[arm] for arm in arms] or [""] * len(rollouts),
        "full_text": rollouts.texts,
        "reasoning": [judge.reasoning(text) for text in rollouts.texts],
        "answer": [None if answer is None else str(answer) for answer in judge.answers(rollouts)],
        # None, since the 0 of a completion that could not be scored counts nowhere.
        "reward": [
            reward if scored else None
            for reward, scored in zip(_numbers(rollouts.rewards), rollouts.scored.tolist(), strict=True)
        ],
        "parts": [{name: values[row] for name, values in parts.items()} for row in range(len(rollouts))],
        "temperature": _numbers(rollouts.temperature),
        "length": lengths,
        "truncated": rollouts.truncated.tolist(),
        "stopped": rollouts.stopped.tolist(),
        "token_ids": _rows(rollouts.completion_ids.tolist(), lengths),
        "logprobs": _rows([_numbers(row) for row in rollouts.logprobs], lengths),
        "entropies": _rows([_numbers(row) for row in rollouts.entropies], lengths),
    }
    return columns | ({"kept": _kept(rollouts)} if rollouts.support else {})


def _rows(table: list[list[Any]], lengths: list[int]) -> list[list[Any]]:
    """Rows of a table (N, T), each without its padding."""
    return [row[:length] for row, length in zip(table, lengths, strict=True)]


def _kept(rollouts: Rollouts) -> list[list[list[int]]]:
    """For each row and each of its tokens, the ids that top-k and top-p left to choose from."""
    assert rollouts.support is not None
    ids = iter(rollouts.support.ids.tolist())
    counts = _rows(rollouts.support.counts.tolist(), rollouts.lengths.tolist())
    return [[[next(ids) for _ in range(count)] for count in row] for row in counts]


def _prompt(prompts: PromptBatch, number: int) -> dict[str, Any]:
    """Text and tokens of a prompt as the policy was shown it."""
    return {"text": prompts.samples[number].prompt, "token_ids": prompts.ids[number][prompts.mask[number]].tolist()}


def _numbers(values: Tensor) -> list[float]:
    """float32 values (n), each in the fewest digits that give it back."""
    return [_short(value) for value in values.tolist()]


def _short(value: float) -> float:
    return float(str(np.float32(value)))
