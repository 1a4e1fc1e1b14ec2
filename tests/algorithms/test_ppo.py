"""PPO in real runs: its advantages, its loss, its early stop and its critic, against numbers computed one by one."""

import functools

import pytest
import slow_critic as slow
import torch
from conftest import quiet_trainer, tiny_data, tiny_spec
from grpo_runs import LIMIT, MOVING, STILL, Length, Watch, flat, slow_rows
from slow_reference import kl, step_loss
from tiny_runs import lit_rl

from lit_rl.algorithms import PPO
from lit_rl.callbacks import DynamicSampling, HFExport
from lit_rl.evaluation import Evaluation
from lit_rl.models import LoRASpec, PolicySpec
from lit_rl.objectives import Objective, Overlong
from lit_rl.reports.curves import read_curve
from lit_rl.rewards import Reward
from lit_rl.sampling import Sampler
from lit_rl.training import Schedule


def ppo(dtype="float32", policy=None, **options) -> PPO:
    settings = {"sampler": Sampler(LIMIT), "reward": Length(), "optimizer": MOVING, "evaluation": Evaluation(max_new_tokens=4)}
    return PPO(policy or tiny_spec(dtype=dtype), **{**settings, "epochs": 2, "minibatches": 2, **options})


def fit(folder, module, steps=4, callbacks=(), data=None, **trainer) -> Watch:
    watch = Watch()
    trainer = quiet_trainer(folder, max_steps=steps, callbacks=[watch, *callbacks], **trainer)
    trainer.fit(module, data or tiny_data())
    return watch


def critic_of(module: PPO):
    """The model that has the value head."""
    return module.critic_model or module.policy


def with_a_critic_that_expects_something(module: PPO) -> PPO:
    """A new head says 0 everywhere, which would hide where its values come from."""
    module.configure_model()
    torch.nn.init.normal_(critic_of(module).value_head.weight, std=0.3)
    return module


def own_values(module: PPO, rollouts) -> list[list[float]]:
    """Values before each token of each row and after its last, by hidden states of that row alone."""
    critic = critic_of(module)
    rows = []
    for n, length in enumerate(rollouts.lengths.tolist()):
        owner = int(rollouts.prompt[n])
        prompt = rollouts.prompts.ids[owner][rollouts.prompts.mask[owner]]
        ids = torch.cat([prompt, rollouts.completion_ids[n, :length]])
        with torch.no_grad():
            states = critic.causal_lm(ids[None], output_hidden_states=True).hidden_states[-1][0]
        values = states @ critic.value_head.weight[0] + critic.value_head.bias[0]
        rows.append(values[len(prompt) - 1 :].tolist())
    return rows


def slow_advantages(module: PPO, rollouts) -> tuple[list[list[float]], list[list[float]]]:
    """Advantages and returns of a rollout without a KL, token by token."""
    advantages, returns = [], []
    for n, values in enumerate(own_values(module, rollouts)):
        earned = slow.token_rewards(float(rollouts.rewards[n]), [0.0] * (len(values) - 1))
        bootstrap = values[-1] if rollouts.truncated[n] else 0.0
        row = slow.generalized(earned, values[:-1], bootstrap, module.gamma, module.lam)
        advantages.append(row)
        returns.append([a + v for a, v in zip(row, values, strict=False)])
    return advantages, returns


def assert_rows(found: torch.Tensor, expected: list[list[float]], bound=1e-5):
    for row, numbers in zip(found.tolist(), expected, strict=True):
        assert row[: len(numbers)] == pytest.approx(numbers, abs=bound)
        assert row[len(numbers) :] == [0.0] * (len(row) - len(numbers))


@pytest.fixture(scope="module")
def two_rollouts(tmp_path_factory) -> Watch:
    """A run of two rollouts, four steps on each."""
    torch.manual_seed(0)
    return fit(tmp_path_factory.mktemp("ppo"), ppo(kl_coef=0.1), steps=8)


# --- advantages --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("critic", "whiten"), [(None, True), ("gpt2", False)])
def test_a_run_has_the_advantages_and_returns_of_the_slow_reference(tmp_path, critic, whiten):
    spec = critic and tiny_spec(critic, "float64")
    options = {"critic": spec, "whiten": whiten, "gamma": 0.97, "lam": 0.8, "optimizer": STILL}
    module = with_a_critic_that_expects_something(ppo("float64", sampler=Sampler(LIMIT, temperature=2.0), **options))
    rollouts = fit(tmp_path, module, steps=1).rollouts[0]
    assert 0 < int(rollouts.truncated.sum()) < len(rollouts), "some rows must end and some be cut off"
    advantages, returns = slow_advantages(module, rollouts)
    assert_rows(rollouts.advantages, slow.whitened(advantages, [True] * len(rollouts)) if whiten else advantages)
    assert_rows(rollouts.returns, returns)


def test_the_kl_is_taken_off_the_reward_at_each_token(tmp_path):
    module = ppo(kl_coef=0.5, whiten=False, value_coef=0.0, gamma=1.0, lam=1.0)
    rollouts = fit(tmp_path, module, steps=5).rollouts[-1]
    pairs = [zip(p, q, strict=True) for p, q in zip(rollouts.logprobs, rollouts.ref_logprobs, strict=True)]
    penalties = [[0.5 * kl("k1", p, float(q)).item() for p, q in row] for row in pairs]
    assert max(abs(number) for row in penalties for number in row) > 0.01
    for n, length in enumerate(rollouts.lengths.tolist()):
        # Without a critic that learns, undiscounted: what was earned from each token on.
        expected = [float(rollouts.rewards[n]) - sum(penalties[n][t:length]) for t in range(length)]
        assert rollouts.advantages[n, :length].tolist() == pytest.approx(expected, abs=1e-5)


def test_the_kl_may_be_a_term_of_the_loss(tmp_path):
    watch = fit(tmp_path, ppo(kl_coef=0.5, objective=Objective(), whiten=False, gamma=1.0, lam=1.0, value_coef=0.0), steps=5)
    last = watch.rollouts[-1]
    assert last.has("ref_logprobs")
    assert torch.equal(last.advantages, last.rewards[:, None] * last.mask)
    assert watch.metrics[-1]["kl"] > 1e-4


def test_masked_rows_have_no_advantage_and_do_not_shift_those_of_the_others(tmp_path):
    options = {"overlong": Overlong("mask"), "sampler": Sampler(LIMIT, temperature=2.0), "optimizer": STILL}
    module = with_a_critic_that_expects_something(ppo("float64", **options))
    rollouts = fit(tmp_path, module, steps=1).rollouts[0]
    assert 0 < int(rollouts.truncated.sum()) < len(rollouts)
    advantages, _ = slow_advantages(module, rollouts)
    assert_rows(rollouts.advantages, slow.whitened(advantages, (~rollouts.truncated).tolist()))


# --- the step ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("critic", "value_clip"), [(None, 0.05), ("gpt2", 0.0)])
def test_the_gradient_is_that_of_the_slow_reference(tmp_path, value_clip, critic):
    """Of the first step on a rollout; clipped values show from the second on."""
    spec = critic and tiny_spec(critic, "float64")
    options = {"critic": spec, "value_clip": value_clip, "value_coef": 0.3, "optimizer": STILL, "epochs": 1, "minibatches": 1}
    module = with_a_critic_that_expects_something(ppo("float64", **options))
    critic_model = critic_of(module)

    class Push(Watch):
        def on_train_batch_start(self, *_):  # as if steps had moved the critic since
            critic_model.value_head.bias.data += 0.2

    rollouts = fit(tmp_path, module, steps=1, callbacks=[Push()]).rollouts[0]
    learning = [p for p in module.parameters() if p.requires_grad]
    found = flat([p.grad for p in learning])

    rows, scores = slow_rows(rollouts), module.policy.score(rollouts)
    logprobs = [list(row[: len(each.sampler)]) for row, each in zip(scores.logprobs, rows, strict=True)]
    zeros = [[torch.zeros(())] * len(row) for row in logprobs]
    loss = step_loss(module.objective, rows, logprobs, zeros, 0.0, 0.0, LIMIT)
    values = critic_model.values(rollouts)
    places = [(n, t) for n, length in enumerate(rollouts.lengths.tolist()) for t in range(length)]
    numbers = [(values[p], float(rollouts.values[p]), float(rollouts.returns[p])) for p in places]
    loss = loss + 0.3 * sum(slow.value_loss(*each, value_clip) for each in numbers) / len(places)
    expected = flat(torch.autograd.grad(loss, learning))
    assert float((found - expected).norm() / expected.norm()) < 1e-5


def test_the_ratio_is_one_at_the_first_minibatch_of_every_rollout(two_rollouts):
    metrics = two_rollouts.metrics
    for step in (0, 4):
        assert metrics[step]["sampling/sampling_logp_difference/mean"] < 1e-5
        assert metrics[step]["approx_kl"] < 1e-8
        assert metrics[step]["clip_ratio/region_mean"] == 0
    assert all(metrics[step]["sampling/sampling_logp_difference/mean"] > 1e-3 for step in (3, 7))


def test_the_logged_kl_is_never_negative(two_rollouts):
    assert all(metrics["kl"] >= 0 and metrics["approx_kl"] >= 0 for metrics in two_rollouts.metrics)
    assert two_rollouts.metrics[-1]["kl"] > 1e-4


def test_each_update_counts_once(tmp_path):
    updates = []

    class Counted(torch.optim.AdamW):
        def step(self, closure=None):
            updates.append(1)
            return super().step(closure)

    module = ppo(optimizer=functools.partial(Counted, lr=1e-3), target_kl=1e-5)
    watch = fit(tmp_path, module, steps=7, accumulate_grad_batches=2)
    assert len(updates) == len(watch.gradients) == module.trainer.global_step == 7
    assert len(module.trainer.optimizers) == 1


def test_equal_completions_are_computed_once_with_the_same_gradient(tmp_path):
    """Rows of one token repeat; the critic's share of them must count as often. Rows with a support are never merged."""

    def run(top_p):
        torch.manual_seed(0)
        options = {"group_size": 16, "epochs": 3, "minibatches": 1, "value_clip": 0.01}
        module = ppo("float64", sampler=Sampler(1, top_p=top_p), **options)
        return fit(tmp_path, with_a_critic_that_expects_something(module), steps=3)

    merged, apart = run(top_p=1.0), run(top_p=1 - 1e-6)  # all tokens stay
    assert len(merged.rollouts[0].merge_duplicates()) < len(merged.rollouts[0])
    assert apart.rollouts[0].support is not None
    for one, other in zip(merged.gradients, apart.gradients, strict=True):
        assert float((one - other).norm() / other.norm()) < 1e-5
    assert apart.metrics[-1]["approx_kl"] > 1e-4
    assert apart.metrics[-1]["critic/clip_ratio"] > 0
    timeless = {name for name in apart.metrics[-1] if not name.startswith(("time/", "perf/"))}
    for name in timeless:
        assert merged.metrics[-1][name] == pytest.approx(apart.metrics[-1][name], rel=1e-4, abs=1e-6), name


# --- the early stop ----------------------------------------------------------------------------------------------


def test_a_rollout_is_left_if_the_policy_has_gone_too_far(tmp_path, two_rollouts):
    assert len(two_rollouts.rollouts) == 2
    held = fit(tmp_path, ppo(kl_coef=0.1, target_kl=1e-6), steps=8)
    # The first step has a KL of 0, the second one sees what it did, is taken, and is the last.
    assert len(held.rollouts) == 4
    assert [metrics["approx_kl"] > 1e-6 for metrics in held.metrics] == [False, True] * 4


def test_a_target_that_is_never_passed_changes_nothing(tmp_path, two_rollouts):
    held = fit(tmp_path, ppo(kl_coef=0.1, target_kl=1e6), steps=8)
    assert [rollouts.texts for rollouts in two_rollouts.rollouts] == [rollouts.texts for rollouts in held.rollouts]
    assert torch.equal(two_rollouts.gradients[-1], held.gradients[-1])


def test_an_epoch_keeps_its_length_when_rollouts_end_early(tmp_path):
    """2 batches of 8 prompts with 4 micro-batches each are 8 steps, whatever happens in them."""
    module = ppo(target_kl=1e-6)
    fit(tmp_path, module, steps=-1, max_epochs=2, data=tiny_data(epoch_size=16))
    assert module.trainer.global_step == 16


# --- the critic --------------------------------------------------------------------------------------------------


class PolicyWeights(Watch):
    """Keeps the policy's weights after every step."""

    def __init__(self):
        super().__init__()
        self.weights = []

    def on_train_batch_end(self, trainer, module, *_):
        self.weights.append(flat(module.policy_parameters()))


@pytest.mark.parametrize("critic", [None, "gpt2"])
def test_while_the_critic_warms_up_the_policy_stays(tmp_path, critic):
    decaying = functools.partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.1)  # would move what has a gradient of 0
    module, watch = ppo(critic=critic and tiny_spec(critic), critic_warmup=2, optimizer=decaying), PolicyWeights()
    module.configure_model()
    before = flat(module.policy_parameters())
    fit(tmp_path, module, steps=3, callbacks=[watch])
    assert torch.equal(watch.weights[0], before)
    assert torch.equal(watch.weights[1], before)
    assert not torch.equal(watch.weights[2], before)
    assert float(critic_of(module).value_head.weight.abs().sum()) > 0


def test_the_policys_schedule_begins_after_the_critics_warmup(tmp_path):
    rates = []

    class Rates(Watch):
        def on_train_batch_start(self, trainer, *_):
            rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    module = ppo(critic_warmup=2, critic_lr=1e-3, schedule=Schedule("linear", warmup_steps=2))
    fit(tmp_path, module, steps=6, callbacks=[Rates()])
    # Up to the full rate in two steps, then down to 0 at the sixth: the policy's two steps later.
    assert [policy for policy, _ in rates] == pytest.approx([0, 0, 0, 0.005, 0.01, 0.0075])
    assert [critic for _, critic in rates] == pytest.approx([0, 0.0005, 0.001, 0.00075, 0.0005, 0.00025])


class Sums(Reward):
    """1 for the answer to a sum and 0 to a difference: what each token of a completion is worth is known."""

    def score(self, rollouts):
        return torch.tensor([float("+" in sample.prompt) for sample in rollouts.samples])


def test_a_critic_learns_a_value_function_that_is_known(tmp_path):
    settings = {"critic": tiny_spec(), "critic_lr": 3e-3, "critic_warmup": 1000, "lam": 1.0, "bootstrap": False}
    settings |= {"sampler": Sampler(3), "epochs": 8, "minibatches": 1, "value_coef": 1.0, "value_clip": 0.0}
    watch = fit(tmp_path, ppo(reward=Sums(), **settings), steps=80, data=tiny_data(batch_size=64, epoch_size=640))
    explained = [metrics["critic/explained_variance"] for metrics in watch.metrics[::8]]
    assert explained[0] == pytest.approx(0.0, abs=1e-3)
    assert min(explained[-3:]) > 0.8
    last = watch.rollouts[-1]
    truth = last.rewards[:, None].expand(last.mask.shape)
    assert float((last.values - truth)[last.mask].abs().mean()) < 0.2


def test_a_critic_of_its_own_learns_at_its_own_rate(tmp_path):
    module = ppo(critic=tiny_spec("gpt2"), critic_lr=0.0)
    module.configure_model()
    before, policy = flat(module.critic_model.parameters()), flat(module.policy.parameters())
    fit(tmp_path, module, steps=2)
    assert torch.equal(flat(module.critic_model.parameters()), before)
    assert not torch.equal(flat(module.policy.parameters()), policy)
    assert [group["lr"] for group in module.trainer.optimizers[0].param_groups] == [1e-2, 0.0]


def test_every_parameter_is_in_one_group():
    for critic in (None, tiny_spec("gpt2"), tiny_spec()):  # the second one's head is its embedding, the third one's is not
        module = ppo(critic=critic)
        module.configure_model()
        grouped = [id(parameter) for group in module.parameters_to_learn().values() for parameter in group["params"]]
        assert len(grouped) == len(set(grouped))
        assert set(grouped) == {id(p) for p in module.parameters() if p.requires_grad}


def test_a_head_learns_at_a_small_rate_under_half_precision(tmp_path):
    policy = tiny_spec(dtype="bfloat16", lora=LoRASpec(r=4))
    module = with_a_critic_that_expects_something(ppo(policy=policy, optimizer=functools.partial(torch.optim.AdamW, lr=1e-4)))
    head = module.policy.value_head
    before = head.weight.detach().clone()
    fit(tmp_path, module, steps=2, precision="bf16-mixed")
    assert head.weight.dtype == torch.float32
    assert module.policy.causal_lm.get_input_embeddings().weight.dtype == torch.bfloat16
    assert float((head.weight - before).abs().max()) > 1e-5


# --- with the other parts ----------------------------------------------------------------------------------------


def test_the_head_is_exported_and_goes_on_from_there(tmp_path):
    start = tmp_path / "start"
    fit(start, ppo(), steps=2, callbacks=[HFExport()])
    for lora in (None, LoRASpec(r=4)):
        module = ppo(policy=PolicySpec(pretrained=str(start / "export"), lora=lora))
        fit(tmp_path, module, steps=2, callbacks=[HFExport()])
        head = module.policy.value_head
        again = ppo(policy=PolicySpec(pretrained=str(tmp_path / "export"), tokenizer=str(start / "export")))
        again.configure_model()
        assert float(head.weight.abs().sum()) > 0
        assert torch.equal(again.policy.value_head.weight, head.weight), lora
        assert torch.equal(again.policy.value_head.bias, head.bias), lora


def test_a_critic_of_its_own_is_exported_beside_the_policy(tmp_path):
    module = ppo(critic=tiny_spec("gpt2"))
    fit(tmp_path, module, steps=2, callbacks=[HFExport()])
    again = ppo(critic=PolicySpec(pretrained=str(tmp_path / "export_critic")))
    again.configure_model()
    assert torch.equal(flat(again.critic_model.parameters()), flat(module.critic_model.parameters()))


def test_dynamic_sampling_needs_completions_to_compare(tmp_path):
    with pytest.raises(ValueError, match=r"write model\.group_size 2 or more"):
        fit(tmp_path, ppo(), callbacks=[DynamicSampling()])
    fit(tmp_path, ppo(group_size=2), steps=1, callbacks=[DynamicSampling(max_rounds=1)])


def test_the_config_that_is_made_for_a_test_runs(tmp_path):
    options = {"max_steps": 4, "val_check_interval": 4, "log_every_n_steps": 1, "default_root_dir": tmp_path}
    arguments = [part for name, value in options.items() for part in (f"--trainer.{name}", value)]
    lit_rl("fit", "--config", "ppo_rpn_test", *arguments, "--data.val_problems", 10)
    curve = read_curve(tmp_path)
    assert [step for step, _ in curve["critic/explained_variance"]] == list(range(4))
    assert {"rewards/boxed/mean", "approx_kl", "loss/critic", "val/accuracy"} <= set(curve)
    assert (tmp_path / "export" / "value_head.safetensors").is_file()
