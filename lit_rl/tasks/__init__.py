"""Generated tasks: arithmetic and reverse Polish notation, with grammars, exact solutions, problems and tokenizers."""

from lit_rl.tasks.infix import Grammar
from lit_rl.tasks.rpn import RPNGrammar

__all__ = ["Grammar", "RPNGrammar"]
