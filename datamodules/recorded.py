"""Recorded rollouts, written by `RolloutWriter`, as training data of reinforcement learning and of SFT on best answers."""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from lit_rl.options import check_whole
from lit_rl.text.vocabulary import vocabulary_fingerprint

from .base import PromptDataModule
from .jsonl import Malformed, read_jsonl
from .lengths import model_positions
from .recorded_lines import Recording, read_recording


class Recorded(PromptDataModule):
    """Replays recorded rollouts: the policy learns from completions that it, or another policy, sampled before.

    GRPO and PPO take ``model.group_size`` completions of each question, drawn at random if more are recorded. They use the
    recorded rewards, or score the completions again if ``model.reward`` is given. ``objective.correction`` weighs tokens by
    how far the policy is from the one that sampled. With ``best``, SFT learns the best answers.

    Args:
        path: a file of `RolloutWriter`, or the folder with its files ``rollouts*.jsonl``.
        problems: data of the validation and test problems; its training problems are not used.
        best: SFT learns up to so many answers of each question, the highest rewards first; 1 is RAFT (arXiv 2304.06767).
            0 is for reinforcement learning.
        min_reward: smallest reward of an answer that SFT learns (rejection sampling); none sets no limit.
        malformed: ``refuse`` stops at a malformed line, ``skip`` leaves malformed lines out and reports their numbers.
    """

    def __init__(
        self,
        path: str,
        problems: PromptDataModule,
        *,
        best: int = 0,
        min_reward: float | None = None,
        malformed: Malformed = "refuse",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        check_whole("data", "best", best, 0)
        if min_reward is not None and not best:
            raise ValueError(
                f"data.min_reward {min_reward} is for SFT on best answers; write data.best 1 too, or leave it out."
            )
        self.path, self.problems, self.malformed = Path(path), problems, malformed
        self.best, self.min_reward = best, min_reward
        self.recordings: dict[int, Recording] = {}
        """Recorded questions by their numbers."""

    def prepare_data(self) -> None:
        self._files()
        self.problems.trainer = self.trainer
        self.problems.prepare_data()

    def setup(self, stage: str) -> None:
        self.problems.trainer = self.trainer
        self.problems.setup(stage)
        self.val_set, self.test_set = self.problems.val_set, self.problems.test_set
        self.recordings = self._read()
        if not self.recordings:
            raise ValueError(f"data.path: no question is recorded in {self.path}; record some with lit-rl predict.")
        self._check_held_out()
        # By number, so that the order is the same from one file or from one for each process.
        questions = [self.recordings[number] for number in sorted(self.recordings)]
        samples = [each.sample for each in questions]
        if self.best:
            samples = [sample for each in questions for sample in each.best_answers(self.best, self.min_reward)]
            answered = len({sample.number for sample in samples})
            rank_zero_info(f"data: {len(samples)} answers to {answered} of {len(questions)} recorded questions")
        if not samples:
            raise ValueError(f"data.path: {self.path} holds no answer to learn; lower data.min_reward, or record more.")
        self.train_set = samples  # type: ignore[assignment]  # a list serves

    def _files(self) -> list[Path]:
        files = sorted(self.path.glob("rollouts*.jsonl")) if self.path.is_dir() else [self.path]
        if not files or not all(file.is_file() for file in files):
            raise ValueError(
                f"data.path: {self.path} is not a file of recorded rollouts, nor a folder with rollouts*.jsonl; record "
                "some with lit-rl predict and the callback RolloutWriter."
            )
        return files

    def _read(self) -> dict[int, Recording]:
        """Recorded questions of all files by number.

        Raises:
            ValueError: for a malformed line, one of another tokenizer, and a question that stands twice.
        """
        vocabulary, read = vocabulary_fingerprint(self.tokenizer), partial(read_recording, pad_id=self.tokenizer.pad_token_id)
        found: dict[int, Recording] = {}
        for file in self._files():
            for each in read_jsonl(file, read, self.malformed):
                if each.tokenizer != vocabulary:
                    raise ValueError(
                        f"{file}: question {each.sample.number} was recorded with another tokenizer (that of {each.policy}; "
                        f"vocabulary {each.tokenizer}, and the policy's is {vocabulary}), so its token ids mean other texts; "
                        "write the recording policy's tokenizer as model.policy.tokenizer, or record again."
                    )
                if each.sample.number in found:
                    raise ValueError(
                        f"{file}: question {each.sample.number} is recorded twice; give the files of one recording, each once."
                    )
                found[each.sample.number] = each
        return found

    def _check_held_out(self) -> None:
        """Refuse recorded questions that are validation or test problems."""
        for name in ("val_set", "test_set"):
            held_out = {sample.question or sample.prompt for sample in getattr(self, name)}
            for number, each in self.recordings.items():
                if each.sample.question in held_out:
                    raise ValueError(
                        f"data.path: the recorded question {number} is one of the {name[:-4]} problems of data.problems; "
                        "give data.problems the options of the data that were recorded."
                    )

    def _limit_prompts(self, name: str) -> None:
        if name != "train_set":
            super()._limit_prompts(name)
            return
        module: Any = self.trainer.lightning_module
        samples = bool(module.new_tokens(True))
        if samples == bool(self.best):
            raise ValueError(
                "data.best is for SFT, and reinforcement learning replays whole groups; leave it out."
                if samples
                else "data.best is 0, which replays groups for reinforcement learning; write data.best 1 to learn best answers."
            )
        positions, longest = model_positions(module.policy_spec), max(self.recordings.values(), key=lambda each: each.longest)
        if positions is not None and longest.longest > positions:
            raise ValueError(
                f"data.path: question {longest.sample.number} has a recorded completion that ends at token {longest.longest}, "
                f"after the model's {positions} positions; choose a model with a longer context, or record shorter ones."
            )

    # --- resuming ------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {"recorded": self._digest()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.trainer.training and state.get("recorded") != self._digest():
            raise ValueError(
                f"data.path: {self.path} has changed since the checkpoint; put the files back, or start a new run."
            )

    def _digest(self) -> str:
        digest = hashlib.sha256()
        for number in sorted(self.recordings):
            digest.update(self.recordings[number].digest)
        return digest.hexdigest()[:16]
