"""``fit --dry-run``: it finds what a run would find before its first step, and leaves nothing."""

import logging

import pytest
from tiny_runs import lit_rl, refusal, tiny_config, write_yaml

SAVE_LAST = {"class_path": "ModelCheckpoint", "init_args": {"save_last": True, "every_n_train_steps": 1}}


@pytest.fixture
def config(tmp_path):
    callbacks = (SAVE_LAST, "HFExport", "SampleTable", "Improvement")
    return write_yaml(tmp_path / "grpo.yaml", tiny_config(tmp_path / "deep" / "run", "GRPO", callbacks=callbacks))


def files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_a_dry_run_leaves_nothing(config, tmp_path, caplog):
    logging.getLogger("lightning.pytorch").addHandler(caplog.handler)
    with caplog.at_level(logging.INFO, "lightning.pytorch.utilities.rank_zero"):
        lit_rl("fit", "--dry-run", "--config", config)
    logging.getLogger("lightning.pytorch").removeHandler(caplog.handler)
    assert list(tmp_path.iterdir()) == [tmp_path / "grpo.yaml"]
    assert "Dry run of GRPO: no fault found." in caplog.text
    assert "16 training and 8 validation problems, 2 steps. Nothing was written." in caplog.text


def test_a_dry_run_of_a_resumed_run_changes_no_file(config, tmp_path):
    lit_rl("fit", "--config", config)
    before = files(tmp_path)
    lit_rl("fit", "--dry-run", "--config", config, "--trainer.max_steps", 4, "--ckpt_path", "last")
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        # The module's own hook, which comes last.
        (
            ["--trainer.accumulate_grad_batches", 2, "--trainer.val_check_interval", 1],
            "trainer.val_check_interval comes to 1 micro",
        ),
        (["--trainer.callbacks+=DynamicSampling", "--model", "SFT"], "DynamicSampling"),
        (["--trainer.num_sanity_val_steps", 0], "Improvement needs a baseline"),
    ],
)
def test_a_dry_run_finds_what_hooks_refuse(config, tmp_path, flags, message):
    assert message in refusal("fit", "--dry-run", "--config", config, *flags)
    assert not list((tmp_path / "deep").rglob("*")) or not (tmp_path / "deep").exists()


def test_a_dry_run_goes_with_fit(config):
    assert refusal("test", "--dry-run", "--config", config) == "lit-rl: --dry-run goes with fit: other commands take no step."
