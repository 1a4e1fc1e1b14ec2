"""Errors of the command line: one line with the key, the fault, and the name that was probably meant."""

from __future__ import annotations

import difflib
import re

from lit_rl.cli.renamed import CLASSES, OPTIONS
from lit_rl.text.terminal import printable

SECTIONS = ("init_args", "dict_kwargs")
"""Levels of a config that a flag leaves out."""

LONGEST = 2000
"""Characters of a line; a value that is quoted in a message may be longer than a screen."""

# Beginnings of jsonargparse's messages that only wrap the fault proper.
_WRAPPERS = ('Parser key "', "Does not validate against any of the Union subtypes", "\n- Expected a path but")


class BadArgument(ValueError):
    """A wrong argument.

    Args:
        key: dotted name of the argument.
        reason: fault of the argument.
    """

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"{key}: {reason}" if key else reason)
        self.key, self.reason = key, reason

    def within(self, keys: list[str]) -> BadArgument:
        """The same error, seen from the parser around it."""
        return BadArgument(".".join([*keys, self.key] if self.key else keys), self.reason)


class UnknownOption(BadArgument):
    """An argument that does not exist.

    Args:
        key: dotted name of the argument.
        meant: dotted name that was probably meant.
        known: names that exist where the first wrong part of the key stands.
    """

    def __init__(self, key: str, meant: str | None, known: list[str]) -> None:
        reason = f"unknown option {key!r}."
        if meant and OPTIONS.get(key.split(".")[-1]) == meant.split(".")[-1]:
            reason = f"option {key!r} is called {meant!r} now."
        elif meant:
            reason += f" Did you mean {meant!r}?"
        elif 0 < len(known) < 20:
            reason += f" Known here are {', '.join(known)}."
        # The reason names the key: a key in front would say it twice.
        super().__init__("", reason)
        self.key, self.meant, self.known = key, meant, known

    @classmethod
    def among(cls, key: str, options: list[str]) -> UnknownOption:
        """The error about a dotted key that is not among the dotted names of all options."""
        parts, meant = key.split("."), []  # type: list[str], list[str]
        wrong: list[str] = []
        for place, part in enumerate(parts):
            # `meant` holds one name for each earlier part, mended if the part was wrong.
            inside = [option.split(".") for option in options if option.split(".")[:place] == meant]
            known = sorted({option[place] for option in inside if len(option) > place})
            if known and part not in known:
                # The first wrong part decides; later ones may follow from it.
                wrong = wrong or [name for name in known if name not in SECTIONS]
                # A renamed option may look like none of today's names.
                close = [OPTIONS[part]] if OPTIONS.get(part) in known else difflib.get_close_matches(part, known, n=1)
                if not close:
                    break
                part = close[0]
            meant.append(part)
        # Options of a nested class may be missing from the list: the parts after a mended one may be right.
        mended = ".".join(meant + parts[len(meant) :])
        return cls(key, None if mended == key else mended, wrong)

    def within(self, keys: list[str]) -> UnknownOption:
        meant = ".".join([*keys, self.meant]) if self.meant else None
        return UnknownOption(".".join([*keys, self.key]), meant, self.known)


def unknown_class(name: str, known: list[str]) -> str:
    """The fault of a class name that is not among the known ones."""
    short = name.split(".")[-1]
    if short in CLASSES:
        return f"class {name!r} is called {CLASSES[short]} now."
    listed = f" Known are {', '.join(known)}." if len(known) < 30 else ""
    return f"unknown class {name!r}.{suggestion(short, known) or listed}"


def suggestion(word: str, known: list[str]) -> str:
    """`` Did you mean ...?`` if a known word is close."""
    close = difflib.get_close_matches(word, known, n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def innermost(error: Exception) -> tuple[Exception, Exception, list[str]]:
    """The reason at the end of a chain of jsonargparse's errors, the error around it, and the keys that lead there.

    jsonargparse reports for every type that a value might have why it does not. The fault proper is at the end of the
    chain of causes.
    """
    keys: list[str] = []
    outer = error
    while str(error).startswith(_WRAPPERS) and isinstance(error.__cause__, Exception):
        keys += re.findall(r'^Parser key "([\w.]+)"', str(error))
        outer, error = error, error.__cause__
    return error, outer, keys


def explain(error: Exception) -> str:
    """One line about an error that stopped a run, without control characters."""
    reason, _, keys = innermost(error)
    if isinstance(reason, BadArgument):
        reason = reason.within(keys)
    elif keys:
        reason = BadArgument(".".join(keys), str(reason))
    # Messages of libraries have line breaks, and those that quote data or arguments may hold anything.
    line = printable(" ".join(str(reason).split())) or type(reason).__name__
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 200]} ... {line[-200:]}"
