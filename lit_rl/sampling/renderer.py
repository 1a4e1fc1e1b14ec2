"""Renderers: prompts as the policy is shown them, and its completions as text."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from lit_rl.rollouts import Rollouts
from lit_rl.types import PromptBatch


class Renderer:
    """Shows prompts as the data give them, and decodes completions by the tokenizer.

    Args:
        tokenizer: the policy's tokenizer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    @property
    def pad_id(self) -> int:
        """Token id that fills rows up."""
        return int(self.tokenizer.pad_token_id)

    def render(self, prompts: PromptBatch) -> PromptBatch:
        """Prompts of the data -> prompts as the policy is shown them."""
        return prompts

    def plain(self, prompts: PromptBatch) -> PromptBatch:
        """Prompts of the data -> prompts without template, for a language-model loss on their true completions."""
        return prompts

    def decode(self, rollouts: Rollouts) -> list[str]:
        """Completions as text, special tokens written out, without the end token."""
        # Clean-up would remove spaces that the policy wrote, and rewards judge the exact text.
        return self.tokenizer.batch_decode(rollouts.completions(), clean_up_tokenization_spaces=False)
