"""Runs with LoRA on a quantized base: what learns, what stays, and what a checkpoint brings back."""

import functools

import pytest
import torch
from bitsandbytes.optim import PagedAdamW8bit
from conftest import quiet_trainer, tiny_data, tiny_spec
from grpo_runs import Length
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from resumed_runs import assert_same_end, run

from lit_rl.algorithms import GRPO, PPO, SFT
from lit_rl.callbacks import HFExport
from lit_rl.evaluation import Evaluation
from lit_rl.models import LoRASpec, Policy, PolicySpec
from lit_rl.models.loading import load_model, load_tokenizer
from lit_rl.models.quantization import QuantizedLinear
from lit_rl.models.reference import Reference
from lit_rl.sampling import Sampler

IDS = torch.tensor([[1, 5, 9, 12, 7, 3]])
# Small weights would keep their averages in 32 bits.
PAGED = functools.partial(PagedAdamW8bit, lr=1e-2, min_8bit_size=64)
SHORT = Evaluation(max_new_tokens=4)
LORA, DROPOUT = LoRASpec(r=4, alpha=8), LoRASpec(r=4, alpha=8, dropout=0.1)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Folder of a plain model of one layer and its tokenizer."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base")
    spec = tiny_spec(config={"num_hidden_layers": 1})
    tokenizer = load_tokenizer(spec)
    tokenizer.save_pretrained(folder)
    load_model(spec, tokenizer).save_pretrained(folder)
    return str(folder)


def spec(base, method="nf4", lora=LORA, **options):
    return PolicySpec(pretrained=base, quantization=method, lora=lora, **options)


def sft(policy, **options):
    return SFT(policy, **{"optimizer": PAGED, "evaluation": SHORT, **options})


def grpo(policy, **options):
    settings = {"sampler": Sampler(max_new_tokens=4), "group_size": 4, "kl_coef": 0.1, "reward": Length()}
    settings |= {"optimizer": PAGED, "evaluation": SHORT}
    return GRPO(policy, **{**settings, **options})


class Seen(Callback):
    """Losses and metrics of each step, and the names of weights with a gradient."""

    def __init__(self):
        self.metrics, self.with_gradient = [], []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.with_gradient.append({name for name, weight in module.named_parameters() if weight.grad is not None})

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.metrics.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def frozen(policy: Policy) -> dict[str, torch.Tensor]:
    """Everything but adapters and value head."""
    return {name: value.clone() for name, value in policy.model.state_dict().items() if "lora_" not in name}


@torch.no_grad()
def logits(model):
    return model.eval()(IDS).logits


@pytest.mark.parametrize("method", ["nf4", pytest.param("int8", marks=pytest.mark.long)])
def test_sft_with_everything_learns_and_leaves_the_base_as_it_is(method, base, tmp_path):
    """QLoRA as seed 002 has it: dropout, a paged 8-bit optimizer, gradient checkpointing; validation between the steps."""
    policy = spec(base, method, DROPOUT, gradient_checkpointing=True)
    module, seen = sft(policy, optimizer=functools.partial(PAGED, lr=3e-2)), Seen()
    options = {"max_steps": 12, "val_check_interval": 4, "check_val_every_n_epoch": None, "limit_val_batches": 1.0}
    quiet_trainer(tmp_path, callbacks=[seen, HFExport()], **options).fit(module, tiny_data())
    losses = [metrics["loss"] for metrics in seen.metrics]
    print(f"loss of {method}: {losses[0]:.3f} -> {losses[-1]:.3f}")
    assert losses[-1] < losses[0] - 0.15
    torch.testing.assert_close(frozen(module.policy), frozen(Policy(policy, module.tokenizer)), rtol=0, atol=0)
    # After each validation, which samples in eval mode, too.
    adapters = {name for name, _ in module.named_parameters() if "lora_" in name}
    assert seen.with_gradient == [adapters] * 12
    # The exported adapter opens to the same logits.
    again = load_model(PolicySpec(pretrained=str(tmp_path / "export"), quantization=method), module.tokenizer)
    torch.testing.assert_close(logits(again), logits(module.policy.model))


@pytest.mark.parametrize("algorithm", [grpo, functools.partial(PPO, sampler=Sampler(4), evaluation=SHORT, minibatches=1)])
def test_rl_on_a_quantized_base_moves_the_adapter_alone(algorithm, base, tmp_path):
    module, seen = algorithm(spec(base), optimizer=PAGED), Seen()
    quiet_trainer(tmp_path, callbacks=[seen], max_steps=2, gradient_clip_val=1.0).fit(module, tiny_data())
    torch.testing.assert_close(frozen(module.policy), frozen(Policy(spec(base), module.tokenizer)), rtol=0, atol=0)
    # The sampler's record against the learner before any step: the same dequantized weights.
    assert seen.metrics[0]["sampling/sampling_logp_difference/mean"] < 1e-5
    assert all("lora_" in name or "value_head" in name for name in seen.with_gradient[0])
    assert seen.with_gradient[0]


def test_the_reference_of_an_adapter_that_learns_on_is_the_adapter_as_it_began(base, tmp_path):
    first = sft(spec(base))
    quiet_trainer(tmp_path, callbacks=[HFExport()], max_steps=2).fit(first, tiny_data())
    module, seen = grpo(spec(str(tmp_path / "export"))), Seen()
    quiet_trainer(tmp_path, callbacks=[seen], max_steps=2).fit(module, tiny_data())
    assert seen.metrics[0]["kl"] == pytest.approx(0.0, abs=1e-6)
    assert seen.metrics[-1]["kl"] > 1e-4
    with module.reference._start.in_place_of(module.policy.model):
        torch.testing.assert_close(logits(module.policy.model), logits(first.policy.model), rtol=0, atol=0)
    assert module.reference.fingerprint is not None
    with pytest.raises(ValueError, match=r"^the KL penalty of an adapter that goes on learning does not work with fsdp2"):
        Reference(module.policy, sharded=True)


@pytest.mark.parametrize("build", [sft, pytest.param(grpo, marks=pytest.mark.long)])
def test_stop_and_resume_changes_no_bit_of_weights_and_8_bit_averages(build, base, tmp_path):
    def again(**options):
        dropout = DROPOUT if build is sft else LoRASpec(r=4)
        return run(lambda: build(spec(base, lora=dropout)), tmp_path, 16 if build is grpo else 32, **options)

    saver = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=5, save_on_train_epoch_end=False, save_top_k=-1)
    whole = again(callbacks=[saver])
    averages = whole[1].optimizers[0].state_dict()["state"][0]
    assert torch.uint8 in {value.dtype for value in averages["__bnb_optimizer_quant_state__"].values()}
    # A checkpoint holds the base as it is quantized, and nothing but tensors and plain values.
    state = torch.load(tmp_path / "step=5.ckpt", weights_only=True)["state_dict"]
    layers = [name for name, layer in whole[0].named_modules() if isinstance(layer, QuantizedLinear)]
    assert {state[f"{name}.weight"].dtype for name in layers} == {torch.uint8}
    assert_same_end(whole, again(ckpt_path=tmp_path / "step=5.ckpt"), 5)


def test_dropout_of_the_adapter_acts_in_training_alone(base, tmp_path):
    module = sft(spec(base, lora=LoRASpec(r=4, dropout=0.5)))
    quiet_trainer(tmp_path, max_steps=1).fit(module, tiny_data())
    module.policy.train()
    assert not torch.equal(module.policy.model(IDS).logits, module.policy.model(IDS).logits)
    module.policy.eval()
    assert torch.equal(module.policy.model(IDS).logits, module.policy.model(IDS).logits)


def test_a_quantized_base_without_an_adapter_is_evaluated_and_not_trained(base, tmp_path):
    module, trainer = sft(spec(base, lora=None)), quiet_trainer(tmp_path, max_steps=1)
    with pytest.raises(
        ValueError, match=r"^model\.policy\.quantization nf4 freezes all linear layers; write model\.policy\.lora"
    ):
        trainer.fit(module, tiny_data())
    trainer = quiet_trainer(tmp_path, limit_val_batches=1.0)
    (metrics,) = trainer.validate(sft(spec(base, lora=None)), tiny_data(), verbose=False)
    assert metrics["val/loss"] > 0


def test_a_quantized_critic_without_an_adapter_is_refused(base):
    with pytest.raises(ValueError, match=r"^model\.critic\.quantization nf4 freezes"):
        PPO(tiny_spec(), critic=spec(base, lora=None), evaluation=SHORT)
