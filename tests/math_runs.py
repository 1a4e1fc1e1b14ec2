"""Small real runs on word problems: a byte-level tokenizer trained on the spot, a tiny model, the real data sets' files."""

import functools
import json
import os
from pathlib import Path

import pytest
import torch
from conftest import quiet_trainer, tiny_spec
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from lit_rl.algorithms import GRPO, SFT
from lit_rl.evaluation import Evaluation
from lit_rl.sampling import Sampler

CHAT = (
    "{{ bos_token }}{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MOVING = functools.partial(torch.optim.AdamW, lr=1e-3)


def real_file(name: str) -> str:
    """The path of a real file; without it the test is skipped."""
    path = Path(os.environ.get("LIT_RL_DATA", "")) / name
    if not os.environ.get("LIT_RL_DATA") or not path.is_file():
        pytest.skip(f"LIT_RL_DATA names no folder with {name}")
    return str(path)


def part_of_real_file(name: str, folder: Path, every: int) -> str:
    """A file with each ``every``-th line of a real file; without the real file the test is skipped."""
    lines = Path(real_file(name)).read_text(encoding="utf-8").splitlines()
    return write_jsonl(folder / name, lines[::every])


def write_jsonl(path: Path, rows: list) -> str:
    """One row a line; a text is written as it is."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def bpe_folder(folder: Path, texts: list[str], chat: str | None = None) -> str:
    """A byte-level BPE tokenizer of 400 tokens, learned from the texts and saved."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<pad>", "<bos>", "<eos>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    names = {f"{name.strip('<>')}_token": name for name in special}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **names)
    tokenizer.chat_template = chat
    tokenizer.save_pretrained(folder)
    return str(folder)


def math_spec(tokenizer: str):
    """A tiny model that takes the longest solutions."""
    spec = tiny_spec(config={"max_position_embeddings": 16384})
    spec.tokenizer = tokenizer
    return spec


def attached(data, tokenizer: str):
    """The data module as it is in a fit; ``tokenizer`` is a name or a folder."""
    data.trainer = quiet_trainer(".")
    module = SFT(math_spec(tokenizer))
    data.trainer.strategy.connect(module)
    module.trainer = data.trainer
    data.prepare_data()
    data.setup("fit")
    return data


def train_and_test(folder: Path, data, tokenizer: str, reward, algorithm) -> dict[str, float]:
    """Three steps, then the test set; the last metrics of training."""
    options = {"optimizer": MOVING, "evaluation": Evaluation(max_new_tokens=4, correct=reward)}
    if algorithm is GRPO:
        options |= {"reward": reward, "group_size": 2, "sampler": Sampler(max_new_tokens=8)}
    trainer = quiet_trainer(folder, max_steps=3, limit_test_batches=1)
    module = algorithm(math_spec(tokenizer), **options)
    trainer.fit(module, data)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert trainer.global_step == 3
    assert set(trainer.test(module, data, verbose=False)[0]) >= {"test/accuracy"}
    return metrics


def text_of_positions(positions, document: int) -> tuple[bytes, bytes]:
    """Bytes of the context at a document's first position, and of the targets of all its positions, read one by one."""
    windows, pieces = positions.windows, positions.pieces
    numbers = range(int(windows.offsets[document]), int(windows.offsets[document + 1]))
    samples = [positions[number] for number in numbers]
    context = b"".join(pieces[token] for token in samples[0].context)
    return context, b"".join(pieces[sample.target[0]] for sample in samples)
