"""Base of generated tasks: sizes of the sets, and levels of difficulty for a curriculum."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Generic, TypeVar

from lit_rl.options import check_whole
from lit_rl.tasks.generated import GeneratedProblems

from .base import PromptDataModule

GrammarT = TypeVar("GrammarT")


class GeneratedData(PromptDataModule, ABC, Generic[GrammarT]):
    """Problems that are drawn from a grammar; subclasses set ``problems`` in ``setup``.

    Args:
        grammar: grammar of evaluation and of the last level.
        levels: easier grammars to train on before ``grammar``.
        epoch_size: problems in an epoch; every epoch has new ones.
        val_problems: size of the validation set.
        test_problems: size of the test set.
    """

    endless = True
    problems: GeneratedProblems[GrammarT, Any]

    def __init__(
        self,
        grammar: GrammarT,
        levels: list[GrammarT] | None,
        *,
        epoch_size: int = 100_000,
        val_problems: int = 1000,
        test_problems: int = 1000,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        # The target grammar is the last level: with levels but without the callback, training stays on the easiest.
        self.grammar, self.levels, self.level = grammar, [*(levels or []), grammar], 0
        self.epoch_size, self.val_problems, self.test_problems = epoch_size, val_problems, test_problems
        for option in ("epoch_size", "val_problems", "test_problems"):
            check_whole("data", option, getattr(self, option), 1)

    @abstractmethod
    def setup(self, stage: str) -> None: ...

    def set_level(self, level: int) -> None:
        """Train on a level (0 is the first) from the next epoch on."""
        if not self.endless:
            raise ValueError("data.positions are those of one level: leave them or the Curriculum out.")
        self.level = level
        # Assigned, not rebuilt: the loader and its sampler hold this data set.
        self.problems.grammar = self.levels[level]
