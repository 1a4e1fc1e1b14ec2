"""Metrics of a run as CSV, which a resumed run goes on with: no row is lost and none is there twice."""

from __future__ import annotations

import csv
import os
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only

from lit_rl.files import new_file


class MetricsLog(CSVLogger):
    """CSV log that keeps the rows of an existing file; Lightning's begins by deleting them.

    Takes the arguments of Lightning's ``CSVLogger``; with ``version`` of an earlier run it goes on with the file of the run.
    """

    @property
    @rank_zero_experiment
    def experiment(self) -> _Rows:
        if not isinstance(self._experiment, _Rows):
            self._experiment = _Rows(self.log_dir)
        return self._experiment

    def rows(self) -> int:
        """Rows of the file, all of which are on the disk when this returns; 0 on other ranks than the first."""
        return self._on_disk() or 0

    @rank_zero_only
    def _on_disk(self) -> int:
        self.save()
        return self.experiment.sync()

    @rank_zero_only
    def cut(self, rows: int) -> None:
        """Drop all rows after the first ``rows``."""
        self.experiment.cut(rows)


class _Rows(ExperimentWriter):
    def __init__(self, log_dir: str) -> None:
        super().__init__(log_dir)
        self._path = Path(self.metrics_file_path)
        header = _lines(self._path)[0] if self._path.is_file() and self._path.stat().st_size else ""
        # A process that is killed in its first write leaves a file without a whole header.
        if not header.endswith("\n"):
            self._path.unlink(missing_ok=True)
        self.metrics_keys = header.split()[0].split(",") if self._path.is_file() else []

    def _check_log_dir_exists(self) -> None:
        """Lightning deletes the file of an earlier run here."""

    def sync(self) -> int:
        """Rows of the file, after it is on the disk."""
        if not self._path.is_file():
            return 0
        with self._path.open("rb") as file:
            os.fsync(file.fileno())
        return len(_lines(self._path)) - 1

    def cut(self, rows: int) -> None:
        # Numbers hold no line breaks, so a row is a line; the header is one more.
        keep_lines(self._path, rows + 1)

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        with self._path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        # Lightning writes over the file: a process that is killed in between leaves a part of it.
        with new_file(self._path) as new, new.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=fieldnames)
            writer.writeheader()
            writer.writerows(rows)


def keep_lines(path: Path, count: int) -> None:
    """Drop what follows the first ``count`` lines of a text file, if there is one."""
    if path.is_file() and len(lines := _lines(path)) > count:
        with new_file(path) as new:
            new.write_text("".join(lines[:count]), encoding="utf-8", newline="")


def _lines(path: Path) -> list[str]:
    # Line ends as they are, so that what is written back equals what was there.
    with path.open(encoding="utf-8", newline="") as file:
        return file.readlines()
