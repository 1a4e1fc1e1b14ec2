"""The value head: values of each row, bootstrap values, precision and gradients; and the metrics of a critic."""

from dataclasses import replace

import pytest
import slow_critic as slow
import torch
from conftest import tiny_spec
from tiny_rollouts import prompts_of, rollouts_of

from lit_rl.models import Policy
from lit_rl.models.loading import load_tokenizer
from lit_rl.models.value_head import ValueHead, critic_metrics, load_value_head, save_value_head, with_bootstrap_position
from lit_rl.sampling.check import check_policy


def alone(values):
    """The sum over one rank."""
    return values


# --- metrics -----------------------------------------------------------------------------------------------------


def explained_variance(*tensors):
    return critic_metrics(*tensors, alone)["explained_variance"]


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
    """Values before each token of a row and after its last, by the model's own hidden states of the row alone."""
    out = policy.causal_lm(torch.tensor([prompt + completion]), output_hidden_states=True).hidden_states[-1][0]
    head = policy.value_head
    return (out.to(head.weight.dtype) @ head.weight[0] + head.bias[0])[len(prompt) - 1 :]


def test_a_new_head_expects_nothing():
    head = ValueHead(8)
    assert head(torch.randn(3, 8)).tolist() == [0.0] * 3


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_values_are_those_of_each_row_alone(model_type):
    policy = critic(model_type)
    policy.disable_dropout()
    check_policy(policy)
    assert policy.capabilities.packs
    prompts, rows = [[4, 5, 6], [7]], [[8, 9], [5], [4, 4, 4], [6, 7]]
    for packs in (True, False):
        policy.capabilities = replace(policy.capabilities, packs=packs)
        values = policy.values(rollouts_of(prompts_of(*prompts), 2, rows))
        for n, row in enumerate(rows):
            expected = slow_values(policy, prompts[n // 2], row)[:-1]
            torch.testing.assert_close(values[n, : len(row)], expected, rtol=1e-4, atol=1e-5)
            assert values[n, len(row) :].tolist() == [0.0] * (3 - len(row)), packs


def test_a_truncated_row_is_asked_for_one_value_more():
    policy = critic()
    rollouts = rollouts_of(prompts_of([4, 5]), 2, [[6, 7], [8]], truncated=torch.tensor([True, False]))
    longer = with_bootstrap_position(rollouts)
    assert longer.lengths.tolist() == [3, 1]
    after = policy.values(longer)[0, 2]
    torch.testing.assert_close(after, slow_values(policy, [4, 5], [6, 7])[-1], rtol=1e-4, atol=1e-5)


def test_the_longest_row_need_not_be_the_truncated_one():
    policy = critic()
    longer = with_bootstrap_position(rollouts_of(prompts_of([4, 5]), 2, [[6, 7], [8]], truncated=torch.tensor([False, True])))
    values = policy.values(longer)
    assert values.shape == (2, 2)
    torch.testing.assert_close(values[1, 1], slow_values(policy, [4, 5], [8])[-1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shares", [True, False], ids=["shared prompts", "whole rows"])
def test_a_row_may_be_truncated_where_the_models_positions_end(shares):
    """The value after its last token is asked for at that token, and not at a position that does not exist."""
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


def test_detached_values_have_no_gradient_in_the_trunk():
    rollouts = rollouts_of(prompts_of([4, 5, 6]), 1, [[8, 9]])
    for detached in (True, False):
        policy = critic()
        policy.score_with_values(rollouts, entropy_grad=False, detached=detached)[1].sum().backward()
        trunk = [p.grad for name, p in policy.named_parameters() if not name.startswith("value_head")]
        assert all(gradient is None for gradient in trunk) == detached
        assert float(policy.value_head.weight.grad.abs().sum()) > 0


def test_a_policy_without_a_head_has_no_values():
    policy = Policy(tiny_spec(), load_tokenizer(tiny_spec()))
    with pytest.raises(ValueError, match=r"this policy has no value head; call add_value_head\(\) first"):
        policy.values(rollouts_of(prompts_of([4, 5, 6]), 1, [[8, 9]]))


def test_a_head_comes_back_from_its_folder(tmp_path):
    head, other = critic().value_head, ValueHead(32)
    save_value_head(head.state_dict(), tmp_path)
    load_value_head(other, str(tmp_path))
    assert torch.equal(head.weight, other.weight)
    assert torch.equal(head.bias, other.bias)


def test_without_a_file_a_head_stays_new(tmp_path):
    head = ValueHead(4)
    for folder in (None, str(tmp_path / "nothing")):
        load_value_head(head, folder)
        assert head.weight.tolist() == [[0.0] * 4], folder
