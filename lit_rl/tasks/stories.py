"""Word problems by template, in GSM8K's form: a story of one to three operations, its worked solution, its exact answer.

    question    Mia has 12 shells. Ben gives her 5 more. She loses 4 of them. How many shells does Mia have now?
    precise     12+5=17 / 17-4=13 / #### 13
    reflective  Ben gives her 5 more. 12+5=17 / She loses 4 of them. 17-4=13 / #### 13

(``/`` stands for a line break.) A prompt asks for a style: steps alone, or each step after the sentence that it follows from.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from random import Random
from typing import NamedTuple

STYLES = {"precise": "Write the steps alone.", "reflective": "Say why before each step."}
"""Texts before a question that ask for a style of solution."""

# Two digits at most: a small model from scratch should learn stories, and not long multiplication.
LARGEST_FACTOR, LARGEST_RESULT = 9, 99
"""Bounds of numbers that multiply or divide, and of every result."""

MAX_DRAWS = 10_000
"""Draws of one story after which its grammar counts as one that no story fits."""

APPLY = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}


class Part(NamedTuple):
    """One part of a story. Its amount is its number ``n``, or ``n`` times ``m`` if it has two."""

    text: str
    """Sentence with places for words and numbers; a question may be two sentences."""
    operator: str = ""
    """Operation on the amount so far; empty if the part's amount is the first one, or the part has none."""

    @property
    def num_numbers(self) -> int:
        return self.text.count("{n}") + self.text.count("{m}")

    @property
    def num_operations(self) -> int:
        return (self.operator != "") + (self.num_numbers == 2)


OPENINGS = (
    Part("{name} has {n} {things}."),
    Part("{name} finds {n} {things} on the way home."),
    Part("{name} takes {n} {things} to school."),
    Part("{name} fills {n} boxes with {m} {things} each."),
    Part("{name} buys {n} bags of {m} {things}."),
    Part("For {n} days {name} collects {m} {things} a day."),
)
EVENTS = (
    Part("{He} buys {n} more.", "+"),
    Part("{friend} gives {him} {n} more.", "+"),
    Part("Then {he} finds {n} more.", "+"),
    Part("{friend} brings {him} {n} boxes of {m} {things}.", "+"),
    Part("{He} gives {n} of them to {friend}.", "-"),
    Part("{He} loses {n} of them.", "-"),
    Part("{friend} takes {n} of them.", "-"),
    Part("{He} gives each of {n} friends {m} of them.", "-"),
    Part("A week later {he} has {n} times as many.", "*"),
)
QUESTIONS = (
    Part("How many {things} does {name} have now?"),
    Part("How many {things} does {he} have in the end?"),
    Part("{He} shares them equally among {n} friends. How many {things} does each friend get?", "/"),
    Part("{He} packs them into {n} equal bags. How many {things} are in each bag?", "/"),
    Part("{He} sells them all for {n} dollars each. How many dollars does {he} get?", "*"),
)
PARTS = OPENINGS + EVENTS + QUESTIONS
PRONOUNS = {"Tom": ("he", "him"), "Ben": ("he", "him"), "Leo": ("he", "him"), "Max": ("he", "him")}
PRONOUNS |= {"Mia": ("she", "her"), "Ann": ("she", "her"), "Eva": ("she", "her"), "Zoe": ("she", "her")}
THINGS = ("apples", "pens", "coins", "cards", "shells", "stamps", "buttons", "books")


@dataclass(frozen=True)
class StoryGrammar:
    """Distribution of stories."""

    min_operations: int = 1
    """Least operations of a story."""
    max_operations: int = 3
    """Most operations of a story."""
    largest: int = 20
    """Largest number that is given, added or taken away; numbers that multiply or divide go up to 9, results up to 99."""

    def __post_init__(self) -> None:
        if not 1 <= self.min_operations <= self.max_operations:
            raise ValueError(
                f"StoryGrammar min_operations={self.min_operations} max_operations={self.max_operations}: write 1 or more, "
                "and not more than max_operations."
            )
        if not 2 <= self.largest <= LARGEST_RESULT:
            raise ValueError(f"StoryGrammar largest={self.largest}: write a number from 2 to {LARGEST_RESULT}.")


class Step(NamedTuple):
    """One operation of a solution."""

    left: Fraction
    operator: str
    right: Fraction

    @property
    def result(self) -> Fraction:
        """Exact value."""
        return APPLY[self.operator](self.left, self.right)

    def __str__(self) -> str:
        return f"{self.left}{self.operator}{self.right}={self.result}"


Operands = Sequence[tuple[str, Sequence[int]]]
"""Operator and numbers of each part of a story: all that its answer depends on."""


def work(operands: Operands) -> list[list[Step]]:
    """Steps of each part of a story."""
    amount, steps = Fraction(0), []
    for sign, numbers in operands:
        found: list[Step] = []
        if numbers:
            given = Fraction(numbers[0])
            if len(numbers) == 2:
                found.append(Step(given, "*", Fraction(numbers[1])))
                given = found[-1].result
            if sign:
                found.append(Step(amount, sign, given))
            amount = found[-1].result if found else given
        steps.append(found)
    return steps


def answer(operands: Operands) -> int | None:
    """Answer of a story; None if a result on the way is not a whole number from 1 to 99."""
    results = [step.result for steps in work(operands) for step in steps]
    whole = all(result.denominator == 1 and 1 <= result <= LARGEST_RESULT for result in results)
    return int(results[-1]) if results and whole else None


@dataclass(frozen=True)
class Story:
    """A story, with its words and numbers."""

    parts: tuple[Part, ...]
    numbers: tuple[tuple[int, ...], ...]
    """Numbers of each part, in the order of the text."""
    name: str
    friend: str
    things: str

    @property
    def operands(self) -> Operands:
        return [(part.operator, numbers) for part, numbers in zip(self.parts, self.numbers, strict=True)]

    @property
    def sentences(self) -> list[str]:
        """Text of each part."""
        he, him = PRONOUNS[self.name]
        words = {"name": self.name, "friend": self.friend, "things": self.things, "he": he, "He": he.capitalize(), "him": him}
        return [
            part.text.format(**words, **dict(zip("nm", numbers, strict=False)))
            for part, numbers in zip(self.parts, self.numbers, strict=True)
        ]

    @property
    def question(self) -> str:
        return " ".join(self.sentences)

    @property
    def plot(self) -> str:
        """The story without its words: two questions of one plot differ by names and things alone."""
        return " ".join(f"{part.text} {numbers}" for part, numbers in zip(self.parts, self.numbers, strict=True))

    def solution(self, style: str) -> str:
        """Worked solution in one of the `STYLES`: a line for each step, then ``#### <answer>``."""
        steps, lines = work(self.operands), []
        for sentence, found in zip(self.sentences, steps, strict=True):
            # The first sentence alone: a part that asks for a quotient ends with its question.
            reason = sentence[: sentence.index(".") + 1] + " " if style == "reflective" and found else ""
            # A part of two steps has its reason once, before the first.
            lines += [f"{reason if place == 0 else ''}{step}" for place, step in enumerate(found)]
        return "\n".join([*lines, f"#### {answer(self.operands)}"])


def story_words() -> list[str]:
    """All words of stories and of their styles, in alphabetical order."""
    texts = [re.sub(r"\{\w+\}", "", part.text) for part in PARTS] + list(STYLES.values())
    pronouns = [form for he, him in PRONOUNS.values() for form in (he, he.capitalize(), him)]
    return sorted({*re.findall("[A-Za-z]+", " ".join(texts)), *PRONOUNS, *pronouns, *THINGS})


def draw_story(grammar: StoryGrammar, rng: Random) -> Story:
    """Draw a story whose results are whole numbers from 1 to 99.

    Raises:
        ValueError: if no draw fits the grammar.
    """
    operations = rng.randint(grammar.min_operations, grammar.max_operations)
    # Drawn until it fits: numbers that must divide, or stay small, have no simple distribution of their own.
    for _ in range(MAX_DRAWS):
        opening, question = rng.choice(OPENINGS), rng.choice(QUESTIONS)
        events = _draw_events(operations - opening.num_operations - question.num_operations, rng)
        if events is None:
            continue
        parts = (opening, *events, question)
        numbers = tuple(_draw_numbers(part, grammar.largest, rng) for part in parts)
        if answer([(part.operator, of_part) for part, of_part in zip(parts, numbers, strict=True)]) is not None:
            name, friend = rng.sample(list(PRONOUNS), 2)
            return Story(parts, numbers, name, friend, rng.choice(THINGS))
    raise ValueError(f"No story of {operations} operations in {MAX_DRAWS} draws; write fewer operations. {grammar}")


def _draw_events(operations: int, rng: Random) -> list[Part] | None:
    """Different events of so many operations in all; None if the draw has another number of operations."""
    events = []
    # Each event at most once: "loses some" twice in a row would read as a mistake.
    for event in rng.sample(EVENTS, len(EVENTS)):
        if event.num_operations <= operations:
            events.append(event)
            operations -= event.num_operations
    return events if operations == 0 else None


def _draw_numbers(part: Part, largest: int, rng: Random) -> tuple[int, ...]:
    # Factors stay small, or most products would pass the largest result and be drawn again.
    factor = part.num_numbers == 2 or part.operator in ("*", "/")
    return tuple(rng.randint(2, LARGEST_FACTOR if factor else largest) for _ in range(part.num_numbers))
