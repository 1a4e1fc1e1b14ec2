"""The learning miniature: the larger or smaller of two numbers, for a model that trains in seconds."""

import functools

import torch
from conftest import quiet_trainer

from lit_rl.callbacks import Improvement
from lit_rl.datamodules import Arithmetic
from lit_rl.tasks.infix import Grammar

SMALL = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}


def fit(module, folder, steps, batch_size, *callbacks, data=Arithmetic):
    """Train on the larger or smaller of two numbers; accuracy before and after on 400 held-out problems."""
    problems = data(Grammar(["max", "min"], signed=False), batch_size=batch_size, val_problems=400, test_problems=1)
    return improvement(module, problems, folder, steps, *callbacks)


def improvement(module, data, folder, steps, *callbacks):
    """Accuracy on held-out problems before and after training."""
    measure = Improvement()
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
