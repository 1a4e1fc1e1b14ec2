"""Checkpoint files: whole or not at all, and one line about a file that is not one."""

import os
import resource
from pathlib import Path

import pytest
import torch
from conftest import quiet_trainer, tiny_data
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import TorchCheckpointIO
from resumed_runs import run, sft

from lit_rl.cli.configs import last_checkpoint
from lit_rl.training.checkpoint_io import AtomicCheckpointIO, read_checkpoint

WHOLE = {"state_dict": {"weight": torch.zeros(100_000)}, "pytorch-lightning_version": "2.6.0"}


def test_a_trainer_with_our_module_writes_atomically_unless_the_user_chose_a_plugin(tmp_path):
    trainers = [quiet_trainer(tmp_path, max_steps=1), quiet_trainer(tmp_path, max_steps=1, plugins=[Own()])]
    for trainer in trainers:
        trainer.fit(sft(), tiny_data(epoch_size=8))
    assert [type(trainer.strategy.checkpoint_io) for trainer in trainers] == [AtomicCheckpointIO, Own]


class Own(TorchCheckpointIO):
    """Stands for a plugin of the user."""


def test_a_full_disk_leaves_the_old_checkpoint_and_nothing_else(tmp_path):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(WHOLE, path)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # 100,000 float32 numbers need four times as much.
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"last\.ckpt|too large"):
            AtomicCheckpointIO().save_checkpoint(WHOLE, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_temporary_folder_on_another_disk_plays_no_part(tmp_path, monkeypatch):
    missing = tmp_path / "missing"  # whoever writes there fails
    monkeypatch.setenv("TMPDIR", str(missing))
    monkeypatch.setattr("tempfile.tempdir", str(missing))
    AtomicCheckpointIO().save_checkpoint(WHOLE, tmp_path / "last.ckpt")
    assert read_checkpoint(tmp_path / "last.ckpt")["state_dict"]["weight"].shape == (100_000,)


@pytest.mark.parametrize("reader", [read_checkpoint, AtomicCheckpointIO().load_checkpoint])
def test_a_file_that_is_not_a_checkpoint_gets_one_line(reader, tmp_path):
    path = tmp_path / "any.ckpt"
    AtomicCheckpointIO().save_checkpoint(WHOLE, path)
    half = path.read_bytes()[:200_000]
    for content, message in [(b"", "is not a checkpoint"), (b"abc", "is not a checkpoint"), (half, "or was cut off")]:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message) as refused:
            reader(path)
        assert "\n" not in str(refused.value)
    torch.save({"model.embed_tokens.weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match=r"any\.ckpt is a file of torch without a run of Lightning; weights alone are read by"):
        reader(path)


def test_the_newest_whole_checkpoint_is_taken_and_the_broken_one_is_named(tmp_path, capsys):
    for name, age in [("a/last.ckpt", 3), ("b/epoch=0-step=4.ckpt", 2), ("b/last.ckpt", 1)]:
        path = tmp_path / name
        AtomicCheckpointIO().save_checkpoint(WHOLE, path)
        _age(path, age)
    broken = tmp_path / "b/last.ckpt"
    broken.write_bytes(broken.read_bytes()[:1000])
    _age(broken, 1)
    assert last_checkpoint(tmp_path) == tmp_path / "b/epoch=0-step=4.ckpt"
    assert f"{broken} is not a checkpoint, or was cut off; the one before it is taken." in capsys.readouterr().err


def _age(path: Path, minutes: int) -> None:
    os.utime(path, (1_000_000 - 60 * minutes,) * 2)


def test_weights_without_an_optimizer_are_not_resumed(tmp_path):
    saver = ModelCheckpoint(tmp_path, "weights", every_n_train_steps=1, save_weights_only=True)
    run(sft, tmp_path, 32, [saver], max_steps=1)
    with pytest.raises(ValueError, match="weights without the optimizer's state"):
        run(sft, tmp_path, 32, ckpt_path=tmp_path / "weights.ckpt", max_steps=2)
