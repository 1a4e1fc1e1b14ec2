"""Treatment of completions that ran into the length limit, or came near it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from lit_rl.options import check_choice
from lit_rl.rollouts import Rollouts

OverlongAction = Literal["keep", "mask", "penalize"]


@dataclass(frozen=True)
class Overlong:
    """Treatment of completions that are too long."""

    action: OverlongAction = "keep"
    """``keep``: no treatment. ``mask``: leaves truncated completions out of the loss; their rewards still count in the mean of
    their group. ``penalize``: takes up to 1 off the reward near the limit (DAPO, arXiv 2503.14476, section 3.4)."""
    buffer: float = 0.0
    """Share of ``sampler.max_new_tokens`` over which the penalty grows from 0 to 1; for ``penalize``, 0.2 in the paper."""

    def __post_init__(self) -> None:
        check_choice("overlong.action", self.action, OverlongAction)
        if (self.action == "penalize") != (self.buffer != 0):
            raise ValueError(
                f"overlong.action is {self.action} and overlong.buffer is {self.buffer}; a buffer above 0 goes with penalize, "
                "and only with it."
            )
        if not 0 <= self.buffer <= 1:
            raise ValueError(f"overlong.buffer is {self.buffer}; write the share of max_new_tokens that it spans, up to 1.")

    def apply(self, rollouts: Rollouts, limit: int) -> None:
        """Mask or penalize in place.

        Args:
            rollouts: scored rollouts.
            limit: ``sampler.max_new_tokens``.
        """
        if self.action == "mask":
            rollouts.in_loss = rollouts.in_loss & ~rollouts.truncated
        elif self.action == "penalize":
            # As a named part of the reward it is logged by itself.
            penalty = soft_overlong_penalty(rollouts.lengths, limit, self.buffer * limit).float()
            rollouts.parts = rollouts.parts | {"overlong": penalty}
            rollouts.rewards = rollouts.rewards + penalty


def soft_overlong_penalty(lengths: Tensor, limit: int, buffer: float) -> Tensor:
    """Penalty: 0 up to ``limit - buffer`` tokens, then linearly down to -1 at the limit (DAPO, arXiv 2503.14476, eq. 13).

    Example: with limit 100 and buffer 20 a completion of 85 tokens gets -0.25.

    Args:
        lengths: (N) tokens per completion.
        limit: longest possible completion, in tokens.
        buffer: tokens over which the penalty grows.

    Returns:
        (N) in [-1, 0].
    """
    return ((limit - buffer - lengths) / buffer).clamp(-1.0, 0.0)
