"""Workloads of the benchmarks: both sides get the same weights, tokenizer, prompts, lengths and rewards."""

from __future__ import annotations

import random
import string
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from lit_rl.datamodules import PromptDataModule
from lit_rl.types import Sample

ALPHABET = string.ascii_letters + string.digits + string.punctuation[:31]
"""With three special tokens 96 ids: a random model ends one completion in 96 at every token."""


@dataclass(frozen=True)
class Workload:
    """Sizes of a step of GRPO, or of its sampling alone."""

    prompts: int
    prompt_tokens: int
    new_tokens: int
    group_size: int = 8
    kl_coef: float = 0.0

    @property
    def rows(self) -> int:
        return self.prompts * self.group_size


WORKLOADS = {
    "W1": Workload(32, 10, 32),
    "W2": Workload(32, 10, 128),
    "W3": Workload(8, 490, 32),
    "W4": Workload(32, 10, 32, kl_coef=0.04),
    "tiny": Workload(2, 5, 4, group_size=2),
}


def char_tokenizer() -> PreTrainedTokenizerFast:
    """A token for each character."""
    vocabulary = {token: number for number, token in enumerate(["<pad>", "<end>", "<unk>", *ALPHABET])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>", unk_token="<unk>", padding_side="left"
    )


def save_model(folder: Path, vocabulary: int = 96, hidden: int = 128) -> str:
    """A random llama of four layers with its tokenizer."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama",
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=4,
        num_attention_heads=hidden // 32,
        max_position_embeddings=2048,
        vocab_size=vocabulary,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)
    char_tokenizer().save_pretrained(folder)
    return str(folder)


def texts(workload: Workload, count: int) -> list[str]:
    """Prompts of about ``prompt_tokens`` characters, a fifth shorter or longer."""
    draw = random.Random(0)
    spread = workload.prompt_tokens // 5
    lengths = [workload.prompt_tokens + draw.randint(-spread, spread) for _ in range(count)]
    return ["".join(draw.choices(ALPHABET, k=length)) for length in lengths]


class Prompts(PromptDataModule):
    """The workload's prompts as a data module."""

    def __init__(self, prompts: list[str], batch_size: int, **options) -> None:
        super().__init__(batch_size=batch_size, **options)
        self.train_set = [Sample(text, "", "", number) for number, text in enumerate(prompts)]  # type: ignore[assignment]
        self.val_set = self.test_set = []
