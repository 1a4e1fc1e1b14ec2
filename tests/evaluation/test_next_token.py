"""Next-token accuracy: plain and after reasoning, by entropy band, and the table of it."""

import pytest
import torch
from conftest import TINY, quiet_trainer

from lit_rl.algorithms import RPT
from lit_rl.callbacks import Improvement
from lit_rl.datamodules import PromptDataModule
from lit_rl.datamodules.positions import Positions
from lit_rl.evaluation import NextTokenEvaluation
from lit_rl.evaluation.metrics import Mean
from lit_rl.models import PolicySpec
from lit_rl.reports.tables import band_table
from lit_rl.rewards import AnswerFormat, PrefixMatch
from lit_rl.sampling import Sampler
from lit_rl.tasks.tokenizers import byte_tokenizer
from lit_rl.text.token_bytes import token_bytes
from lit_rl.text.windows import Windows

WHOLE = PrefixMatch(AnswerFormat(after="", opening="", closing=""))


class Texts(PromptDataModule):
    """Positions of short texts that the model's greedy continuation agrees with in part, with entropies that are given."""

    def __init__(self, module: RPT, entropies: torch.Tensor | None) -> None:
        super().__init__(batch_size=4, eval_batch_size=7)
        rows = torch.randint(40, 60, (10, 3)).tolist()
        for number, row in enumerate(rows):
            for place in range(3):
                likely = int(module.policy.model(torch.tensor([row])).logits[0, -1].argmax())
                row.append(likely if place < number % 4 else 5)
        self.val_set = Positions(Windows.of_documents([row[:3] for row in rows], [row[3:] for row in rows]), PIECES, 3)
        self.val_set.entropies = None if entropies is None else entropies.numpy()
        self.train_set = self.test_set = self.val_set


PIECES = token_bytes(byte_tokenizer())


def evaluated(entropies=None, **options) -> tuple[RPT, Texts, dict[str, float]]:
    """The figures of a tiny model that continues the texts directly."""
    evaluation = NextTokenEvaluation(2, WHOLE, **options)
    spec = PolicySpec(config={"model_type": "llama", **TINY, "initializer_range": 0.5}, tokenizer="bytes")
    module = RPT(spec, template="direct", sampler=Sampler(2), evaluation=evaluation)
    module.configure_model()
    data = Texts(module, entropies)
    quiet_trainer(None, limit_val_batches=1.0).validate(module, data, verbose=False)
    return module, data, {name: float(value) for name, value in module.trainer.callback_metrics.items()}


def greedy_hits(module: RPT, data: Texts) -> list[bool]:
    """Whether the most likely next token is the true one, by a plain forward of each text."""
    hits = []
    for place in range(len(data.val_set)):
        sample = data.val_set[place]
        logits = module.policy.model(torch.tensor([list(sample.context)])).logits
        hits.append(int(logits[0, -1].argmax()) == sample.target[0])
    return hits


def test_the_plain_accuracy_is_that_of_the_most_likely_token():
    module, data, metrics = evaluated()
    assert 0 < metrics["val/ntp_accuracy"] < 1
    assert metrics["val/ntp_accuracy"] == pytest.approx(sum(greedy_hits(module, data)) / 30)


def test_bands_are_those_above_their_entropy_and_nested():
    entropies = torch.linspace(0, 2, 30)
    module, data, metrics = evaluated(entropies)
    hits = torch.tensor(greedy_hits(module, data)).float()
    for band, floor in {"easy": 0.5, "medium": 1.0, "hard": 1.5}.items():
        assert metrics[f"val/ntp_accuracy_{band}"] == pytest.approx(float(hits[entropies > floor].mean()))


def test_a_band_without_positions_has_no_figure():
    _, _, metrics = evaluated(torch.full((30,), 0.7))
    assert "val/accuracy_easy" in figures
    assert "val/accuracy_medium" not in figures


def test_without_entropies_there_are_no_bands():
    _, _, metrics = evaluated()
    assert "val/accuracy" in figures
    assert not [name for name in figures if "easy" in name]


def test_accuracy_and_matched_tokens_are_those_of_the_greedy_continuations():
    module, data, metrics = evaluated()
    matched = []
    for place in range(len(data.val_set)):
        sample = data.val_set[place]
        ids = list(sample.context)
        for _ in range(2):
            ids.append(int(module.policy.model(torch.tensor([ids])).logits[0, -1].argmax()))
        said, follows = ids[len(sample.context) :], list(sample.target)
        matched.append(next((n for n in range(2) if said[n : n + 1] != follows[n : n + 1]), 2))
    assert 0 < sum(count == 2 for count in matched) < 30
    assert metrics["val/matched_tokens"] == pytest.approx(sum(matched) / 30)
    assert metrics["val/accuracy"] == pytest.approx(sum(count == 2 for count in matched) / 30)


def test_pass_at_k_is_at_least_pass_at_1():
    _, _, metrics = evaluated(samples=4, temperature=1.0)
    assert metrics["val/pass@4"] >= metrics["val/pass@1"]


def test_a_mean_has_the_interval_of_its_standard_error():
    metric = Mean()
    metric.update(torch.tensor([1.0, 2.0]))
    metric.update(torch.tensor([3.0, 4.0]))
    # mean 2.5, variance 1.6667 with n - 1, standard error sqrt(1.6667 / 4) = 0.645497
    assert metric.compute() == pytest.approx({"mean": 2.5, "low": 2.5 - 1.265151, "high": 2.5 + 1.265151}, abs=1e-5)


def test_the_table_has_a_line_for_each_run_and_kind_of_prediction():
    names = {f"test/{kind}{band}{side}" for kind in ("accuracy", "ntp_accuracy") for band in ("", "_easy", "_medium", "_hard")
             for side in ("", "_low", "_high")}  # fmt: skip
    table = band_table({"before": dict.fromkeys(names, 0.5), "training": {"reward": 1.0}}).splitlines()
    assert table[0] == "| run | prediction | easy (> 0.5 nats) | medium (> 1.0 nats) | hard (> 1.5 nats) | all |"
    cell = "50.0 (50.0 to 50.0)"
    assert table[2:] == [
        f"| before | {kind} | {cell} | {cell} | {cell} | {cell} |" for kind in ("next token at once", "after reasoning")
    ]


def test_without_bands_there_is_no_table():
    assert band_table({"run": {"val/accuracy": 0.5}}) == ""


def test_a_figure_that_is_no_share_is_not_shown_in_percent():
    metrics = {"value": 0.789, "low": 0.738, "high": 0.84, "step": 3}
    assert Improvement("val/matched_tokens", percent=False)._line(metrics) == "0.789 (0.738 to 0.840) at step 3"
    assert Improvement()._line(metrics) == "78.9 % (73.8 to 84.0) at step 3"
