"""Odd inputs for the command line, drawn from a seed: flags, YAML configs, data files, pipeline files."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from tiny_runs import tiny_config

NUMBERS = [
    "0",
    "-1",
    "1",
    "-0.0",
    "1e309",
    "-1e309",
    "nan",
    "NaN",
    ".inf",
    "1e-400",
    "9" * 25,
    "0x1F",
    "0o17",
    "1_000",
    "1.5",
    "\u0661",
]
WORDS = [
    "true",
    "null",
    "None",
    "~",
    "",
    " ",
    "x",
    "GRPO",
    "SFT",
    "Arithmetic",
    "int",
    "self",
    "__class__",
    "os.system",
    "a.b.C",
]
MARKUP = ["[bold]", "[/]", "[red]x[/red]", "${stages.a.b}", "{x}", "%s", "{{", "}}", "<script>", "!!python/object:os.system"]
CONTROL = [
    "\x1b[31mred\x1b[0m",
    "\x1b]0;title\x07",
    "a\rb",
    "a\nb",
    "\t",
    "\b\b\b",
    "\x7f",
    "\u202eabc",
    "\u2028",
    "\ufeff",
    "\x9b31m",
]
UNICODE = ["ünï", "日本語", "🙂" * 3, "\ud83d", "e\u0301", "\u0000", "\U0001d518", "ﷺ"]
BROKEN = [
    "[",
    "{",
    "[1, 2",
    "{a: ",
    "'",
    '"',
    "&a [*a]",
    "*a",
    "- -",
    ": :",
    "? ?",
    "|",
    ">",
    "@",
    "`",
    "%YAML 9.9",
    "---\n---",
    "2020-13-45",
]
LONG = ["x" * 5000, "[" * 3000, "[" * 3000 + "]" * 3000, "{a: " * 3000 + "1" + "}" * 3000, "../" * 50, "9" * 5000]
TEXTS = [*NUMBERS, *WORDS, *MARKUP, *CONTROL, *UNICODE, *BROKEN, *LONG]

KEYS = [
    "seed_everything", "ckpt_path", "trainer", "trainer.max_steps", "trainer.max_epochs", "trainer.max_time", "trainer.devices",
    "trainer.accelerator", "trainer.precision", "trainer.callbacks", "trainer.callbacks+", "trainer.gradient_clip_val",
    "trainer.accumulate_grad_batches", "trainer.val_check_interval", "trainer.limit_val_batches", "trainer.strategy",
    "trainer.default_root_dir", "trainer.enable_progress_bar", "trainer.profiler", "trainer.plugins", "trainer.logger", "model",
    "model.policy", "model.policy.config", "model.policy.config.hidden_size", "model.policy.size", "model.policy.tokenizer",
    "model.policy.lora", "model.policy.lora.r", "model.policy.dtype", "model.optimizer", "model.optimizer.lr",
    "model.optimizer.betas", "model.schedule", "model.schedule.name", "model.schedule.options", "model.evaluation",
    "model.evaluation.max_new_tokens", "model.evaluation.correct", "model.sampler", "model.sampler.temperature",
    "model.sampler.top_k", "model.sampler.max_new_tokens", "model.reward", "model.objective", "model.objective.clip_low",
    "model.objective.correction.method", "model.overlong.action", "model.group_size", "model.epochs", "model.minibatches",
    "model.kl_coef", "data", "data.grammar", "data.grammar.max_digits", "data.grammar.operators", "data.batch_size",
    "data.epoch_size", "data.val_problems", "data.num_workers", "data.eval_batch_size", "model.help", "model.sampler.help",
    "data.help", "print_config", "config", "help",
]  # fmt: skip


class Inputs:
    """Odd inputs, the same ones for the same seed.

    Args:
        seed: seed of all draws.
        folder: folder of files that the inputs name.
    """

    def __init__(self, seed: int, folder: Path) -> None:
        self.draw, self.folder = random.Random(seed), folder
        self.sft = self._file("sft.yaml", yaml.safe_dump(tiny_config(folder / "run")).encode())
        self.grpo = self._file("grpo.yaml", yaml.safe_dump(tiny_config(folder / "run", "GRPO")).encode())

    def command_line(self) -> list[str]:
        """A command, a config that runs, and one to three odd flags."""
        args = ["--config", self.draw.choice([self.sft, self.grpo])]
        for _ in range(self.draw.randint(1, 3)):
            key, text = self._key(), self._text()
            args += self.draw.choice([[f"--{key}", text], [f"--{key}={text}"], [f"--{key}"], [text]])
        command = self.draw.choice(["fit"] * 12 + ["validate", "test", "predict", "pipeline", self._text()])
        place = self.draw.choice([0, 0, 0, self.draw.randint(0, len(args))])
        return [*args[:place], command, *args[place:]]

    def config(self) -> list[str]:
        """``fit`` with a config that runs, and an odd one over it."""
        content: Any = {}
        for _ in range(self.draw.randint(1, 3)):
            inner = content
            *above, last = self._key().split(".")
            for part in above:
                inner = inner[part] if isinstance(inner.get(part), dict) else inner.setdefault(part, {})
                if not isinstance(inner, dict):  # an odd value has the place already
                    inner = {}
                # As files write it, or as they should not.
                inner = inner.setdefault("init_args", {}) if part in ("model", "data") and self.draw.random() < 0.8 else inner
            inner[last] = self._value(3)
        odd = self._file("odd.yaml", self._damaged(lambda: _dump(content)))
        return ["fit", "--config", self.draw.choice([self.sft, self.grpo]), "--config", odd]

    def data(self) -> list[str]:
        """``fit`` on a JSONL file with an odd line between right ones."""
        row = {"question": "What is 1 + 1?", "answer": "It is 2.\n#### 2", "text": "a b"}
        source = self.draw.choice(["GSM8K", "OmniMath", "Corpus"])
        if source == "OmniMath":
            row = {"problem": "1 + 1", "solution": "2", "answer": "2", "domain": ["Sums"], "difficulty": 1.0, "source": "me"}
        odd = {**row, self.draw.choice([*row, self._text()]): self._value(2)}
        line = self._damaged(lambda: _json(self.draw.choice([odd, self._value(2)])))
        lines = [json.dumps(row | {next(iter(row)): f"What is {number}?"}).encode() for number in range(40)]
        lines.insert(self.draw.randint(0, 40), line)
        file = self._file("data.jsonl", b"\n".join(lines if self.draw.random() < 0.95 else [line]))
        flags = ["--data.malformed", "skip"] if source != "Corpus" and self.draw.random() < 0.2 else []
        flags += ["--data.cache_folder", str(self.folder / "cache")] if source == "Corpus" else []
        options = {"GSM8K": {"test_path": file}, "Corpus": {"window": 8}}.get(source, {})
        data = {"class_path": source, "init_args": {"path": file, "batch_size": 2, **options}}
        config = {**tiny_config(self.folder / "run"), "data": data}
        config["model"]["init_args"]["policy"] = {**config["model"]["init_args"]["policy"], "tokenizer": "bytes"}
        return ["fit", "--config", self._file("data.yaml", yaml.safe_dump(config).encode()), *flags]

    def comparison(self) -> list[str]:
        """``compare`` with two policies and a config that runs, of which something is odd."""
        policies = ["a=x", "b=y"]
        for _ in range(self.draw.randint(0, 1)):
            policies.insert(self.draw.randint(0, 2), self.draw.choice([self._text(), f"{self._text()}={self._text()}", "a=z"]))
        key = self.draw.choice(["split", "limit", "folder", "folder", self._key()])
        value = self._name() if key == "folder" else self._text()
        args = [*policies, "--config", self.draw.choice([self.sft, self.grpo]), *[f"--{key}", value][: self.draw.randint(0, 2)]]
        place = self.draw.choice([0, 0, 0, self.draw.randint(0, len(args))])
        return [*args[:place], "compare", *args[place:]]

    def pipeline(self) -> list[str]:
        """``pipeline`` with a file of two stages of which something is odd."""
        stage = {"run": "fit", "config": self.sft, "set": {"trainer.max_steps": 1}}
        second: dict[str, Any] = self.draw.choice(
            [
                stage,
                {"run": "compare", "policies": {"a": "x", "b": "y"}, "config": self.sft, "set": {"limit": 1}},
                {"run": "export", "source": "${stages.first.export}", "set": {"dtype": "float32"}},
            ]
        )
        stages: dict[Any, Any] = {"first": dict(stage), "second": dict(second)}
        spec: dict[Any, Any] = {"folder": str(self.folder / "runs"), "stages": stages}
        place = self.draw.choice([spec, stages, stages["second"], stages["second"]["set"]])
        if place is stages["second"]["set"]:
            place = stages["second"]["set"] = dict(place)
        name = self.draw.choice([*place, self._value(0), self._key()])
        place[name if isinstance(name, str | int | float | None) else str(name)] = self._value(2)
        file = self._file("pipeline.yaml", self._damaged(lambda: _dump(spec)))
        return ["pipeline", file, *self.draw.choice([*[[]] * 12, ["--folder"], ["--folder", self._name()], [self._text()]])]

    # --- parts ------------------------------------------------------------------------------------------------------

    def _file(self, name: str, content: bytes) -> str:
        path = self.folder / name
        path.write_bytes(content)
        return str(path)

    def _text(self) -> str:
        text = self.draw.choice(TEXTS)
        return text if self.draw.random() < 0.8 else text + self.draw.choice(TEXTS)

    def _name(self) -> str:
        """A name below the current folder."""
        return "out/" + self._text().replace("/", "_").replace("..", "_")[:300]

    def _key(self) -> str:
        key = self.draw.choice(KEYS)
        if self.draw.random() < 0.2:
            place = self.draw.randint(0, len(key))
            key = key[:place] + self.draw.choice([*CONTROL, *UNICODE, ".", "..", "x", "=", " "]) + key[place:]
        return key

    def _value(self, depth: int) -> Any:
        kind = self.draw.choice(["text", "text", "number", "constant", "list", "mapping"]) if depth else "text"
        if kind == "text":
            return self._text()
        if kind == "number":
            return self.draw.choice([0, -1, 1, 10**25, 1.5, 1e308, float("inf"), float("nan"), -0.0, 2**31, 2**63])
        if kind == "constant":
            return self.draw.choice([None, True, False, [], {}, ""])
        if kind == "list":
            return [self._value(depth - 1) for _ in range(self.draw.randint(0, 3))]
        keys = [self.draw.choice(["class_path", "init_args", "dict_kwargs", 1, None, True, self._text()]) for _ in range(2)]
        return {key: self._value(depth - 1) for key in keys}

    def _damaged(self, write: Callable[[], bytes]) -> bytes:
        """What ``write`` gives, now and then cut off, with a wrong byte, or something else altogether."""
        content = write()
        kind = self.draw.random()
        if kind < 0.7 or not content:
            return content
        place = self.draw.randrange(len(content))
        odd = self.draw.choice([b"\x00", b"\xff", b"\x1b[2J", b"\xed\xa0\x80", b"\t", b"[", b"}", b"\r", b"&a ", b"*a "])
        if kind < 0.8:
            return content[:place] + odd + content[place:]
        if kind < 0.9:
            return content[:place]
        return self.draw.choice(
            [b"", b"\n", bytes(range(256)), odd * 2000, b"\xff\xfe" + content, self._text().encode(errors="surrogatepass")]
        )


def _dump(content: Any) -> bytes:
    return yaml.safe_dump(content, allow_unicode=True).encode("utf-8", errors="surrogatepass")


def _json(content: Any) -> bytes:
    # Keys that JSON lacks become texts.
    return json.dumps(content, ensure_ascii=False, default=str).encode("utf-8", errors="surrogatepass")
