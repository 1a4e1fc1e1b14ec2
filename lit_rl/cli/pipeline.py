"""Several runs in a row by one command: ``lit-rl pipeline FILE [--folder DIR]``.

A stage is ``fit``, ``validate``, ``test`` or ``predict`` with configs and overrides, and runs in a process of its own. A stage
takes results of an earlier stage by name: ``${stages.sft.export}``; ``folder``, ``checkpoint`` and ``duration`` are there too.
``compare`` takes ``policies`` by name, and leaves a ``report``; ``export`` merges the adapter that ``source`` names.
A finished stage is skipped when the pipeline is started again. An interrupted stage goes on from its last checkpoint, a
collection of rollouts after its last question, a comparison after its last policy. A stage whose config or input changed runs
anew, and its earlier run is kept. ``report.json``, ``table.md`` and ``curve.png`` show all stages.

    name: quickstart
    folder: runs/quickstart
    stages:
      sft: {run: fit, config: quickstart_sft}
      grpo:
        run: fit
        config: [quickstart_grpo]
        set: {model.policy.pretrained: "${stages.sft.export}"}
      compared:
        run: compare
        policies: {sft: "${stages.sft.export}", grpo: "${stages.grpo.export}"}
        config: quickstart_grpo
        set: {split: test, limit: 500}
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from lit_rl.cli.configs import last_checkpoint, resolve_configs
from lit_rl.cli.errors import explain
from lit_rl.cli.lock import locked
from lit_rl.cli.pipeline_file import load_stages
from lit_rl.cli.pipeline_report import stage_report, summary
from lit_rl.cli.stage_check import quick_check
from lit_rl.cli.stage_process import PASSED_ON, run_process
from lit_rl.cli.stages import Stage
from lit_rl.files import write_text
from lit_rl.text.terminal import printable

INTERRUPTED = [128 + signum for signum in PASSED_ON]
"""Exit statuses of a run that a signal has ended."""


def say(text: str, stage: str = "") -> None:
    """Print a line that begins with the name of a stage, in bold."""
    # As a Text: rich would take brackets in paths and values for markup.
    Console(soft_wrap=True, highlight=False).print(Text.assemble((stage, "bold"), printable(text, keep="\n")))


def check_stages(stages: list[Stage]) -> None:
    """Refuse a wrong command line of any stage before the first stage runs.

    Raises:
        ValueError: with the name of the stage.
    """
    waiting = []
    for number, stage in enumerate(stages):
        with _named(stage):
            check = quick_check(resolve_configs(stage.command(stages[:number])))
            if not stage.finished(stages[:number]):
                waiting.append((stage, check))
    # These take seconds: after the quick check of all stages.
    for stage, check in waiting:
        with _named(stage):
            check()


@contextmanager
def _named(stage: Stage) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"stage {stage.name!r}: {explain(error)}") from error


def run_stage(stage: Stage, earlier: list[Stage]) -> int:
    """Run a stage, unless it is finished.

    Returns:
        Exit status of the signal that interrupted it; 0 if it is finished.

    Raises:
        ValueError: if it failed.
    """
    if stage.finished(earlier):
        say(" is finished; skipped", stage.name)
        return 0
    command, fingerprint, status = stage.command(earlier), stage.fingerprint(earlier), stage.status
    if status and status.get("fingerprint") != fingerprint:
        say(f" has changed; its earlier run is kept in {_set_aside(stage.folder)}", stage.name)
        status = {}
    # Without a status the folder is not this pipeline's, and its checkpoint may be of another run.
    checkpoint = last_checkpoint(stage.folder) if status and stage.run == "fit" else None
    resume = ["--ckpt_path", str(checkpoint)] if checkpoint else []
    say(f": lit-rl {shlex.join(command + resume)}", stage.name)
    # Written before the run: if the run dies, the next start finds by the fingerprint whether it may resume.
    status = {"fingerprint": fingerprint, "command": command, "finished": False}
    write_text(stage.folder / "stage.json", json.dumps(status, indent=2))
    start = time.perf_counter()
    code = run_process(command + resume)
    # A run that was stopped may end without an error, and an evaluation that ends without one is finished.
    finished = stage.end.get("finished") is True if stage.run == "fit" else code == 0
    if finished:
        status |= {"finished": True, "process_seconds": round(time.perf_counter() - start, 1)}
        write_text(stage.folder / "stage.json", json.dumps(status, indent=2))
    if code in INTERRUPTED:
        return code
    if code:
        raise ValueError(f"stage {stage.name!r} failed with exit status {code}; mend it and start the pipeline again.")
    if not finished:
        reason = stage.end.get("reason", "it left no run.json")
        raise ValueError(f"stage {stage.name!r} ended before its last step ({reason}); start the pipeline again to go on.")
    return 0


def _set_aside(folder: Path) -> Path:
    """Rename the folder of an earlier run to the first free ``name.1``, ``name.2``, ..."""
    # Refused if a process that outlived an earlier pipeline still writes there.
    with locked(folder):
        pass
    number = 1
    while (aside := folder.with_name(f"{folder.name}.{number}")).exists():
        number += 1
    return folder.rename(aside)


def main(args: list[str]) -> None:
    """``lit-rl pipeline FILE [--folder DIR]``.

    Args:
        args: arguments after ``pipeline``.
    """
    if "--help" in args or "-h" in args:
        print(__doc__)
        return
    if len(args) not in (1, 3) or (len(args) == 3 and args[1] != "--folder"):
        raise ValueError("write `lit-rl pipeline FILE` or `lit-rl pipeline FILE --folder DIR`.")
    root, stages = load_stages(args[0], Path(args[2]) if len(args) == 3 else None)
    check_stages(stages)
    with locked(root):
        status = _run(stages, root)
    if status:
        print(f"lit-rl: interrupted; go on with: {shlex.join(['lit-rl', 'pipeline', *args])}", file=sys.stderr)
        sys.exit(status)


def _run(stages: list[Stage], root: Path) -> int:
    """Run all stages in turn.

    Returns:
        Exit status of the signal that interrupted one of them; 0 if all are finished.
    """
    say(f"{len(stages)} stages in {root}: {', '.join(stage.name for stage in stages)}")
    report: dict[str, Any] = {}
    for number, stage in enumerate(stages):
        status = run_stage(stage, stages[:number])
        if status:
            return status
        report[stage.name] = stage_report(stage)
        # After every stage: an interrupted pipeline leaves a report of what is done.
        write_text(root / "report.json", json.dumps({"stages": report}, indent=2))
    say(f"Report: {root / 'report.json'}")
    for line in summary(report, stages, root):
        say(*line)
    return 0
