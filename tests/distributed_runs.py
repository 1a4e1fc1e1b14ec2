"""Runs of a few optimizer steps that one and two processes must agree on; started by `training/test_distributed.py`.

python distributed_runs.py FILE ordinary|all
"""

import functools
import sys
from pathlib import Path

import arm_runs
import torch
from conftest import quiet_trainer, tiny_data, tiny_spec
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import load_file

from lit_rl.algorithms import GRPO, PPO, SFT
from lit_rl.callbacks import Bandit, HFExport
from lit_rl.evaluation import Evaluation
from lit_rl.hooks import RolloutCallback
from lit_rl.models import LoRASpec
from lit_rl.models.export import whole_weights
from lit_rl.objectives import Correction, Objective, Overlong
from lit_rl.rewards import Guarded, Reward
from lit_rl.sampling import Sampler
from lit_rl.training import FSDP2Strategy

ADAM = functools.partial(torch.optim.AdamW, lr=1e-3)
SHORT = Evaluation(max_new_tokens=4)


class Length(Reward):
    """A reward that differs within most groups."""

    def score(self, rollouts):
        return torch.tensor([text.count("<") + len(text) % 5 for text in rollouts.texts], dtype=torch.float32)


class Fragile(Length):
    """Fails on some completions, on one rank more than on the other, and once in a while on a whole group."""

    alone = True

    def score(self, rollouts):
        if any(len(text) % 3 == 0 for text in rollouts.texts):
            raise ValueError("a third of all texts")
        return super().score(rollouts)


def grpo(dtype="float32", **options):
    settings = {"group_size": 4, "minibatches": 2, "kl_coef": 0.1, "advantage_scale": "batch", "optimizer": ADAM}
    settings |= {"sampler": Sampler(max_new_tokens=6), "evaluation": SHORT, "reward": Length(), **options}
    return GRPO(settings.pop("policy", None) or tiny_spec(dtype=dtype), **settings)


def everything(dtype="float32", **options):
    """GRPO with all options that take counts, means or a threshold over all ranks."""
    objective = Objective(kl_in="reward", top_entropy=0.5, correction=Correction("truncate"))
    options = {"baseline": "batch", "lm_coef": 0.1, "overlong": Overlong("mask"), "sampler": Sampler(24), **options}
    return grpo(dtype, objective=objective, **options)


def ppo(dtype="float32", **options):
    """PPO with all options that count or average over all ranks."""
    settings = {"policy": tiny_spec(dtype=dtype), "sampler": Sampler(24), "optimizer": ADAM, "evaluation": SHORT}
    settings |= {"reward": Length(), "epochs": 2, "minibatches": 1, "kl_coef": 0.1, "overlong": Overlong("mask")}
    return PPO(**{**settings, **options})


def sft(dtype="float32"):
    return SFT(tiny_spec(dtype=dtype), optimizer=ADAM, evaluation=SHORT)


class Spoiled(SFT):
    """A loss that is not a number in the second step, on the last rank."""

    def batch_loss(self, batch):
        loss = super().batch_loss(batch)
        spoiled = self.trainer.global_step == 1 and self.trainer.global_rank == self.trainer.world_size - 1
        return loss._replace(loss=loss.loss * float("nan")) if spoiled else loss


RUNS = {
    "grpo": (grpo, {"max_steps": 4}),
    "grpo without a reference": (lambda: grpo(kl_coef=0.0, advantage_scale="group"), {"max_steps": 4}),
    "grpo lora": (lambda: grpo(policy=tiny_spec(lora=LoRASpec(r=4))), {"max_steps": 4}),
    "grpo nf4": (lambda: grpo(policy=tiny_spec(quantization="nf4", lora=LoRASpec(r=4))), {"max_steps": 4}),
    "grpo int8": (lambda: grpo(policy=tiny_spec(quantization="int8", lora=LoRASpec(r=4))), {"max_steps": 4}),
    # Prompts enter at different times on the two ranks, which must run the same number of forwards all the same.
    "grpo gathering layers": (
        lambda: grpo(policy=tiny_spec(unshard="layer"), sampler=Sampler(24, max_rows=4)),
        {"max_steps": 4},
    ),
    "grpo with everything": (everything, {"max_steps": 4}),
    "ppo ending rollouts early": (lambda: ppo(epochs=4, target_kl=3e-4), {"max_steps": 6, "val_check_interval": 8}),
    "ppo with a critic warming up": (lambda: ppo(critic_warmup=3), {"max_steps": 4}),
    "ppo with a critic of its own": (lambda: ppo(critic=tiny_spec(), critic_lr=3e-3), {"max_steps": 4}),
    "sft": (sft, {"max_steps": 4}),
    "sft with a failed step": (lambda: Spoiled(tiny_spec(), optimizer=ADAM, evaluation=SHORT), {"max_steps": 4}),
    "gradient of grpo": (lambda: grpo("float64", minibatches=1), {"max_steps": 1}),
    "gradient of grpo with everything": (lambda: everything("float64", minibatches=1), {"max_steps": 1}),
    "gradient of grpo with failing rewards": (
        lambda: grpo("float64", minibatches=1, reward=Guarded(Fragile())),
        {"max_steps": 1},
    ),
    "gradient of ppo": (lambda: ppo("float64", epochs=1), {"max_steps": 1}),
    "gradient of sft": (lambda: sft("float64"), {"max_steps": 1}),
}


RUNS["grpo with arms"] = (
    lambda: arm_runs.grpo(epochs=1, optimizer=functools.partial(torch.optim.SGD, lr=0.3)),
    {"max_steps": 4, "data": arm_runs.stories, "with": lambda: [Bandit(arms_per_question=2)]},
)
RUNS["grpo compiled"] = (lambda: grpo(policy=tiny_spec(compile=True)), {"max_steps": 4})

RESUMED = ["grpo", "grpo nf4", "ppo with a critic warming up", "ppo with a critic of its own"]
"""Runs that are also stopped after two steps and resumed."""

ORDINARY = {
    "ddp": [
        "ppo ending rollouts early",
        "ppo with a critic warming up",
        "sft with a failed step",
        "gradient of grpo with everything",
        "gradient of grpo with failing rewards",
    ],
    "fsdp2": [
        "grpo nf4",
        "grpo gathering layers",
        "grpo with everything",
        "grpo with arms",
        "gradient of ppo",
    ],
}
"""Runs of an ordinary session of tests: each kind under the strategy where more can go wrong."""

SETS = {"ordinary": ORDINARY, "all": {strategy: list(RUNS) for strategy in ORDINARY}}
"""Runs by strategy."""


class Keep(RolloutCallback):
    """Gradients before clipping, sampled texts, numbers of their tokens and of rollouts, and metrics of the last step."""

    def __init__(self):
        self.texts, self.gradients, self.metrics = {}, {}, {}
        self.tokens = self.rollouts = 0

    def on_rollout_end(self, trainer, module, rollouts):
        prompts = rollouts.prompt.tolist()
        for place, number in enumerate(rollouts.prompts.numbers):
            texts = [text for text, prompt in zip(rollouts.texts, prompts, strict=True) if prompt == place]
            self.texts.setdefault(number, []).append(texts)
        self.tokens += int(rollouts.lengths.sum())
        self.rollouts += 1
        return rollouts

    def on_before_optimizer_step(self, trainer, module, optimizer):
        if trainer.global_step == 0:
            self.gradients = {
                name: (p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad).clone()
                for name, p in module.policy.named_parameters()
                if p.grad is not None
            }

    def on_train_batch_end(self, trainer, *_):
        skip = ("time/", "perf/")
        self.metrics = {k: float(v) for k, v in trainer.callback_metrics.items() if not k.startswith(skip)}


def fit(name, strategy="auto", devices=1, accumulate=2, callbacks=(), ckpt_path=None, **limits):
    """Outcome of a run, over all ranks."""
    build, options = RUNS[name]
    data, own = options.get("data", tiny_data), options.get("with", list)
    options = {key: value for key, value in options.items() if key not in ("data", "with")}
    torch.manual_seed(1)
    keep = Keep()
    trainer = quiet_trainer(
        Path("."),
        strategy=FSDP2Strategy() if strategy == "fsdp2" else strategy,
        devices=devices,
        gradient_clip_val=1.0,
        accumulate_grad_batches=accumulate,
        callbacks=[keep, *own(), *callbacks],
        enable_checkpointing=bool(callbacks),
        check_val_every_n_epoch=None,
        limit_val_batches=1.0,
        **{"val_check_interval": 4 if options["max_steps"] > 1 else accumulate, **options, **limits},
    )
    module = build()
    with torch.compiler.set_stance("default", force_backend="aot_eager"):  # traced as ever; generating code takes long
        trainer.fit(module, data(), ckpt_path=ckpt_path)
    texts, tokens = [keep.texts], [keep.tokens]
    if trainer.world_size > 1:
        texts, tokens = [None] * trainer.world_size, [None] * trainer.world_size
        torch.distributed.all_gather_object(texts, keep.texts)
        torch.distributed.all_gather_object(tokens, keep.tokens)
    together = {number: lines for part in texts for number, lines in part.items()}
    return {
        "weights": {
            f"{kind} {part} {name}": value
            for kind, policy in module.exports().items()
            for part, weights in whole_weights(policy)._asdict().items()
            for name, value in weights.items()
        },
        "gradients": keep.gradients,
        "texts": together,
        "tokens": tokens,
        "metrics": keep.metrics,
        "rollouts": keep.rollouts,
    }


def two_processes(name, strategy, folder):
    """Outcome of a run on two processes; a run of `RESUMED` also goes on from its checkpoint after two steps."""
    if name not in RESUMED:
        return fit(name, strategy, 2)
    saver = ModelCheckpoint(folder, "{step}", every_n_train_steps=2, save_top_k=-1, save_on_train_epoch_end=False)
    outcome = fit(name, strategy, 2, callbacks=[saver])
    resumed = fit(name, strategy, 2, ckpt_path=folder / "step=2.ckpt")
    return outcome | {"resumed weights": resumed["weights"]}


def exported(folder, strategy="auto", devices=1, target="export"):
    """Weights of a merged adapter's export, which rank 0 compares with the policy of all ranks."""
    torch.manual_seed(1)
    strategy = FSDP2Strategy() if strategy == "fsdp2" else strategy
    options = {"devices": devices, "gradient_clip_val": 1.0, "accumulate_grad_batches": 2, "max_steps": 2}
    trainer = quiet_trainer(folder, strategy=strategy, callbacks=[HFExport(target)], **options)
    trainer.fit(grpo(policy=tiny_spec(lora=LoRASpec(r=4))), tiny_data())
    return load_file(folder / target / "model.safetensors")


def errors_of_an_export(folder, strategy):
    """The error of each rank, if rank 0 cannot write."""
    if torch.distributed.get_rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "a_file").write_text("")
    errors = [None] * 2
    try:
        exported(folder, strategy, 2, target="a_file/export")
    except ValueError as error:
        torch.distributed.all_gather_object(errors, str(error))
    return errors


if __name__ == "__main__":
    file, chosen = Path(sys.argv[1]), SETS[sys.argv[2]]
    results = {
        strategy: {name: two_processes(name, strategy, file.parent / strategy / name) for name in names}
        for strategy, names in chosen.items()
    }
    exports = {
        strategy: {
            "exported": exported(file.parent / "exported" / strategy, strategy, 2),
            "errors": errors_of_an_export(file.parent / "refused" / strategy, strategy),
        }
        for strategy in (chosen if sys.argv[2] == "all" else ["fsdp2"])
    }
    if torch.distributed.get_rank() == 0:
        torch.save({"runs": results, "exports": exports}, file)
    # A process whose peer has left first may be aborted on its way out.
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
