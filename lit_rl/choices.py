"""Options that take one of a few names, checked for those who come from Python and not through the command line."""

from __future__ import annotations

from typing import Any, get_args


def check_choice(option: str, value: Any, choices: Any) -> None:
    """Refuse a value that is none of the names of a ``Literal``.

    Raises:
        ValueError: with the names.
    """
    names = get_args(choices)
    if value not in names:
        raise ValueError(f"{option} is {value!r}; write one of {', '.join(names)}.")
