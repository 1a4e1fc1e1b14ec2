"""The parts of a critic: what tokens earn, the loss of values, explained variance, and the head itself."""

import random
from dataclasses import replace

import pytest
import slow_critic as slow
import torch
from conftest import tiny_spec
from tiny_rollouts import prompts_of, rollouts_of

from lit_rl.algorithms.ppo import token_rewards
from lit_rl.models import Policy
from lit_rl.models.loading import load_tokenizer
from lit_rl.models.value_head import ValueHead, critic_metrics, load_value_head, save_value_head, with_bootstrap_position
from lit_rl.objectives.advantages import generalized_advantages, whiten
from lit_rl.objectives.losses import value_loss


def alone(values):
    """The sum over one rank."""
    return values


def ragged(rows, fill=0.0):
    width = max(map(len, rows))
    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows], dtype=torch.float64)


# --- what a token earns ------------------------------------------------------------------------------------------


def test_the_reward_is_paid_at_the_last_token_and_the_penalty_at_each():
    rollouts = rollouts_of(prompts_of([1], [2]), 1, [[4, 5, 6], [7]], rewards=torch.tensor([1.0, 0.5]))
    penalties = torch.tensor([[0.1, 0.2, 0.3], [0.4, 9.0, 9.0]])
    earned = token_rewards(rollouts, penalties)
    assert earned.flatten().tolist() == pytest.approx([-0.1, -0.2, 0.7, 0.1, 0.0, 0.0])


def test_an_end_token_earns_the_reward_as_any_last_token_does():
    rollouts = rollouts_of(prompts_of([1]), 1, [[4, 2]], rewards=torch.tensor([1.0]))  # 2 ends, lengths count it
    assert token_rewards(rollouts, torch.zeros(1, 2)).tolist() == [[0.0, 1.0]]


# --- advantages against the slow reference -----------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_random_ragged_completions_have_the_advantages_of_the_slow_reference(seed):
    rng = random.Random(seed)
    gamma, lam = rng.choice([1.0, 0.9, 0.0]), rng.choice([1.0, 0.95, 0.5, 0.0])
    lengths = [rng.randint(1, 9) for _ in range(12)]
    values = [[rng.gauss(0, 1) for _ in range(length)] for length in lengths]
    penalties = [[rng.gauss(0, 0.1) for _ in range(length)] for length in lengths]
    rewards, counted = [rng.gauss(0, 1) for _ in lengths], [rng.random() < 0.8 for _ in lengths]
    behind = [rng.gauss(0, 1) * (rng.random() < 0.5) for _ in lengths]  # the half of them were cut off
    rollouts = rollouts_of(prompts_of(*[[1]] * 12), 1, [[3] * length for length in lengths])
    rollouts.rewards, rollouts.in_loss = torch.tensor(rewards).double(), torch.tensor(counted)

    earned = token_rewards(rollouts, ragged(penalties, fill=9.0))
    found = generalized_advantages(earned, ragged(values, 9.0), torch.tensor(behind).double(), rollouts.mask, gamma, lam)
    white = whiten(found, rollouts.loss_mask, alone)

    paid = [slow.token_rewards(reward, row) for reward, row in zip(rewards, penalties, strict=True)]
    expected = [slow.generalized(*row, gamma, lam) for row in zip(paid, values, behind, strict=True)]
    # Rewards are made from a float32 tensor: 1e-6.
    torch.testing.assert_close(found, ragged(expected), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(white, ragged(slow.whitened(expected, counted)), rtol=1e-6, atol=1e-6)


# --- the loss of values ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "before", "target", "clip", "expected", "stopped"),
    [
        (1.5, 1.0, 3.0, 0.0, 1.125, False),  # (1.5 - 3)^2 / 2, no clip
        (1.1, 1.0, 3.0, 0.2, 1.805, False),  # within the clip: (1.1 - 3)^2 / 2
        (1.5, 1.0, 3.0, 0.2, 1.62, True),  # nearer by more than 0.2: (1.2 - 3)^2 / 2, nothing more to gain
        (0.5, 1.0, 3.0, 0.2, 3.125, False),  # further by more than 0.2: (0.5 - 3)^2 / 2, it must come back
        (0.5, 1.0, 0.0, 0.2, 0.32, True),  # (0.8 - 0)^2 / 2
        (1.5, 1.0, 0.0, 0.2, 1.125, False),
    ],
)
def test_value_loss_of_one_token(value, before, target, clip, expected, stopped):
    tensors = [torch.tensor([[number]], dtype=torch.float64) for number in (value, before, target)]
    loss, clipped = value_loss(*tensors, clip)
    assert float(loss) == pytest.approx(expected)
    assert bool(clipped) == stopped


@pytest.mark.parametrize("clip", [0.0, 0.1, 0.5])
def test_value_loss_and_its_gradient_are_those_of_the_slow_reference(clip):
    values = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    old, returns = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    loss, clipped = value_loss(values, old, returns, clip)
    one_by_one = [
        slow.value_loss(v, float(o), float(r), clip)
        for v, o, r in zip(values.flatten(), old.flatten(), returns.flatten(), strict=True)
    ]
    torch.testing.assert_close(loss.flatten(), torch.stack(one_by_one))
    gradient, expected = (torch.autograd.grad(total, values)[0] for total in (loss.sum(), sum(one_by_one)))
    torch.testing.assert_close(gradient, expected)
    assert torch.equal(clipped, gradient == 0)


def explained_variance(*tensors):
    return critic_metrics(*tensors, alone)["explained_variance"]


# --- explained variance ------------------------------------------------------------------------------------------


def test_explained_variance_by_hand():
    # Returns 0 1 2 3 with variance 1.25; what is left, 0 0.5 0 0.5, has 0.0625: 1 - 0.05
    values, returns = torch.tensor([[0.0, 0.5, 2.0, 2.5]]), torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    assert explained_variance(values, returns, torch.ones(1, 4).bool()) == pytest.approx(0.95)


def test_explained_variance_is_that_of_the_slow_reference_and_counts_masked_tokens_only():
    values, returns = torch.randn(6, 5), torch.randn(6, 5)
    mask = torch.rand(6, 5) < 0.6
    expected = slow.explained_variance(values[mask].tolist(), returns[mask].tolist())
    assert explained_variance(values, returns, mask) == pytest.approx(expected, abs=1e-6)


def test_a_constant_critic_explains_nothing_and_the_truth_everything():
    returns, mask = torch.randn(3, 4), torch.ones(3, 4).bool()
    assert explained_variance(torch.full((3, 4), 7.0), returns, mask) == pytest.approx(0.0, abs=1e-9)
    assert explained_variance(returns, returns, mask) == pytest.approx(1.0)


def test_means_are_over_the_tokens_that_count():
    values, returns = torch.tensor([[1.0, 9.0], [2.0, 3.0]]), torch.tensor([[0.0, 9.0], [1.0, 2.0]])
    metrics = critic_metrics(values, returns, torch.tensor([[True, False], [True, True]]), alone)
    assert metrics["values_mean"] == pytest.approx(2.0)
    assert metrics["returns_mean"] == pytest.approx(1.0)


def test_equal_returns_leave_nothing_to_explain():
    assert explained_variance(torch.randn(2, 2), torch.ones(2, 2), torch.ones(2, 2).bool()) == 0.0


# --- the head ----------------------------------------------------------------------------------------------------


def critic(model_type="llama", dtype="float32", **options):
    spec = tiny_spec(model_type, dtype, **options)
    policy = Policy(spec, load_tokenizer(spec))
    policy.add_value_head()
    torch.nn.init.normal_(policy.value_head.weight)
    torch.nn.init.constant_(policy.value_head.bias, 0.25)
    return policy


def slow_values(policy, prompt, completion):
    """Before each token of a row and behind its last, by the model's own hidden states of that row alone."""
    out = policy.causal_lm(torch.tensor([prompt + completion]), output_hidden_states=True).hidden_states[-1][0]
    head = policy.value_head
    return (out.to(head.weight.dtype) @ head.weight[0] + head.bias[0])[len(prompt) - 1 :]


def test_a_new_head_expects_nothing():
    head = ValueHead(8)
    assert head(torch.randn(3, 8)).tolist() == [0.0] * 3


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
@pytest.mark.parametrize("packs", [True, False])
def test_values_are_those_of_each_row_alone(model_type, packs):
    from lit_rl.sampling.check import check_policy

    policy = critic(model_type)
    policy.disable_dropout()
    check_policy(policy)
    policy.capabilities.packs = policy.capabilities.packs and packs
    prompts, rows = [[4, 5, 6], [7]], [[8, 9], [5], [4, 4, 4], [6, 7]]
    values = policy.values(rollouts_of(prompts_of(*prompts), 2, rows))
    for n, row in enumerate(rows):
        expected = slow_values(policy, prompts[n // 2], row)[:-1]
        torch.testing.assert_close(values[n, : len(row)], expected, rtol=1e-4, atol=1e-5)
        assert values[n, len(row) :].tolist() == [0.0] * (3 - len(row))


def test_a_truncated_row_is_asked_for_one_value_more():
    policy = critic()
    rollouts = rollouts_of(prompts_of([4, 5]), 2, [[6, 7], [8]], truncated=torch.tensor([True, False]))
    longer = with_bootstrap_position(rollouts)
    assert longer.lengths.tolist() == [3, 1]
    behind = policy.values(longer)[0, 2]
    torch.testing.assert_close(behind, slow_values(policy, [4, 5], [6, 7])[-1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shares", [True, False])
def test_a_row_may_be_truncated_where_the_models_positions_end(shares):
    """The value behind its last token is asked for there, and not at a position that does not exist."""
    policy = critic("gpt2", config={"max_position_embeddings": 4}, gradient_checkpointing=not shares)
    policy.disable_dropout()
    policy.capabilities = replace(policy.capabilities, packs=False)
    assert policy.capabilities.shares_prompts == shares
    longer = with_bootstrap_position(rollouts_of(prompts_of([4, 5]), 1, [[6, 7]], truncated=torch.tensor([True])))
    torch.testing.assert_close(policy.values(longer)[0, 2], slow_values(policy, [4, 5], [6, 7])[-1], rtol=1e-4, atol=1e-5)


def test_values_stay_in_full_precision_under_autocast():
    head = ValueHead(4)
    torch.nn.init.ones_(head.weight)
    hidden = torch.tensor([1.0, 2.0**-12, 0.0, 0.0])  # bfloat16 has 8 bits: their sum would lose the second
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert float(head(hidden)) == 1.0 + 2.0**-12


def test_a_head_of_a_float64_model_is_float64():
    assert critic(dtype="float64").value_head.weight.dtype == torch.float64


def test_scores_with_values_are_scores_and_values():
    policy = critic()
    rollouts = rollouts_of(prompts_of([4, 5, 6], [7]), 1, [[8, 9], [5]])
    scores, values = policy.score_with_values(rollouts, entropy_grad=False, detached=False)
    torch.testing.assert_close(scores.logprobs, policy.score(rollouts).logprobs)
    torch.testing.assert_close(values, policy.values(rollouts))


@pytest.mark.parametrize("detached", [True, False])
def test_detached_values_have_no_gradient_in_the_trunk(detached):
    policy = critic()
    rollouts = rollouts_of(prompts_of([4, 5, 6]), 1, [[8, 9]])
    policy.score_with_values(rollouts, entropy_grad=False, detached=detached)[1].sum().backward()
    trunk = [p.grad for name, p in policy.named_parameters() if not name.startswith("value_head")]
    assert all(gradient is None for gradient in trunk) == detached
    assert float(policy.value_head.weight.grad.abs().sum()) > 0


def test_a_head_comes_back_from_its_folder(tmp_path):
    head, other = critic().value_head, ValueHead(32)
    save_value_head(head.state_dict(), tmp_path)
    load_value_head(other, str(tmp_path))
    assert torch.equal(head.weight, other.weight)
    assert torch.equal(head.bias, other.bias)


@pytest.mark.parametrize("folder", [None, "nothing"])
def test_without_a_file_a_head_stays_new(tmp_path, folder):
    head = ValueHead(4)
    load_value_head(head, folder and str(tmp_path / folder))
    assert head.weight.tolist() == [[0.0] * 4]
