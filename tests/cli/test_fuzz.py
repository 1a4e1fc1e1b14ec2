"""Odd inputs to the command line: each ends well or with one line, never with a traceback or a control character."""

import collections
import signal
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
from fuzz_inputs import Inputs

from lit_rl.cli import comparison, lightning_cli, pipeline
from lit_rl.cli.main import main

SHORT, LONG = 60, 5000
SECONDS = 60  # for one input: it hangs if it takes longer
KINDS = ("command_line", "command_line", "config", "data", "pipeline", "comparison")


class BuiltAlone(lightning_cli.CLI):
    """Builds the Trainer, the model and the data, reads the data, and runs nothing."""

    def _run_subcommand(self, subcommand: str) -> None:
        trainer = self.trainer
        trainer.strategy._lightning_module, trainer.datamodule, self.datamodule.trainer = self.model, self.datamodule, trainer
        self.model.trainer = trainer
        trainer.state.fn, trainer.training = pl.trainer.states.TrainerFn.FITTING, True
        self.datamodule.prepare_data()
        self.datamodule.setup("fit")


def fault(args: list[str]) -> str:
    """What is wrong with the end of a command line; empty if nothing is."""

    def hangs(signum, frame):
        raise AssertionError(f"it takes longer than {SECONDS} s")

    signal.signal(signal.SIGALRM, hangs)
    signal.alarm(SECONDS)
    try:
        main(args)
    except SystemExit as stop:
        line = stop.code
    except BaseException as error:
        frame = error.__traceback__
        while frame.tb_next:
            frame = frame.tb_next
        return f"{type(error).__name__} at {frame.tb_frame.f_code.co_filename}:{frame.tb_lineno}: {str(error)[:300]}"
    else:
        return ""
    finally:
        signal.alarm(0)
    if line in (None, 0):
        return ""
    if not isinstance(line, str):
        return f"exit status {line!r}"
    if not line.startswith("lit-rl: ") or not line.isprintable() or len(line) > 2100:
        return f"not one plain line: {line[:300]!r}"
    return ""


def faults(count: int, seed: int, folder: Path, monkeypatch, capsys) -> dict[str, int]:
    """Faults of ``count`` inputs, with the number of the first input that has each."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["lit-rl"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(lightning_cli, "CLI", BuiltAlone)
    monkeypatch.setattr(comparison.CompareCLI, "_run_subcommand", lambda self, subcommand: None)
    monkeypatch.setattr(pipeline, "_run", lambda stages, root: 0)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found: dict[str, int] = {}
    kinds = collections.Counter()
    for number in range(count):
        # Its own seed for each input, so that one of them can be drawn alone.
        inputs = Inputs(seed * 1_000_000 + number, folder)
        kind = KINDS[number % len(KINDS)]
        kinds[kind] += 1
        text = fault(getattr(inputs, kind)())
        out = capsys.readouterr()
        if not text and any(not (c.isprintable() or c == "\n" or c == "\t") for c in out.err):
            text = f"control characters on stderr: {out.err[-300:]!r}"
        if text:
            found.setdefault(text, number)
    assert sum(kinds.values()) == count
    return found


def test_odd_inputs_end_with_one_line(tmp_path, monkeypatch, capsys):
    assert faults(SHORT, 0, tmp_path, monkeypatch, capsys) == {}


@pytest.mark.long
def test_many_odd_inputs_end_with_one_line(tmp_path, monkeypatch, capsys):
    assert faults(LONG, 1, tmp_path, monkeypatch, capsys) == {}
