"""Stories read back from their texts, to change one number of a question and to know the right answer to the changed one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from random import Random

from lit_rl.tasks.stories import LARGEST_FACTOR, PARTS, Operands, Part, answer


def _pattern(part: Part) -> re.Pattern[str]:
    """Pattern of a part's text, with a group for each number."""
    places = {"n": r"([0-9]+)", "m": r"([0-9]+)"}
    pieces = re.split(r"\{(\w+)\}", part.text)  # text and names of places in turn
    return re.compile("".join(places.get(piece, r"\w+") if odd % 2 else re.escape(piece) for odd, piece in enumerate(pieces)))


_PATTERNS = [(part, _pattern(part)) for part in PARTS]


def read_story(question: str) -> Operands | None:
    """Operators and numbers of a question; None if it is not a story."""
    operands: list[tuple[str, Sequence[int]]] = []
    rest = question.strip()
    while rest:
        found = next(((part, match) for part, pattern in _PATTERNS if (match := pattern.match(rest))), None)
        if found is None:
            return None
        part, match = found
        operands.append((part.operator, [int(number) for number in match.groups()]))
        rest = rest[match.end() :].lstrip()
    return operands


def change_number(question: str, rng: Random) -> tuple[str, int] | None:
    """Change one number of a story so that its answer changes.

    Returns:
        The changed question and its right answer; None if the question is not a story.
    """
    old = read_story(question)
    if old is None:
        return None
    changes = []
    for number in re.finditer("[0-9]+", question):
        for value in range(2, LARGEST_FACTOR + 1):
            text = f"{question[: number.start()]}{value}{question[number.end() :]}"
            result = answer(read_story(text) or [])
            if result is not None and result != answer(old):
                changes.append((text, result))
    return rng.choice(changes) if changes else None
