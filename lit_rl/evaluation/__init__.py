"""Metrics of a policy on held-out problems."""

from lit_rl.evaluation.accuracy import Evaluation
from lit_rl.evaluation.next_token import NextTokenEvaluation

__all__ = ["Evaluation", "NextTokenEvaluation"]
