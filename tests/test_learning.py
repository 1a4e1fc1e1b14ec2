"""Each algorithm learns: a curve that must rise, beside a control that must not. At most 60 s each on one thread."""

import functools

import pytest
import torch
from conftest import quiet_trainer

from lit_rl.algorithms import GRPO, SFT
from lit_rl.callbacks import HFExport, Improvement, ShuffledRewards
from lit_rl.datamodules import Arithmetic
from lit_rl.evaluation import Evaluation
from lit_rl.loading import PolicySpec
from lit_rl.sampling.sampler import Sampler
from lit_rl.schedule import Schedule
from lit_rl.tasks.infix import Grammar

pytestmark = pytest.mark.learning

SMALL = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}


def fit(module, folder, steps, batch_size, *callbacks):
    """Train on the larger or smaller of two numbers; accuracy before and after on 400 held-out problems."""
    measure = Improvement()
    data = Arithmetic(Grammar(["max", "min"], signed=False), batch_size=batch_size, val_problems=400, test_problems=1)
    trainer = quiet_trainer(
        folder,
        max_steps=steps,
        gradient_clip_val=1.0,
        num_sanity_val_steps=-1,
        limit_val_batches=1.0,
        val_check_interval=steps,
        check_val_every_n_epoch=None,
        callbacks=[measure, *callbacks],
    )
    trainer.fit(module, data)
    return measure.before, measure.after


def adamw(lr):
    return functools.partial(torch.optim.AdamW, lr=lr, weight_decay=0.0)


@pytest.fixture(scope="module")
def supervised(tmp_path_factory):
    """The folder of a model that SFT taught the half of it, and its accuracies."""
    folder = tmp_path_factory.mktemp("sft")
    module = SFT(PolicySpec(config=SMALL, tokenizer="arithmetic"), adamw(3e-3), evaluation=Evaluation(max_new_tokens=6))
    before, after = fit(module, folder, 110, 64, HFExport())
    return folder / "export", before, after


def grpo(start, folder, *callbacks):
    module = GRPO(
        PolicySpec(pretrained=str(start)),
        Sampler(max_new_tokens=6),
        optimizer=functools.partial(torch.optim.AdamW, lr=2e-3, betas=(0.9, 0.99), weight_decay=0.0),
        schedule=Schedule("cosine", warmup_steps=10),
        evaluation=Evaluation(max_new_tokens=6),
        group_size=8,
        negative_weight=0.1,
    )
    return fit(module, folder, 200, 64, *callbacks)


def test_sft_learns_from_nothing(supervised):
    _, before, after = supervised
    assert before["high"] < 0.05
    assert 0.3 < after["value"] < 0.6


def test_grpo_raises_accuracy_by_its_reward_alone(supervised, tmp_path):
    before, after = grpo(supervised[0], tmp_path)
    assert before["value"] == supervised[2]["value"], "the export is the model"
    assert after["value"] > before["value"] + 0.15


def test_grpo_with_shuffled_rewards_does_not_improve(supervised, tmp_path):
    before, after = grpo(supervised[0], tmp_path, ShuffledRewards())
    assert after["value"] <= before["high"]
