"""Folders that a policy is read from, and fingerprints of frozen weights: what a run starts from must stay as it is."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from torch import Tensor, nn

from lit_rl.models.spec import PolicySpec

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def source_folders(spec: PolicySpec) -> list[Path]:
    """Real paths of the local folders that a spec's model and tokenizer are read from, bases of adapters among them."""
    folders = [folder for name in (spec.pretrained, spec.tokenizer) if (folder := _local(name)) is not None]
    # An adapter names its base, which may be an adapter's merged base again; a circle ends at a folder that is known.
    for folder in folders:
        base = _local(adapter_base(folder))
        if base is not None and base not in folders:
            folders.append(base)
    return folders


def adapter_base(folder: Path) -> str | None:
    """Name of the base model of a peft adapter; None if the folder does not hold an adapter."""
    file = folder / "adapter_config.json"
    return json.loads(file.read_text(encoding="utf-8"))["base_model_name_or_path"] if file.is_file() else None


def fingerprint(module: nn.Module) -> str:
    """Hash of all weights, from integer sums that depend neither on the device nor on the order of summation."""
    digest = hashlib.sha256()
    for name, weight in module.named_parameters():
        digest.update(f"{name} {tuple(weight.shape)} {_bit_sum(weight.detach())}\n".encode())
    return digest.hexdigest()[:24]


def _bit_sum(weight: Tensor) -> int:
    return int(weight.contiguous().view(_INTEGERS[weight.element_size()]).sum(dtype=torch.int64))


def _local(name: str | None) -> Path | None:
    """Real path of a name if it is a folder; names of the hub and of built-in tokenizers are not."""
    path = Path(name or "").expanduser()
    return path.resolve() if name and path.is_dir() else None
