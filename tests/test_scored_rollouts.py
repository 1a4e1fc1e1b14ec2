"""Rollouts scored by a policy: tokens that others wrote, and merged rows."""

from dataclasses import replace

import pytest
import torch
from conftest import tiny_spec
from tiny_rollouts import prompts_of, repeated, rollouts_of

from lit_rl.models import Policy
from lit_rl.models.loading import load_tokenizer
from lit_rl.models.value_head import with_bootstrap_position
from lit_rl.rollouts import Rollouts
from lit_rl.sampling.check import check_policy


@pytest.fixture(scope="module")
def policy() -> Policy:
    """A tiny model in float64 that can be packed, and a critic."""
    torch.manual_seed(0)
    spec = tiny_spec("gpt2", "float64", {"initializer_range": 0.3})
    made = Policy(spec, load_tokenizer(spec))
    made.disable_dropout()
    check_policy(made)
    made.add_value_head()
    torch.nn.init.normal_(made.value_head.weight)
    assert made.capabilities.packs
    assert made.capabilities.shares_prompts
    return made


WAYS = {
    "packed": {"packs": True},
    "on the cache of prompts": {"packs": False, "shares_prompts": True},
    "as whole rows": {"packs": False, "shares_prompts": False},
}
SAMPLED = torch.tensor(
    [[1, 0, 0, 1, 1], [1, 1, 0, 0, 0], [0, 1, 0, 0, 0], [1, 1, 1, 0, 0], [0, 0, 0, 0, 0], [1, 0, 0, 0, 0]]
).bool()


def answered_by_others(**fields) -> Rollouts:
    """Groups of two, three and one rows. Others wrote in the middle, at the end, at the start, and a whole row."""
    prompts = prompts_of([4, 6, 5], [7], [8, 3, 8, 9], [5, 5])
    rows = [[1, 9, 9, 2, 3], [4, 5, 9, 9], [9, 6, 9], [7, 8, 2], [9, 9], [3]]
    settings = {"prompt": torch.tensor([0, 1, 2, 2, 2, 3]), "group": torch.tensor([0, 0, 1, 1, 1, 2])}
    return rollouts_of(prompts, 1, rows, **{**settings, "sampled": SAMPLED, **fields})


def run_alone(policy: Policy, rollouts: Rollouts, row: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities (t, V) and values (t + 1) before each token of a row, by the model's own forward over the row alone."""
    number, length = int(rollouts.prompt[row]), int(rollouts.lengths[row])
    prompt = rollouts.prompts.ids[number][rollouts.prompts.mask[number]]
    ids = torch.cat([prompt, rollouts.completion_ids[row, :length]])[None]
    out = policy.causal_lm(input_ids=ids, output_hidden_states=True)
    before = slice(len(prompt) - 1, None)
    return out.logits[0, before][:length].log_softmax(-1), policy.value_head(out.hidden_states[-1])[0, before]


@pytest.mark.parametrize("way", WAYS)
def test_sampled_tokens_are_scored_as_a_plain_forward_does_and_others_not(policy, monkeypatch, way):
    monkeypatch.setattr(policy, "capabilities", replace(policy.capabilities, **WAYS[way]))
    rollouts = answered_by_others(temperature=torch.ones(6, dtype=torch.float64))
    scores, values = policy.score_with_values(rollouts, entropy_grad=False, detached=False)
    details = policy.score(rollouts)
    for row, sampled in enumerate(SAMPLED):
        logp, value = run_alone(policy, rollouts, row)
        tokens, here = rollouts.completion_ids[row, : len(logp)], sampled[: len(logp)]
        expected = {
            "logprobs": logp.gather(1, tokens[:, None])[:, 0],
            "entropies": -(logp.exp() * logp).sum(1),
            "values": value[:-1],
        }
        expected = {name: torch.zeros(5).double().masked_scatter(sampled, each[here]) for name, each in expected.items()}
        torch.testing.assert_close(scores.logprobs[row], expected["logprobs"])
        torch.testing.assert_close(details.logprobs[row], expected["logprobs"])
        torch.testing.assert_close(details.entropies[row], expected["entropies"])
        torch.testing.assert_close(values[row], expected["values"])


@pytest.mark.parametrize("way", WAYS)
def test_the_bootstrap_value_is_the_value_after_all_tokens_of_a_row(policy, monkeypatch, way):
    monkeypatch.setattr(policy, "capabilities", replace(policy.capabilities, **WAYS[way]))
    rollouts = answered_by_others(truncated=torch.tensor([True, True, False, True, True, False]))
    values = policy.values(with_bootstrap_position(rollouts))
    assert values.shape == (6, 6)
    for row in range(6):
        length, (_, own) = int(rollouts.lengths[row]), run_alone(policy, rollouts, row)
        expected = own[-1] if rollouts.truncated[row] else torch.zeros((), dtype=torch.float64)
        torch.testing.assert_close(values[row, length], expected)


def test_merged_rows_have_the_loss_and_gradient_of_all_rows(policy):
    def loss_and_gradient(rollouts: Rollouts) -> tuple[float, list[torch.Tensor]]:
        ratio = (policy.score(rollouts).logprobs - rollouts.logprobs).exp()
        loss = -(ratio * rollouts.advantages * rollouts.multiplicity[:, None] * rollouts.mask).sum()
        weights = [parameter for name, parameter in policy.named_parameters() if "value_head" not in name]
        return float(loss.detach()), torch.autograd.grad(loss, weights)

    merged = repeated().merge_duplicates()
    assert len(merged) == 3
    loss, gradient = loss_and_gradient(repeated())
    merged_loss, merged_gradient = loss_and_gradient(merged)
    assert merged_loss == pytest.approx(loss, rel=1e-12)
    assert all((a - b).norm() <= 1e-10 * b.norm() for a, b in zip(merged_gradient, gradient, strict=True))
