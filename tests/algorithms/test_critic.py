"""Critic: a value head on the policy's trunk or a model of its own, without a Trainer."""

import re

import pytest
import torch
from conftest import tiny_spec
from grpo_runs import flat
from tiny_rollouts import prompts_of, rollouts_of

from lit_rl.algorithms.critic import Critic, build_critic_model
from lit_rl.models import Policy, PolicySpec
from lit_rl.models.loading import load_tokenizer

ROWS = [[7, 8, 9], [10], [8, 7], [11, 12, 13]]
TRUNCATED = torch.tensor([True, False, True, False])


def tiny_policy() -> Policy:
    spec = tiny_spec(dtype="float64")
    policy = Policy(spec, load_tokenizer(spec))
    policy.disable_dropout()
    return policy


def critic_model(spec: PolicySpec, policy: Policy, seed: int = 0) -> Policy:
    return build_critic_model(spec, policy, load_tokenizer(policy.spec).get_vocab(), seed)


@pytest.fixture
def policy() -> Policy:
    return tiny_policy()


@pytest.fixture
def rollouts():
    return rollouts_of(prompts_of([1, 3, 5], [1, 4]), 2, ROWS, truncated=TRUNCATED)


@pytest.fixture(params=["head", "model"])
def model(request, policy) -> Policy | None:
    """The critic's own model, if it has one."""
    return critic_model(tiny_spec("gpt2", "float64"), policy) if request.param == "model" else None


@pytest.fixture
def critic(policy, model) -> Critic:
    critic = Critic(policy, model)
    expect_something(model or policy)
    return critic


def expect_something(model: Policy) -> None:
    """Values of a new head are 0, which would hide where they come from."""
    torch.nn.init.normal_(model.value_head.weight, std=0.3)


def test_a_head_on_the_trunk_is_all_that_the_critic_trains(policy):
    critic = Critic(policy)
    assert critic.shares_trunk
    assert [id(each) for each in critic.parameters()] == [id(each) for each in policy.value_head.parameters()]


def test_a_model_of_its_own_is_trained_without_a_head_that_no_loss_reads(policy):
    for model_type, tied in (("gpt2", True), ("llama", False)):
        model = critic_model(tiny_spec(model_type), policy)
        critic, unread = Critic(policy, model), model.causal_lm.get_output_embeddings().weight
        assert not critic.shares_trunk
        assert policy.value_head is None
        expected = {id(each) for each in model.parameters() if tied or each is not unread}
        assert {id(each) for each in critic.parameters()} == expected, model_type


def test_expected_values_are_before_each_token_and_after_the_last_one_of_a_truncated_row(critic, model, policy, rollouts):
    found, model = critic.expected(rollouts), model or policy
    assert found.shape == (4, 4)
    for n, row in enumerate(ROWS):
        prompt = rollouts.prompts.ids[n // 2][rollouts.prompts.mask[n // 2]]
        ids = torch.cat([prompt, torch.tensor(row)])
        with torch.no_grad():
            hidden = model.causal_lm(ids[None], output_hidden_states=True).hidden_states[-1][0]
        values = (hidden @ model.value_head.weight[0] + model.value_head.bias[0])[len(prompt) - 1 :].tolist()
        known = len(row) + int(TRUNCATED[n])
        assert found[n, :known].tolist() == pytest.approx(values[:known], abs=1e-5)
        assert not found[n, known:].any()


def test_scores_are_the_policys_and_values_the_critics(critic, policy, rollouts):
    scores, values = critic.score_with_values(rollouts, entropy_grad=False, detached=False)
    assert torch.allclose(scores.logprobs, policy.score(rollouts, details=False).logprobs)
    assert torch.allclose(values.float(), critic.expected(rollouts)[:, :-1] * rollouts.sampled, atol=1e-6)


def test_the_gradient_of_values_reaches_a_shared_trunk_unless_they_are_detached(policy, rollouts):
    critic = Critic(policy)
    expect_something(policy)
    trunk = [each for name, each in policy.named_parameters() if not name.startswith("value_head.")]
    for detached in (True, False):
        policy.zero_grad()
        critic.score_with_values(rollouts, entropy_grad=False, detached=detached)[1].sum().backward()
        assert all(each.grad.any() for each in critic.parameters())
        assert any(each.grad is not None and bool(each.grad.any()) for each in trunk) is not detached


def test_the_gradient_of_values_stays_in_a_model_of_its_own(policy, rollouts):
    model = critic_model(tiny_spec("gpt2"), policy)
    critic = Critic(policy, model)
    expect_something(model)
    critic.score_with_values(rollouts, entropy_grad=False, detached=False)[1].sum().backward()
    assert any(each.grad is not None and bool(each.grad.any()) for each in critic.parameters())
    assert all(each.grad is None for each in policy.parameters())


def test_new_weights_of_a_critic_depend_on_the_seed_alone(policy):
    critics = []
    for state, seed in ((1, 5), (2, 5), (2, 6)):
        torch.manual_seed(state)
        critics.append(flat(critic_model(tiny_spec("gpt2"), policy, seed).parameters()))
    assert torch.equal(critics[0], critics[1])
    assert not torch.equal(critics[1], critics[2])


def test_a_critic_that_cannot_read_the_policys_tokens_is_refused(policy):
    for spec, message in [
        (PolicySpec(pretrained="runs/none/export"), "model.critic.pretrained: the folder 'runs/none/export' does not exist"),
        (PolicySpec(config=tiny_spec().config, tokenizer="reasoning"), "model.critic has another tokenizer than model.policy"),
        (tiny_spec(config={"max_position_embeddings": 64}), "model.critic has 64 positions and model.policy 128"),
    ]:
        with pytest.raises(ValueError, match=re.escape(message)):
            critic_model(spec, policy)
