"""Answers of a policy on disk, which a comparison that is started again keeps if nothing has changed since."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from lit_rl.cli.lightning_cli import flatten
from lit_rl.evaluation.questions import QuestionResult
from lit_rl.files import write_text
from lit_rl.models.sources import source_folders
from lit_rl.models.spec import PolicySpec

NOT_HASHED = ("config", "folder", "trainer.default_root_dir", "trainer.enable_progress_bar")
"""Options that change no answer."""


class KeptAnswers:
    """File of a policy's answers, with the hash of all that they depend on.

    Args:
        file: a JSON file.
        config: all options, with the source of the policy as ``model.policy.pretrained``.
    """

    def __init__(self, file: Path, config: Namespace) -> None:
        self.file = file
        options = {key: value for key, value in flatten(config.as_dict()).items() if not key.startswith(NOT_HASHED)}
        data = [Path(value) for key, value in options.items() if key.startswith("data.") and isinstance(value, str | Path)]
        folders = source_folders(PolicySpec(pretrained=config.model.init_args.policy.pretrained))
        content = [version("lit-rl"), options, [_files(path) for path in (*folders, *data)]]
        self.fingerprint = hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()[:16]

    def read(self) -> list[QuestionResult] | None:
        """The answers; None if there are none, or they are of other options, data or weights."""
        if not self.file.is_file():
            return None
        try:
            content = json.loads(self.file.read_text(encoding="utf-8"))
            results = [QuestionResult(**row) for row in content["results"]]
            known = content["fingerprint"]
        except (ValueError, TypeError, LookupError) as error:
            raise ValueError(f"{self.file}: this is not what lit-rl has written: {error}; remove it.") from error
        return results if known == self.fingerprint else None

    def write(self, results: list[QuestionResult]) -> None:
        """Replace the file."""
        content = {"fingerprint": self.fingerprint, "results": [asdict(each) for each in results]}
        write_text(self.file, json.dumps(content, indent=1))


def _files(path: Path) -> list[Any]:
    """Names, sizes and times of change of a file, or of the files in a folder: a weight file is too large to be hashed."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]
