"""Quiet threads, tiny models, and the smallest run that is still a real one, for all tests.

Lightning and transformers take seconds to import: functions import them, so that tests without a model start at once.
"""

import os

# Set before torch is imported: spinning threads of one process slow another's small products a hundredfold.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")

import pytest
import torch

torch.set_num_threads(1)

TINY = {
    "hidden_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "max_position_embeddings": 128,
}


def tiny_spec(model_type: str = "llama", dtype: str = "float32", config: dict | None = None, **options):
    """A policy from scratch that runs in milliseconds."""
    from lit_rl.models import PolicySpec

    return PolicySpec(
        config={"model_type": model_type, **TINY, **(config or {})}, tokenizer="arithmetic", dtype=dtype, **options
    )


def tiny_data(**options):
    """Sums and differences of one-digit numbers."""
    from lit_rl.datamodules import Arithmetic
    from lit_rl.tasks.infix import Grammar

    settings = {"batch_size": 8, "epoch_size": 64, "val_problems": 16, "test_problems": 16, "eval_batch_size": 16}
    return Arithmetic(Grammar(max_digits=1), **{**settings, **options})


def quiet_trainer(folder, **options):
    """A Trainer without anything that a test did not ask for."""
    import lightning.pytorch as pl

    settings = {
        "accelerator": "cpu",
        "default_root_dir": folder,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "limit_val_batches": 0,
        "log_every_n_steps": 1,
    }
    return pl.Trainer(**{**settings, **options})


@pytest.fixture(autouse=True)
def _same_random_numbers():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def supervised(tmp_path_factory):
    """The folder of a model that SFT taught about two thirds of the miniature, and its accuracies before and after."""
    from miniature import SMALL, adamw, fit

    from lit_rl.algorithms import SFT
    from lit_rl.callbacks import HFExport
    from lit_rl.evaluation import Evaluation
    from lit_rl.models import PolicySpec

    folder = tmp_path_factory.mktemp("sft")
    torch.manual_seed(0)
    module = SFT(
        PolicySpec(config=SMALL, tokenizer="arithmetic"), optimizer=adamw(3e-3), evaluation=Evaluation(max_new_tokens=6)
    )
    before, after = fit(module, folder, 160, 64, HFExport())
    return folder / "export", before, after
