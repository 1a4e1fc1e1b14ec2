"""Collation: samples become a batch of token ids."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from lit_rl.text.chat import AssistantTurn
from lit_rl.text.encoding import check_prompt, encode_pairs
from lit_rl.types import PromptBatch, Sample


def collate(tokenizer: PreTrainedTokenizerBase, samples: list[Sample]) -> PromptBatch:
    """Tokenize samples into a batch; completions get their end token. Token ids of positions and windows stay as they are.

    The end token is the tokenizer's, or the one that ends a turn of the chat template if the template wrote the prompt.

    Raises:
        ValueError: if a prompt has no tokens.
    """
    pairs = tokenize(tokenizer, samples)
    for sample, (prompt, _) in zip(samples, pairs, strict=True):
        check_prompt(sample.number, prompt)
    return PromptBatch.pad([prompt for prompt, _ in pairs], [ids for _, ids in pairs], samples, tokenizer.pad_token_id)


def tokenize(tokenizer: PreTrainedTokenizerBase, samples: list[Sample]) -> list[tuple[list[int], list[int]]]:
    """Token ids of the prompt and of the completion of each sample, texts and token ids alike."""
    texts = [sample for sample in samples if not sample.context]
    encoded, turn = iter(_encode(tokenizer, texts)), AssistantTurn.of(tokenizer) if texts else None
    rows = []
    for sample in samples:
        if sample.context:
            rows.append((list(sample.context), list(sample.target)))
            continue
        prompt, completion = next(encoded)
        end = turn.end if turn and sample.prompt.endswith(turn.opening) else tokenizer.eos_token_id
        # An empty completion stands for a source without solutions, not for a solution that ends at once.
        rows.append((prompt, [*completion, end] if sample.completion else []))
    return rows


def _encode(tokenizer: PreTrainedTokenizerBase, samples: list[Sample]) -> list[tuple[list[int], list[int]]]:
    """Token ids of the prompts and completions of texts; an error names the first sample that has it."""
    try:
        pairs = encode_pairs([sample.prompt for sample in samples], [sample.completion for sample in samples], tokenizer)
        return list(zip(*pairs, strict=True))
    except ValueError as error:
        if len(samples) == 1:
            raise ValueError(f"sample {samples[0].number}: {error}") from error
        for sample in samples:
            _encode(tokenizer, [sample])
        raise
