"""Checkpoint files: written beside their target and renamed, and refused in one line if they cannot be read."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.types import _PATH

from lit_rl.files import new_file

_UNREADABLE = (RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile, KeyError, AttributeError)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files, written whole or not at all on local disks.

    Lightning writes to the folder for temporary files and copies from there, if that is on another file system: a kill or a
    full disk in the copy leaves half a checkpoint in the place of the last one.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None) -> None:
        # A store of objects shows a new object only when all of it is there.
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        try:
            with new_file(Path(path)) as new, new.open("wb") as file:
                torch.save(checkpoint, file)
                # On the disk before it takes the name: a machine that loses power may keep the rename and lose the data.
                file.flush()
                os.fsync(file.fileno())
        except RuntimeError as error:
            # torch's own error when writing failed is about its file format.
            reason = error.__context__ if isinstance(error.__context__, OSError) else error
            raise OSError(f"cannot write the checkpoint {path}: {_first_line(reason)}; the earlier one is kept.") from error

    def load_checkpoint(
        self, path: _PATH, map_location: Callable | None = lambda storage, loc: storage, weights_only: bool | None = None
    ) -> dict[str, Any]:
        with _one_line(path):
            return _checked(path, super().load_checkpoint(path, map_location, weights_only))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Contents of a checkpoint file; its tensors stay on the disk until they are used.

    Raises:
        ValueError: if it is not a checkpoint, in one line.
    """
    with _one_line(path):
        return _checked(path, torch.load(path, map_location="cpu", mmap=True, weights_only=True))


@contextmanager
def _one_line(path: _PATH) -> Iterator[None]:
    # A file that is no zip archive is taken for torch's old format, whose reader fails in many ways.
    if Path(path).is_file() and not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is not a checkpoint, or was cut off.")
    try:
        yield
    except _UNREADABLE as error:
        raise ValueError(f"{path} is not a checkpoint, or was cut off: {_first_line(error)}") from error


def _checked(path: _PATH, content: Any) -> dict[str, Any]:
    """Refuse a file of torch that holds no run."""
    if not isinstance(content, dict) or not {"state_dict", "pytorch-lightning_version"} <= content.keys():
        raise ValueError(
            f"{path} is a file of torch without a run of Lightning; "
            "weights alone are read by model.policy.pretrained, from a Hugging Face folder."
        )
    return content


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
