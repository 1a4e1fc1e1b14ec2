"""Precision is a Trainer flag: what it casts is what is computed, never what is counted."""

import functools

import pytest
import torch
from conftest import quiet_trainer, tiny_data, tiny_spec
from lightning.pytorch.callbacks import Callback

from lit_rl.algorithms import GRPO, SFT
from lit_rl.evaluation import Evaluation
from lit_rl.rewards import Reward
from lit_rl.sampling import Sampler


class Thousands(Reward):
    """Rewards that bfloat16 cannot hold: 1001 would become 1000."""

    def score(self, rollouts):
        return torch.tensor([1001.0 + len(text) for text in rollouts.texts])


class Seen(Callback):
    def __init__(self):
        self.rewards, self.advantages, self.metrics = [], [], []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if hasattr(batch.rows, "rewards"):
            self.rewards += batch.rows.rewards.tolist()
            self.advantages.append(batch.rows.advantages.dtype)

    def on_train_batch_end(self, trainer, *_):
        self.metrics.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def build(kind):
    evaluation = Evaluation(max_new_tokens=4)
    if kind == "sft":
        return SFT(tiny_spec(), functools.partial(torch.optim.AdamW, lr=1e-3), evaluation=evaluation)
    adamw = functools.partial(torch.optim.AdamW, lr=1e-3)
    return GRPO(tiny_spec(), sampler=Sampler(max_new_tokens=6), Thousands(), optimizer=adamw, evaluation=evaluation, group_size=4, kl_coef=0.1
    )


@pytest.mark.parametrize("kind", ["sft", "grpo"])
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_bfloat16_trains(tmp_path, kind, precision):
    seen, module = Seen(), build(kind)
    trainer = quiet_trainer(
        tmp_path, max_steps=3, precision=precision, callbacks=[seen], gradient_clip_val=1.0, limit_val_batches=1.0
    )
    before = {name: value.clone() for name, value in build_weights(kind).items()}
    trainer.fit(module, tiny_data(epoch_size=24))
    after = module.policy.state_dict()
    assert any(not torch.equal(before[name].to(after[name].dtype), after[name]) for name in before)
    assert all(torch.isfinite(torch.tensor(list(metrics.values()))).all() for metrics in seen.metrics)
    assert torch.get_default_dtype() == torch.float32


def build_weights(kind):
    module = build(kind)
    module.configure_model()
    return module.policy.state_dict()


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_rewards_keep_float32(tmp_path, precision):
    seen = Seen()
    quiet_trainer(tmp_path, max_steps=2, precision=precision, callbacks=[seen]).fit(build("grpo"), tiny_data())
    assert max(seen.rewards) > 1001
    assert all(reward == int(reward) for reward in seen.rewards)
    assert any(reward % 2 for reward in seen.rewards), "bfloat16 has only multiples of 8 here"
    assert set(seen.advantages) == {torch.float32}


def test_learner_and_sampler_nearly_agree_in_bfloat16(tmp_path):
    seen = Seen()
    quiet_trainer(tmp_path, max_steps=1, precision="bf16-true", callbacks=[seen]).fit(build("grpo"), tiny_data())
    assert seen.metrics[0]["sampling/sampling_logp_difference/mean"] < 0.02


def test_float32_sampler_and_learner_agree(tmp_path):
    seen = Seen()
    quiet_trainer(tmp_path, max_steps=1, callbacks=[seen]).fit(build("grpo"), tiny_data())
    assert seen.metrics[0]["sampling/sampling_logp_difference/mean"] < 1e-6


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


def test_rotary_frequencies_keep_float32(tmp_path):
    module = build("grpo")
    quiet_trainer(tmp_path, max_steps=1, precision="bf16-true").fit(module, tiny_data())
    decoder = module.policy.causal_lm.get_decoder()
    assert decoder.rotary_emb.inv_freq.dtype == torch.float32
    assert decoder.embed_tokens.weight.dtype == torch.bfloat16


@pytest.mark.parametrize(("algorithm", "bound"), [("value", 1e-3), ("norm", 1e-3)])
def test_gradients_are_clipped_as_asked(tmp_path, algorithm, bound):
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
