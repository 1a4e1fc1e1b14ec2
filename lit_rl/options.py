"""Options checked at the door, for those who come from Python and not through the command line."""

from __future__ import annotations

from typing import Any, get_args


def check_choice(option: str, value: Any, choices: Any) -> None:
    """Refuse a value that is not among the names of a ``Literal``.

    Raises:
        ValueError: with the names.
    """
    names = get_args(choices)
    if value not in names:
        raise ValueError(f"{option} is {value!r}; write one of {', '.join(names)}.")


def check_least(owner: object, prefix: str, **least: float) -> None:
    """Refuse options of an object that are below their least value, or NaN.

    Args:
        owner: has the options as attributes.
        prefix: precedes an option's name in the message, such as ``model``.
        least: smallest value of each option.

    Raises:
        ValueError: for the first option that is too small.
    """
    for option, value in least.items():
        given = getattr(owner, option)
        if not given >= value:
            raise ValueError(f"{prefix}.{option} is {given}; write {value} or more.")


def first_line(error: BaseException) -> str:
    """First line of an error's message, to be quoted in one of ours."""
    return str(error).strip().split("\n")[0]
