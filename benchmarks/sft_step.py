"""Target tokens per second of supervised fine-tuning on 2,000 samples of mixed length, against TRL's SFTTrainer with packing.

    python -m benchmarks.sft_step --against trl          # or trl_padded: without packing

Questions and solutions of random words, about as long as GSM8K's, by a byte-level BPE tokenizer of 4,096 tokens that is
trained on the spot. Loss on the solutions only, 32 samples a step here and as many tokens a step in TRL's packed blocks.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from benchmarks.timing import alternate, arguments, bare_trainer, report
from lit_rl.algorithms import SFT
from lit_rl.datamodules import PromptDataModule
from lit_rl.models import PolicySpec
from lit_rl.types import Sample

BLOCK_TOKENS = 512
"""Length of a packed block of TRL."""
SIZES = {"W6": (2000, 12, 32), "tiny": (12, 1, 4)}
"""Samples, measured steps of a run, samples a step."""


def samples(count: int) -> list[tuple[str, str]]:
    """Questions of about 45 words and solutions of 20 to 150."""
    draw = random.Random(0)
    syllables = [a + b for a in "bcdfghklmnprstvwz" for b in ("a", "e", "i", "o", "u", "an", "er", "ing")]
    words = ["".join(draw.choices(syllables, k=draw.randint(1, 3))) for _ in range(3000)]
    pick = lambda mean: " ".join(draw.choices(words, k=max(8, int(draw.lognormvariate(0, 0.45) * mean))))  # noqa: E731
    return [(f"Question: {pick(45)}\nAnswer:", f" {pick(55)}") for _ in range(count)]


def save_model(folder: Path, texts: list[tuple[str, str]]) -> str:
    """A random llama of four layers with a BPE tokenizer of these texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4096, special_tokens=["<pad>", "<end>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator([question + answer for question, answer in texts], trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>").save_pretrained(folder)
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama",
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        vocab_size=4096,
        max_position_embeddings=2048,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    return str(folder)


class Solutions(PromptDataModule):
    """The samples as a data module."""

    def __init__(self, texts: list[tuple[str, str]], batch_size: int) -> None:
        super().__init__(batch_size=batch_size)
        self.train_set = [Sample(a, b, "", n) for n, (a, b) in enumerate(texts)]  # type: ignore[assignment]
        self.val_set = self.test_set = []


class Clock(pl.Callback):
    """End of each step, and number of its targets."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.targets: list[int] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.ends.append(time.perf_counter())
        self.targets.append(batch.num_tokens)


def rates(ends: list[float], targets: list[int]) -> dict[str, float]:
    """Seconds for a thousand targets, from the median step."""
    per_target = [(after - before) / count for (before, after), count in zip(pairwise(ends), targets[1:], strict=True)]
    seconds = statistics.median(per_target)
    return {"seconds": 1000 * seconds, "targets_per_second": 1 / seconds}


def lit_rl_run(model: str, texts: list[tuple[str, str]], steps: int, batch: int, device: str) -> dict[str, float]:
    clock = Clock()
    trainer = bare_trainer(device, steps + 1, clock)
    trainer.fit(SFT(PolicySpec(pretrained=model)), Solutions(texts, batch))
    return rates(clock.ends, clock.targets)


def trl_run(model: str, texts: list[tuple[str, str]], steps: int, batch: int, device: str, packing: bool) -> dict[str, float]:
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    ends: list[float] = []
    targets: list[int] = []

    class StepClock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            ends.append(time.perf_counter())

    class Counting(SFTTrainer):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **options: Any) -> Any:
            targets.append(int((inputs["labels"] != -100).sum()))
            return super().compute_loss(model, inputs, *args, **options)

    tokens = sum(len(a) + len(b) for a, b in texts) / len(texts) / 3.0  # about three characters a token
    options = SFTConfig(
        output_dir=tempfile.mkdtemp(),
        packing=packing,
        max_length=BLOCK_TOKENS,
        per_device_train_batch_size=max(1, round(batch * tokens / BLOCK_TOKENS)) if packing else batch,
        max_steps=steps + 1,
        learning_rate=2e-5,
        lr_scheduler_type="constant",
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=device == "cpu",
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    trainer = Counting(
        model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        args=options,
        train_dataset=Dataset.from_list([{"prompt": a, "completion": b} for a, b in texts]),
        processing_class=AutoTokenizer.from_pretrained(model),
        callbacks=[StepClock()],
    )
    trainer.train()
    return rates(ends, targets)


def main(argv: list[str] | None = None) -> None:
    args = arguments(str(__doc__), ["trl", "trl_padded"], list(SIZES), argv)
    warnings.filterwarnings("ignore")
    for name in args.workloads:
        count, steps, batch = SIZES[name]
        texts = samples(count)
        with tempfile.TemporaryDirectory() as folder:
            model = save_model(Path(folder), texts)
            sides = {"lit_rl": lambda a=(model, texts, steps, batch, args.device): lit_rl_run(*a)}
            if args.against:
                packing = args.against == "trl"
                sides[args.against] = lambda a=(model, texts, steps, batch, args.device, packing): trl_run(*a)
            report("sft_step", name, alternate(sides, args.runs), runs=args.runs, device=args.device)


if __name__ == "__main__":
    main()
