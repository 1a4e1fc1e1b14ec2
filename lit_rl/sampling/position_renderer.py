"""Renderer of RPT: positions of a text become prompts that ask for the next token."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from lit_rl.rollouts import Rollouts
from lit_rl.sampling.renderer import Renderer
from lit_rl.text.chat import user_turn
from lit_rl.text.encoding import bos, encode
from lit_rl.text.templates import DIRECT, check_template, fill_in
from lit_rl.text.token_bytes import token_bytes
from lit_rl.types import PromptBatch, Sample


class PositionRenderer(Renderer):
    """Shows the text before each position in a template, and decodes completions byte for byte.

    Args:
        tokenizer: the policy's tokenizer.
        template: name or text of a template (`lit_rl.text.templates`).
        max_context: number of tokens before a position that are shown; 0 shows all.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str, max_context: int) -> None:
        check_template(template)
        super().__init__(tokenizer)
        self.template, self.max_context = template, max_context
        self._opening = bos(tokenizer)
        self._pieces = token_bytes(tokenizer)

    def render(self, prompts: PromptBatch) -> PromptBatch:
        bare = [self._context(sample) for sample in prompts.samples]
        texts = self.tokenizer.batch_decode(bare, clean_up_tokenization_spaces=False)
        contexts = [self._opening + context for context in bare]
        if self.template != DIRECT:
            texts = [user_turn(fill_in(self.template, text), self.tokenizer) for text in texts]
            contexts = encode(texts, self.tokenizer)
        samples = [sample._replace(prompt=text) for sample, text in zip(prompts.samples, texts, strict=True)]
        return PromptBatch.pad(contexts, prompts.completions, samples, self.pad_id).to(prompts.ids.device)

    def plain(self, prompts: PromptBatch) -> PromptBatch:
        contexts = [self._opening + self._context(sample) for sample in prompts.samples]
        return PromptBatch.pad(contexts, prompts.completions, prompts.samples, self.pad_id).to(prompts.ids.device)

    def decode(self, rollouts: Rollouts) -> list[str]:
        """Completions byte for byte; bytes that are not a whole character become surrogates (``surrogateescape``)."""
        # A head is often padded to a round number of ids, more than the tokenizer has.
        known = range(len(self._pieces))
        rows = [b"".join(self._pieces[token] for token in row if token in known) for row in rollouts.completions()]
        return [row.decode("utf-8", "surrogateescape") for row in rows]

    def _context(self, sample: Sample) -> list[int]:
        """Token ids before the sample's position, without BOS, cut to the last ``max_context``."""
        if not sample.context:
            raise ValueError(
                f"sample {sample.number} is not a position of a text; RPT learns from positions: write "
                "data.init_args.positions, for example {labels_length: 1}."
            )
        context, opening = list(sample.context), self._opening
        text = context[len(opening) :] if context[: len(opening)] == opening else context
        return text[-self.max_context :]  # [-0:] is all
