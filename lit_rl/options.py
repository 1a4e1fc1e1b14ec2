"""Checks of options in constructors, for callers from Python whom the command line does not check."""

from __future__ import annotations

from typing import Any, get_args


def check_choice(option: str, value: Any, choices: Any) -> None:
    """Refuse a value that is not among the names of a ``Literal``.

    Args:
        option: name of the option in the message.
        value: the value given.
        choices: the ``Literal``.

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
        # `not >=` and not `<`, which lets NaN pass.
        if not given >= value:
            raise ValueError(f"{prefix}.{option} is {given}; write {value} or more.")


def check_whole(prefix: str, option: str, value: Any, least: int) -> None:
    """Refuse a value that is not a whole number, or below its least value.

    Args:
        prefix: precedes the option's name in the message, such as ``data``.
        option: name of the option.
        value: the value given.
        least: smallest value.

    Raises:
        ValueError: with the least value.
    """
    # True is an int to Python.
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{prefix}.{option} is {value!r}; write a whole number, {least} or more.")


def first_line(error: BaseException) -> str:
    """First line of an error's message, to quote in another."""
    return str(error).strip().split("\n")[0]
