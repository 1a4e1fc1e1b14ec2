"""Run folders: what a resumed run goes on with, and how its end is recorded."""

import json
from types import SimpleNamespace

import pytest
import wandb
from lightning.pytorch.loggers import WandbLogger
from tiny_runs import lit_rl, refusal, tiny_config, write_yaml

from lit_rl.cli.run_folder import RunFolder, _again, find_checkpoint, recorded
from lit_rl.training.checkpoint_io import AtomicCheckpointIO
from lit_rl.training.interruption import Interrupted


def save(path, run):
    """A checkpoint as far as `RunFolder` reads it."""
    AtomicCheckpointIO().save_checkpoint({"state_dict": {}, "pytorch-lightning_version": "2.6.0", "run": run}, path)
    return str(path)


def test_a_resumed_run_goes_on_in_its_log_and_its_wandb_run(tmp_path):
    first = RunFolder(str(tmp_path), None)
    [log, wandb] = first.loggers([WandbLogger(project="any")])
    checkpoint: dict = {}
    first.on_save_checkpoint(None, None, checkpoint)
    log.log_metrics({"loss": 1.0}, 0)
    log.save()
    second = RunFolder(str(tmp_path), save(tmp_path / "last.ckpt", checkpoint["run"]))
    [next_log, next_wandb] = second.loggers([WandbLogger(project="any")])
    assert next_log.log_dir == log.log_dir == str(tmp_path / "logs" / "version_0")
    assert next_wandb.version == wandb.version == first.id
    assert next_wandb.save_dir == str(tmp_path), "wandb/ lies in the run's folder"


def test_a_run_that_is_resumed_in_another_folder_is_another_run(tmp_path):
    run = {"id": "abc", "version": 4, "folder": str(tmp_path / "first")}
    other = RunFolder(str(tmp_path / "second"), save(tmp_path / "first" / "last.ckpt", run))
    assert other.id != "abc"
    assert other.version is None


def test_what_the_config_says_about_wandb_stays(tmp_path):
    [_, wandb] = RunFolder(str(tmp_path), None).loggers([WandbLogger(id="mine", save_dir=str(tmp_path / "there"))])
    assert (wandb.version, wandb.save_dir) == ("mine", str(tmp_path / "there"))


def test_a_run_folder_that_is_not_local_is_refused():
    with pytest.raises(ValueError, match=r"s3://bucket/runs is not a local folder; ModelCheckpoint\.dirpath may be remote"):
        find_checkpoint("fit", None, "s3://bucket/runs")


@pytest.mark.parametrize(
    ("error", "reason", "status"),
    [(Interrupted(15), "signal 15", 143), (SystemExit(1), "signal 2", 130), (MemoryError(), "error", None)],
)
def test_a_run_that_did_not_end_by_itself_is_not_finished(error, reason, status, tmp_path):
    trainer = SimpleNamespace(is_global_zero=True, fast_dev_run=False, global_step=3, default_root_dir=str(tmp_path))
    with pytest.raises(type(error) if status is None else SystemExit) as stop, recorded(trainer):
        raise error
    assert json.loads((tmp_path / "run.json").read_text()) == {"finished": False, "step": 3, "reason": reason}
    assert status is None or stop.value.code == status


def test_the_command_that_goes_on_replaces_the_checkpoint():
    assert (
        _again(["fit", "--ckpt_path", "a b.ckpt", "--config", "my run.yaml"])
        == "lit-rl fit --config 'my run.yaml' --ckpt_path last"
    )
    assert _again(["fit", "--ckpt_path=a", "-c", "x"]) == "lit-rl fit -c x --ckpt_path last"


def test_libraries_that_a_run_lacks_get_one_line(tmp_path, monkeypatch):
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # no key in ~/.netrc
    wandb.teardown()  # it keeps the mode of earlier runs of this process
    file = write_yaml(tmp_path / "run.yaml", tiny_config(tmp_path / "out"))
    assert "s3fs" in refusal(
        "fit", "--config", file, "--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.dirpath=s3://b/x"
    )
    assert "WANDB_MODE=offline" in refusal("fit", "--config", file, "--trainer.logger", "WandbLogger")


def test_an_evaluation_without_a_logger_writes_nothing(tmp_path):
    file = write_yaml(tmp_path / "run.yaml", tiny_config(tmp_path / "out"))
    lit_rl("test", "--config", file, "--trainer.logger", "false")
    assert not (tmp_path / "out").exists()
