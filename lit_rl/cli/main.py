"""The command line: ``lit-rl fit | validate | test | predict``, and ``lit-rl pipeline``.

Help, a wrong command, a wrong config and a misspelt option are answered here, without torch and Lightning, whose import takes
seconds. Every mistake of the user gets one line; ``--debug`` shows the traceback.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

from lit_rl.cli.configs import resolve_configs
from lit_rl.cli.errors import explain, suggestion
from lit_rl.cli.option_check import check_options
from lit_rl.cli.own_classes import check_chosen
from lit_rl.cli.stages import SUBCOMMANDS

OWN_COMMANDS = ("compare", "pipeline", "export", "demo")
"""Commands with a file of their own."""
COMMANDS = (*SUBCOMMANDS, "replay", *OWN_COMMANDS)

HELP = """usage: lit-rl COMMAND [--config CONFIG ...] [--KEY VALUE ...]

Reinforcement learning for language models on PyTorch Lightning.

  lit-rl fit --config CONFIG [--KEY VALUE ...]      train
  lit-rl validate --config CONFIG                   evaluate on the validation problems
  lit-rl test --config CONFIG                       evaluate on the test problems
  lit-rl predict --config CONFIG                    write answers to the test problems to predictions.jsonl
  lit-rl compare NAME=POLICY NAME=POLICY ...        evaluate policies on the same questions, and compare the answers
  lit-rl pipeline FILE [--folder DIR]               several runs in a row, resumed where they stopped
  lit-rl replay FILE --config CONFIG                compute a failed step again (failed_step-<step>.pt of a run)
  lit-rl export ADAPTER OUT --merge                 merge an exported adapter into its base, as a folder of 16-bit weights
  lit-rl demo regime_w                              show the scores of Regime W on written answers, without a model

A CONFIG is a file or the name of one that comes with the package; later ones and flags change earlier ones.

  lit-rl fit --help                                 list all keys
  lit-rl fit --model.help GRPO                      explain an algorithm; --data.help Arithmetic a data source,
                                                    --trainer.callbacks.help HFExport a callback,
                                                    --model.sampler.help an option that holds options
  lit-rl fit --config CONFIG --print_config         show the config that flags and files come to
  lit-rl fit --config CONFIG --dry-run              check everything up to the first step, and leave nothing
  --ckpt_path PATH|last                             resume a run, or evaluate its checkpoint
  --debug                                           show the traceback of an error"""


def main(args: list[str] | None = None) -> None:
    """Entry point of ``lit-rl``."""
    args = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in args
    try:
        # The parser does not know this flag.
        run([arg for arg in args if arg != "--debug"])
    # Mistakes of the user and of the machine; anything else is a defect, and keeps its traceback.
    except (ValueError, OSError, ImportError) as error:
        if debug:
            raise
        sys.exit(f"lit-rl: {explain(error)}")


def run(args: list[str]) -> None:
    """Run one command."""
    command, rest = _command(args)
    # Help before a command is answered here, after one by the parser, which lists the command's keys.
    if not command:
        print(HELP)
        return
    # The user's own modules lie there; last, since a file may have the name of a library's module.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    if command in OWN_COMMANDS:
        importlib.import_module(f"lit_rl.cli.{command}").main(rest)
        return
    dry = "--dry-run" in rest
    if dry and command != "fit":
        raise ValueError("--dry-run goes with fit: other commands take no step.")
    file = ""
    if command == "replay":
        if not rest or rest[0].startswith("-"):
            raise ValueError("write lit-rl replay FILE and the run's --config; FILE is a failed_step-<step>.pt of its folder.")
        command, file, rest = "validate", rest[0], rest[1:]
    # The parser does not know this flag.
    args = resolve_configs([command, *(arg for arg in rest if arg != "--dry-run")])
    classes = check_options(args)
    check_chosen(classes.all)
    if file:
        from lit_rl.cli.replay import run_replay

        run_replay(args, classes.now, Path(file))
        return
    from lit_rl.cli.lightning_cli import run_command

    run_command(args, classes.now, dry)


def _command(args: list[str]) -> tuple[str, list[str]]:
    """Split the command line into the command and the other arguments. A call for general help has an empty command.

    Raises:
        ValueError: if there is no such command.
    """
    if not args:
        raise ValueError(f"write lit-rl and one of {', '.join(COMMANDS)}; lit-rl --help explains them.")
    # Options may stand before the command.
    place = next((place for place, arg in enumerate(args) if arg in COMMANDS and not _is_value(args, place)), 0)
    command = args[place if args[0].startswith("-") else 0]
    if command.startswith("-") and {"-h", "--help"} & set(args):
        return "", []
    if command not in COMMANDS:
        raise ValueError(
            f"unknown command {command!r}; write one of {', '.join(COMMANDS)}.{suggestion(command, list(COMMANDS))}"
        )
    return command, [*args[:place], *args[place + 1 :]]


def _is_value(args: list[str], place: int) -> bool:
    """Whether the argument at a place is the value of the option before it."""
    before = args[place - 1] if place else ""
    return before.startswith("-") and "=" not in before and before != "--dry-run"


if __name__ == "__main__":
    main()
