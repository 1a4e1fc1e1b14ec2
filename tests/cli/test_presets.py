"""Every preset of configs/objective learns: 40 steps raise the reward, and with shuffled rewards they do not."""

import csv

import pytest
from test_configs import FILES
from tiny_runs import lit_rl, write_yaml

PRESETS = [name for name in FILES if name.startswith("objective/")]
MINIATURE = "objective/dapo"  # in the ordinary test run; the others in `make learn`
STEPS = 40


def marked(name):
    return pytest.param(name, marks=pytest.mark.learning if name == MINIATURE else pytest.mark.long)


def rewards(folder, start, preset, *flags):
    """The mean true reward of every step's rollout, read from the log."""
    config = {
        "trainer": {
            "accelerator": "cpu",
            "max_steps": STEPS,
            "limit_val_batches": 0,
            "num_sanity_val_steps": 0,
            "gradient_clip_val": 1.0,
            "default_root_dir": str(folder),
            "enable_progress_bar": False,
            "enable_model_summary": False,
        },
        "model": {
            "class_path": "GRPO",
            "init_args": {
                "policy": {"pretrained": str(start)},
                "sampler": {"max_new_tokens": 6},
                "optimizer": {
                    "class_path": "torch.optim.AdamW",
                    "init_args": {"lr": 1e-3, "betas": [0.9, 0.99], "weight_decay": 0.0},
                },
                "schedule": {"name": "constant_with_warmup", "warmup_steps": 10},
            },
        },
        "data": {
            "class_path": "Arithmetic",
            "init_args": {"grammar": {"operators": ["max", "min"], "signed": False}, "batch_size": 64},
        },
    }
    lit_rl("fit", "--config", write_yaml(folder / "base.yaml", config), "--config", preset, *flags)
    with next(folder.glob("logs/version_*/metrics.csv")).open(encoding="utf-8") as file:
        return [float(row["rewards/correct/mean"]) for row in csv.DictReader(file) if row["rewards/correct/mean"]]


def gain(values):
    """Mean of the last 10 steps over that of the first 5, 2,560 completions and more each."""
    assert len(values) == STEPS
    return sum(values[-10:]) / 10 - sum(values[:5]) / 5


@pytest.mark.parametrize("preset", [marked(name) for name in PRESETS])
def test_a_preset_raises_the_reward(supervised, tmp_path, preset):
    values = rewards(tmp_path, supervised[0], preset)
    print(f"{preset}: {sum(values[:5]) / 5:.3f} {gain(values):+.3f}")
    assert gain(values) > 0.08


@pytest.mark.long
@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_with_shuffled_rewards_does_not(supervised, tmp_path, preset):
    values = rewards(tmp_path, supervised[0], preset, "--trainer.callbacks+", "ShuffledRewards")
    print(f"{preset}, shuffled: {sum(values[:5]) / 5:.3f} {gain(values):+.3f}")
    assert gain(values) < 0.02
