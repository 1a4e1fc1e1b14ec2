"""The command line: ``lit-rl fit | validate | test | predict``, and ``lit-rl pipeline``.

Help, a wrong command, a wrong config and a misspelt option are answered here, without torch and Lightning, whose import takes
seconds. Every mistake of the user gets one line; ``--debug`` shows the traceback.
"""

from __future__ import annotations

import sys

from lit_rl.cli.configs import resolve_configs
from lit_rl.cli.errors import explain, suggestion
from lit_rl.cli.option_check import check_options
from lit_rl.cli.stages import SUBCOMMANDS

COMMANDS = (*SUBCOMMANDS, "pipeline")

HELP = """usage: lit-rl COMMAND [--config CONFIG ...] [--KEY VALUE ...]

Reinforcement learning for language models on PyTorch Lightning.

  lit-rl fit --config CONFIG [--KEY VALUE ...]      train
  lit-rl validate --config CONFIG                   evaluate on the validation problems
  lit-rl test --config CONFIG                       evaluate on the test problems
  lit-rl predict --config CONFIG                    write answers to the test problems to predictions.jsonl
  lit-rl pipeline FILE [--folder DIR]               several runs in a row, resumed where they stopped

A CONFIG is a file or the name of one that comes with the package; later ones and flags change earlier ones.

  lit-rl fit --help                                 list all keys
  lit-rl fit --model.help GRPO                      explain an algorithm; --data.help Arithmetic a data source,
                                                    --trainer.callbacks.help HFExport a callback
  lit-rl fit --config CONFIG --print_config         show the config that flags and files come to
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
    except (ValueError, OSError, ModuleNotFoundError) as error:
        if debug:
            raise
        sys.exit(f"lit-rl: {explain(error)}")


def run(args: list[str]) -> None:
    """Run one command."""
    if not args:
        raise ValueError(f"write lit-rl and one of {', '.join(COMMANDS)}; lit-rl --help explains them.")
    command = args[0]
    # Help before a command is answered here, after one by the parser, which lists the command's keys.
    if command.startswith("-") and {"-h", "--help"} & set(args):
        print(HELP)
        return
    if not command.startswith("-") and command not in COMMANDS:
        raise ValueError(
            f"unknown command {command!r}; write one of {', '.join(COMMANDS)}.{suggestion(command, list(COMMANDS))}"
        )
    if command == "pipeline":
        from lit_rl.cli.pipeline import main as pipeline

        pipeline(args[1:])
        return
    args = resolve_configs(args)
    if command in COMMANDS:
        check_options(args)
    from lit_rl.cli.lightning_cli import run_command

    run_command(args)


if __name__ == "__main__":
    main()
