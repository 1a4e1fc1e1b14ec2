"""Precision is a Trainer flag: what it casts is what is computed, never what is counted."""

import functools

import pytest
import torch
from conftest import quiet_trainer, tiny_data, tiny_spec
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import Callback

from lit_rl.algorithms import GRPO, SFT
from lit_rl.evaluation import Evaluation
from lit_rl.rewards import Reward
from lit_rl.rollouts import Rollouts
from lit_rl.sampling import Sampler


class Thousands(Reward):
    """Rewards that bfloat16 cannot hold: 1001 would become 1000."""

    def score(self, rollouts):
        return torch.tensor([1001.0 + len(text) for text in rollouts.texts])


class Seen(Callback):
    def __init__(self):
        self.rewards, self.advantages, self.metrics, self.before = [], [], [], {}

    def on_train_start(self, trainer, module):
        self.before = {name: value.clone() for name, value in module.policy.state_dict().items()}

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if isinstance(batch.rows, Rollouts):
            self.rewards += batch.rows.rewards.tolist()
            self.advantages.append(batch.rows.advantages.dtype)

    def on_train_batch_end(self, trainer, *_):
        self.metrics.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def build(kind):
    options = {"optimizer": functools.partial(torch.optim.AdamW, lr=1e-3), "evaluation": Evaluation(max_new_tokens=4)}
    if kind == "sft":
        return SFT(tiny_spec(), **options)
    return GRPO(tiny_spec(), sampler=Sampler(max_new_tokens=6), reward=Thousands(), group_size=4, kl_coef=0.1, **options)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Module after three steps and what was seen of them, by algorithm and precision."""
    runs = {}

    def get(kind, precision):
        if (kind, precision) not in runs:
            torch.manual_seed(0)
            seen, module, folder = Seen(), build(kind), tmp_path_factory.mktemp("precision")
            options = {"gradient_clip_val": 1.0, "limit_val_batches": 1.0, "callbacks": [seen]}
            quiet_trainer(folder, max_steps=3, precision=precision, **options).fit(module, tiny_data(epoch_size=24))
            runs[kind, precision] = module, seen
        return runs[kind, precision]

    return get


@pytest.mark.parametrize("kind", ["sft", "grpo"])
def test_bfloat16_trains(trained, kind):
    module, seen = trained(kind, "bf16-mixed")
    after = module.policy.state_dict()
    assert any(not torch.equal(value, after[name]) for name, value in seen.before.items())
    assert all(torch.isfinite(torch.tensor(list(metrics.values()))).all() for metrics in seen.metrics)
    assert torch.get_default_dtype() == torch.float32


def test_rewards_keep_float32(trained):
    _, seen = trained("grpo", "bf16-mixed")
    assert max(seen.rewards) > 1001
    assert all(reward == int(reward) for reward in seen.rewards)
    assert any(reward % 2 for reward in seen.rewards), "bfloat16 has only multiples of 8 here"
    assert set(seen.advantages) == {torch.float32}


@pytest.mark.parametrize(("precision", "bound"), [("bf16-mixed", 0.02), ("32-true", 1e-6)])
def test_learner_and_sampler_agree_before_the_first_step(trained, precision, bound):
    _, seen = trained("grpo", precision)
    assert seen.metrics[0]["sampling/sampling_logp_difference/mean"] < bound


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_precisions_that_train_in_half_precision_are_refused_before_the_model_is_built(tmp_path, precision):
    module = build("sft")
    with pytest.raises(ValueError, match=rf"^trainer\.precision {precision} .*; write bf16-mixed,"):
        quiet_trainer(tmp_path, max_steps=1, precision=precision).fit(module, tiny_data())
    assert not hasattr(module, "policy")


def test_float16_on_a_cpu_is_refused(tmp_path):
    # By the accelerator's name Lightning itself takes bf16-mixed instead, and says so.
    trainer = quiet_trainer(tmp_path, max_steps=1, accelerator=CPUAccelerator(), devices=1, precision="16-mixed")
    with pytest.raises(ValueError, match=r"^trainer\.precision 16-mixed needs a GPU; write bf16-mixed on a CPU\.$"):
        trainer.fit(build("sft"), tiny_data())


def test_evaluation_in_bfloat16_keeps_rotary_frequencies_in_float32(tmp_path):
    module = build("grpo")
    trainer = quiet_trainer(tmp_path, precision="bf16-true", limit_val_batches=1)
    metrics = trainer.validate(module, tiny_data(), verbose=False)[0]
    decoder = module.policy.causal_lm.get_decoder()
    assert decoder.rotary_emb.inv_freq.dtype == torch.float32
    assert decoder.embed_tokens.weight.dtype == torch.bfloat16
    assert all(value == value for value in metrics.values()), "a metric is not a number"


def test_a_sampler_that_disagrees_stops_the_run(tmp_path):
    module = build("grpo")
    module.configure_model()
    sample = Sampler.sample

    class Hot(Sampler):
        def sample(self, *args):
            rollouts = sample(self, *args)
            rollouts.temperature += 1  # recorded wrongly: the learner scores another distribution
            return rollouts

    module.sampler = Hot(max_new_tokens=6)
    with pytest.raises(ValueError, match="learner and sampler differ"):
        quiet_trainer(tmp_path, max_steps=1).fit(module, tiny_data())


@pytest.mark.parametrize("algorithm", ["value", "norm"])
def test_gradients_are_clipped_as_asked(tmp_path, algorithm):
    bound = 1e-3

    class Gradients(Callback):
        def on_before_zero_grad(self, trainer, module, optimizer):
            grads = [p.grad for p in module.policy.parameters() if p.grad is not None]
            if grads:
                self.largest = max(float(grad.abs().max()) for grad in grads)
                self.norm = float(torch.stack([grad.norm() for grad in grads]).norm())

    seen = Gradients()
    trainer = quiet_trainer(tmp_path, max_steps=2, gradient_clip_val=bound, gradient_clip_algorithm=algorithm, callbacks=[seen])
    trainer.fit(build("sft"), tiny_data())
    if algorithm == "value":
        assert seen.largest == pytest.approx(bound)
        assert seen.norm > 2 * bound
    else:
        assert seen.norm == pytest.approx(bound, rel=1e-3)
