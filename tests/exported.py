"""Policies with random weights, exported as a run leaves them, and a judge under which they differ."""

from pathlib import Path

import torch

from lit_rl.models import PolicySpec
from lit_rl.models.export import export_policy, whole_weights
from lit_rl.models.loading import load_tokenizer
from lit_rl.models.policy import Policy
from lit_rl.models.reopened import probe_policy
from lit_rl.rewards import AnswerReward


class EvenSum(AnswerReward[int]):
    """Pays about half of any completions."""

    reads_truncated = True

    def read(self, text, sample):
        return sum(map(ord, text)) if text else None

    def is_right(self, answer, sample):
        return answer is not None and answer % 2 == 0

    def example(self, sample):
        return "ab"


def move_weights(policy: Policy) -> None:
    """Move all trainable weights at random, as a run does."""
    with torch.no_grad():
        for weight in policy.parameters():
            if weight.requires_grad:
                weight += 0.1 * torch.randn_like(weight)


def export(folder: Path, spec: PolicySpec, seed: int) -> str:
    """The folder of a policy with random weights, in its adapters too."""
    torch.manual_seed(seed)
    tokenizer = load_tokenizer(spec)
    policy = Policy(spec, tokenizer)
    for name, weight in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    export_policy(policy, tokenizer, folder, whole_weights(policy), probe_policy(policy, tokenizer))
    return str(folder)
