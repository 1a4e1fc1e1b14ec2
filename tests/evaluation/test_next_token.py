"""Next-token accuracy, plain and after reasoning, by entropy band."""

from types import SimpleNamespace

import pytest
import torch
from conftest import TINY, quiet_trainer

from lit_rl.algorithms import RPT
from lit_rl.callbacks import Improvement
from lit_rl.datamodules import PromptDataModule
from lit_rl.datamodules.positions import Positions
from lit_rl.evaluation import NextTokenEvaluation
from lit_rl.models import PolicySpec
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


def evaluated(entropies=None, **options) -> SimpleNamespace:
    """A tiny model that continues the texts directly, its data, and its metrics."""
    torch.manual_seed(0)
    evaluation = NextTokenEvaluation(2, WHOLE, **options)
    spec = PolicySpec(config={"model_type": "llama", **TINY, "initializer_range": 0.5}, tokenizer="bytes")
    module = RPT(spec, template="direct", sampler=Sampler(2), evaluation=evaluation)
    module.configure_model()
    data = Texts(module, entropies)
    quiet_trainer(None, limit_val_batches=1.0).validate(module, data, verbose=False)
    metrics = {name: float(value) for name, value in module.trainer.callback_metrics.items()}
    return SimpleNamespace(module=module, data=data, metrics=metrics)


@pytest.fixture(scope="module")
def banded():
    """Entropies from 0 to 1.4 nats: no position is hard."""
    return evaluated(torch.linspace(0, 1.4, 30))


@pytest.fixture(scope="module")
def unbanded():
    return evaluated(samples=4, temperature=1.0)


def greedy_hits(run: SimpleNamespace) -> torch.Tensor:
    """Whether the most likely next token is the true one, by a plain forward of each text."""
    hits = []
    for place in range(len(run.data.val_set)):
        sample = run.data.val_set[place]
        logits = run.module.policy.model(torch.tensor([list(sample.context)])).logits
        hits.append(float(logits[0, -1].argmax() == sample.target[0]))
    return torch.tensor(hits)


def test_the_plain_accuracy_is_that_of_the_most_likely_token(unbanded):
    assert 0 < unbanded.metrics["val/ntp_accuracy"] < 1
    assert unbanded.metrics["val/ntp_accuracy"] == pytest.approx(float(greedy_hits(unbanded).mean()))


def test_bands_are_those_above_their_entropy_and_nested(banded):
    hits, entropies = greedy_hits(banded), torch.linspace(0, 1.4, 30)
    for band, floor in {"easy": 0.5, "medium": 1.0}.items():
        assert banded.metrics[f"val/ntp_accuracy_{band}"] == pytest.approx(float(hits[entropies > floor].mean())), band
        assert f"val/accuracy_{band}" in banded.metrics


def test_a_band_without_positions_has_no_metric(banded):
    assert not [name for name in banded.metrics if "hard" in name]


def test_without_entropies_there_are_no_bands(unbanded):
    assert "val/accuracy" in unbanded.metrics
    assert not [name for name in unbanded.metrics if "easy" in name]


def test_accuracy_and_matched_tokens_are_those_of_the_greedy_continuations(unbanded):
    matched = []
    for place in range(len(unbanded.data.val_set)):
        sample = unbanded.data.val_set[place]
        ids = list(sample.context)
        for _ in range(2):
            ids.append(int(unbanded.module.policy.model(torch.tensor([ids])).logits[0, -1].argmax()))
        said, follows = ids[len(sample.context) :], list(sample.target)
        matched.append(next((n for n in range(2) if said[n : n + 1] != follows[n : n + 1]), 2))
    assert 0 < sum(count == 2 for count in matched) < 30
    assert unbanded.metrics["val/matched_tokens"] == pytest.approx(sum(matched) / 30)
    assert unbanded.metrics["val/accuracy"] == pytest.approx(sum(count == 2 for count in matched) / 30)


def test_pass_at_k_is_at_least_pass_at_1(unbanded):
    assert unbanded.metrics["val/pass_at_4"] >= unbanded.metrics["val/pass_at_1"]


def test_a_metric_that_is_no_share_is_not_shown_in_percent():
    metrics = {"value": 0.789, "low": 0.738, "high": 0.84, "step": 3}
    assert Improvement("val/matched_tokens", percent=False)._line(metrics) == "0.789 (0.738 to 0.840) at step 3"
    assert Improvement()._line(metrics) == "78.9 % (73.8 to 84.0) at step 3"
