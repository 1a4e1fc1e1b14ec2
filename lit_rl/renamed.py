"""Old names of classes and options, so that whoever still uses one is told the new one."""

from __future__ import annotations

CLASSES = {
    "Correct": "ArithmeticAnswer",
    "Format": "ArithmeticFormat",
    "Boxed": "RPNFormat",
    "CorrectAnswer": "RPNAnswer",
    "PartialCredit": "RPNProgress",
    "CombinedReward": "RPNReward",
    "BoxedMath": "MathAnswer",
    "AdaptiveTemperature": "TemperatureSchedule",
    "KLController": "AdaptiveKL",
}
"""New name of each class by its old one."""

OPTIONS = {"gather": "unshard"}
"""New name of each option by its old one."""


def missing(module: str, name: str) -> Exception:
    """The error about a name that a module does not have.

    An old name gets an ImportError: in place of an AttributeError Python would report a message of its own.
    """
    if name in CLASSES:
        return ImportError(f"class {name!r} is called {CLASSES[name]} now.", name=module)
    return AttributeError(f"module {module!r} has no attribute {name!r}")
