"""A step whose loss or gradient is not finite changes nothing; several in a row end the run and leave their batch."""

import functools
import math

import pytest
import torch
from bitsandbytes.optim import AdamW8bit
from conftest import quiet_trainer, tiny_data, tiny_spec
from lightning.pytorch.callbacks import Callback
from tiny_runs import lit_rl, refusal, tiny_config, write_yaml

from lit_rl.algorithms import GRPO, PPO, SFT
from lit_rl.evaluation import Evaluation
from lit_rl.sampling import Sampler
from lit_rl.training.failed_step import load_failed_step, not_finite, replay

ADAM = functools.partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.1)
MOMENTUM = functools.partial(torch.optim.SGD, lr=1e-2, momentum=0.9, weight_decay=0.1)
SHORT = Evaluation(max_new_tokens=4)
RL = {"group_size": 4, "sampler": Sampler(max_new_tokens=4)}


class Spoil(Callback):
    """Makes one gradient infinite at some steps; keeps weights and optimizer state after each step, and metrics."""

    def __init__(self, *steps, value=math.inf):
        self.steps, self.value = steps, value
        self.after, self.metrics = {}, {}

    def on_before_optimizer_step(self, trainer, module, optimizer):
        if trainer.global_step in self.steps:
            optimizer.param_groups[-1]["params"][-1].grad.view(-1)[0] = self.value

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        state = trainer.optimizers[0].state_dict()["state"]
        found = [p.detach().clone() for p in module.parameters()]
        found += [torch.as_tensor(v).clone() for each in state.values() for v in each.values() if isinstance(v, torch.Tensor)]
        self.after[trainer.global_step] = found
        self.metrics[trainer.global_step] = {name: float(value) for name, value in trainer.callback_metrics.items()}


def run(folder, module, *callbacks, steps=4, **options):
    trainer = quiet_trainer(folder, max_steps=steps, callbacks=list(callbacks), **options)
    trainer.fit(module, tiny_data())
    return trainer


def sft(**options):
    return SFT(tiny_spec(), **{"optimizer": ADAM, "evaluation": SHORT, **options})


def assert_nothing_changed(spoil: Spoil, step: int) -> None:
    """Nothing changes in a step, and something in the next."""
    for before, after in zip(spoil.after[step], spoil.after[step + 1], strict=True):
        assert torch.equal(before, after)
    assert not all(torch.equal(a, b) for a, b in zip(spoil.after[step + 1], spoil.after[step + 2], strict=True))
    assert all(bool(value.isfinite().all()) for value in spoil.after[step + 2] if value.is_floating_point())


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        (ADAM, {}),
        (MOMENTUM, {"gradient_clip_val": 1.0}),
        (functools.partial(AdamW8bit, lr=1e-2, min_8bit_size=1), {}),
        (ADAM, {"gradient_clip_val": 0.1, "gradient_clip_algorithm": "value", "accumulate_grad_batches": 2}),
    ],
)
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_gradient_that_is_not_finite_changes_nothing(tmp_path, optimizer, options, value):
    spoil = Spoil(2, value=value)
    trainer = run(tmp_path, sft(optimizer=optimizer), spoil, **options)
    assert_nothing_changed(spoil, 2)
    assert trainer.global_step == 4
    assert [spoil.metrics[step]["skipped_steps"] for step in (1, 2, 3, 4)] == [0, 0, 1, 1]


class LossOfNothing(SFT):
    """A loss that is not finite in the first micro-batch of the third step, with an ordinary gradient."""

    def batch_loss(self, batch):
        loss = super().batch_loss(batch)
        spoiled = self.trainer.global_step == 2 and batch.first
        return loss._replace(loss=loss.loss + math.inf) if spoiled else loss


def test_a_loss_that_is_not_finite_changes_nothing(tmp_path):
    spoil = Spoil()
    run(tmp_path, LossOfNothing(tiny_spec(), optimizer=ADAM, evaluation=SHORT), spoil, accumulate_grad_batches=2)
    assert_nothing_changed(spoil, 2)


@pytest.mark.parametrize("algorithm", [GRPO, PPO])
def test_a_policy_that_samples_goes_on_after_a_failed_step(tmp_path, algorithm):
    """With the weights of a failed step it could not sample any more."""
    spoil = Spoil(0)
    module = algorithm(tiny_spec(), optimizer=ADAM, evaluation=SHORT, **RL, epochs=1, minibatches=1, entropy_coef=0.01)
    trainer = run(tmp_path, module, spoil, steps=2)
    assert trainer.global_step == 2
    assert spoil.metrics[2]["skipped_steps"] == 1
    assert all(bool(p.isfinite().all()) for p in module.parameters())


def test_steps_that_fail_in_a_row_end_the_run_and_others_do_not(tmp_path):
    run(tmp_path, sft(max_skipped_steps=2), Spoil(0, 2, 3 + 1), steps=5)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"^2 optimizer step\(s\) in a row .* not finite .* lit-rl replay .*failed_step-4\.pt"):
        run(tmp_path, sft(max_skipped_steps=2), Spoil(0, 2, 3), steps=5)
    assert [path.name for path in tmp_path.iterdir()] == ["failed_step-4.pt"]


def test_the_count_of_failed_steps_is_in_the_checkpoint(tmp_path):
    class Saver(Callback):
        def on_train_end(self, trainer, module):
            trainer.save_checkpoint(tmp_path / "run.ckpt")

    run(tmp_path, sft(max_skipped_steps=2), Spoil(1), Saver(), steps=2)
    trainer = quiet_trainer(tmp_path, max_steps=4, callbacks=[Spoil(2)])
    with pytest.raises(ValueError, match=r"^2 optimizer step"):
        trainer.fit(sft(max_skipped_steps=2), tiny_data(), ckpt_path=tmp_path / "run.ckpt")


def test_a_failed_step_can_be_computed_again(tmp_path):
    """The same loss and gradient as in the run, and the tokens whose values are not finite."""
    module = GRPO(tiny_spec("gpt2"), max_skipped_steps=1, optimizer=ADAM, evaluation=SHORT, **RL, entropy_coef=0.01)
    seen = {}

    class Look(Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            seen["loss"] = float(trainer.callback_metrics["loss"])
            norms = torch.stack([p.grad.norm() for p in module.policy.parameters()])
            seen["norm"] = float(norms.norm())
            optimizer.param_groups[0]["params"][0].grad.fill_(math.nan)

    with pytest.raises(ValueError, match=r"failed_step-1\.pt"):
        run(tmp_path, module, Look(), accumulate_grad_batches=2)
    step = load_failed_step(tmp_path / "failed_step-1.pt")
    assert (step.step, [len(batches) for batches in step.batches]) == (0, [2])
    module.zero_grad()
    (line,) = replay(step, module, torch.device("cpu"))
    assert line == f"step 1: loss {seen['loss']:.6g}, gradient norm {seen['norm']:.6g}"

    rows = step.batches[0][0].rows
    rows.advantages[1, 0] = math.nan
    logprobs = rows.logprobs.clone()
    logprobs[0, 1] = -math.inf
    assert not_finite(rows, logprobs) == [
        f"row 0, token 1 (id {int(rows.completion_ids[0, 1])}): log-probability -inf",
        f"row 1, token 0 (id {int(rows.completion_ids[1, 0])}): advantage nan",
    ]


def test_a_file_that_is_no_failed_step_is_refused(tmp_path):
    (tmp_path / "a.pt").write_text("no")
    torch.save({"weights": torch.zeros(2)}, tmp_path / "b.pt")
    for name in ("a.pt", "b.pt"):
        with pytest.raises(ValueError, match=rf"{name} is not a failed step"):
            load_failed_step(tmp_path / name)


def test_the_command_line_computes_a_failed_step_again(tmp_path, capsys, caplog):
    config = tiny_config(tmp_path / "run", "GRPO", max_steps=2)
    config["model"]["init_args"] |= {"max_skipped_steps": 1, "kl_coef": 0.1, "entropy_coef": math.inf}
    file = write_yaml(tmp_path / "config.yaml", config)
    message = refusal("fit", "--config", file)
    saved = tmp_path / "run" / "failed_step-1.pt"
    assert str(saved) in message
    with caplog.at_level("INFO"):
        lit_rl("replay", saved, "--config", file)
    assert "step 1: loss -inf, gradient norm" in caplog.text + capsys.readouterr().out
