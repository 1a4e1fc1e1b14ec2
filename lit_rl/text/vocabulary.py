"""Vocabulary of a tokenizer: which token each id stands for."""

from __future__ import annotations

import hashlib
import json

from transformers import PreTrainedTokenizerBase


def vocabulary_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of all tokens and their ids: token ids mean the same under tokenizers of one fingerprint."""
    words = json.dumps(sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]))
    return hashlib.sha256(words.encode()).hexdigest()[:16]
