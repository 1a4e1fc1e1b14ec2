"""Old names of classes and options: a command line that still uses one is told the new one."""

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
