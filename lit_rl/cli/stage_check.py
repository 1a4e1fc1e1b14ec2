"""Check of a stage's command line before any stage runs: at once as far as the source tells, then by the parser."""

from __future__ import annotations

from collections.abc import Callable

from lit_rl.cli.compare import check_compare
from lit_rl.cli.export import parse
from lit_rl.cli.option_check import check_options
from lit_rl.cli.own_classes import check_chosen


def quick_check(command: list[str]) -> Callable[[], None]:
    """Refuse what is known to be wrong without Lightning.

    Args:
        command: a stage's command line, configs by path.

    Returns:
        The rest of the check, which imports Lightning.

    Raises:
        ValueError: for the first mistake, and the rest of the check for the first one that it finds.
    """
    if command[0] == "export":
        parse(command[1:])
        return lambda: None
    if command[0] == "compare":
        policies, options, classes = check_compare(command[1:])
    else:
        policies, options, classes = {}, command, check_options(command)

    def rest() -> None:
        check_chosen(classes.all)
        if policies:
            from lit_rl.cli.comparison import check_comparison

            check_comparison(policies, options)
        else:
            from lit_rl.cli.lightning_cli import check_arguments

            check_arguments(options)

    return rest
