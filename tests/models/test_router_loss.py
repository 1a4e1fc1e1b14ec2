"""The auxiliary loss of a mixture of experts is transformers' own, and part of the loss if the config asks for it."""

import functools

import pytest
import torch
from conftest import quiet_trainer, tiny_data, tiny_spec
from lightning.pytorch.callbacks import Callback

from lit_rl.algorithms import GRPO, SFT
from lit_rl.evaluation import Evaluation
from lit_rl.models import Policy
from lit_rl.models.loading import load_tokenizer
from lit_rl.sampling import Sampler

EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
ASKED = {**EXPERTS, "output_router_logits": True, "router_aux_loss_coef": 0.5}
STILL = functools.partial(torch.optim.SGD, lr=0.0)
SHORT = Evaluation(max_new_tokens=4)


class Keep(Callback):
    def __init__(self):
        self.batches, self.gradient, self.metrics = [], {}, {}

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.batches.append(batch.rows)

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.gradient = {name: p.grad.clone() for name, p in module.policy.named_parameters() if p.grad is not None}

    def on_train_batch_end(self, trainer, *_):
        self.metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}


def one_step(folder, module, **options):
    keep = Keep()
    quiet_trainer(folder, max_steps=1, callbacks=[keep], **options).fit(module, tiny_data())
    return keep


@pytest.mark.parametrize("model_type", ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe"])
@pytest.mark.parametrize("packs", [True, False])
def test_the_loss_and_its_gradient_are_those_of_transformers(tmp_path, model_type, packs):
    """Also if rows are padded, whose padding does not count."""
    spec = tiny_spec(model_type, config=ASKED, attention="sdpa" if packs else "eager")
    module = SFT(spec, optimizer=STILL, evaluation=SHORT, completion_only=False)
    keep = one_step(tmp_path, module)
    (rows,), model = keep.batches, module.policy.causal_lm
    model.zero_grad()
    out = model(input_ids=rows.ids, attention_mask=rows.mask.long(), labels=rows.ids.masked_fill(~rows.target, -100))
    out.loss.backward()
    assert keep.metrics["aux_loss"] == pytest.approx(0.5 * float(out.aux_loss), rel=1e-4)
    assert keep.metrics["loss"] == pytest.approx(float(out.loss), rel=1e-4)
    for name, parameter in module.policy.named_parameters():
        if parameter.grad is not None:
            assert float((keep.gradient[name] - parameter.grad).norm()) <= 1e-4 * max(1e-2, float(parameter.grad.norm())), name


def test_the_loss_of_a_step_is_the_mean_over_its_micro_batches(tmp_path):
    module = SFT(tiny_spec("mixtral", config=ASKED), optimizer=STILL, evaluation=SHORT, completion_only=False)
    keep, model = one_step(tmp_path, module, accumulate_grad_batches=2), module.policy.causal_lm
    parts = [float(model(input_ids=rows.ids, attention_mask=rows.mask.long()).aux_loss) for rows in keep.batches]
    assert len(parts) == 2
    assert keep.metrics["aux_loss"] == pytest.approx(0.5 * sum(parts) / 2, rel=1e-4)


def test_completions_of_equal_rewards_balance_too(tmp_path):
    """Such groups have no other gradient; sampling collects nothing."""
    settings = {"group_size": 2, "sampler": Sampler(max_new_tokens=4), "optimizer": STILL, "evaluation": SHORT}
    keep = one_step(tmp_path, GRPO(tiny_spec("mixtral", config=ASKED), **settings))
    assert sum(len(rows.prompts) for rows in keep.batches) == 8
    assert keep.metrics["aux_loss"] > 0.5
    assert any("gate" in name and float(value.norm()) > 1e-4 for name, value in keep.gradient.items())


def test_a_coefficient_that_nothing_uses_is_said(tmp_path, caplog):
    with caplog.at_level("INFO"):
        policy = Policy(tiny_spec("mixtral", config={**EXPERTS, "router_aux_loss_coef": 0.5}), load_tokenizer(tiny_spec()))
    assert "router_aux_loss_coef 0.5 of this mixtral is not used" in caplog.text
    assert policy.router.take() is None


def test_an_auxiliary_loss_that_cannot_be_computed_is_refused():
    with pytest.raises(ValueError, match=r"^the auxiliary loss of the router does not go with policy\.compile"):
        Policy(tiny_spec("mixtral", config=ASKED, compile=True), load_tokenizer(tiny_spec()))
