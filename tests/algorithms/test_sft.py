"""SFT: what carries loss, which optimizers run, what is refused."""

import functools

import bitsandbytes as bnb
import pytest
import torch
from conftest import quiet_trainer, tiny_data, tiny_spec
from lightning.pytorch.callbacks import Callback

from lit_rl.algorithms import SFT
from lit_rl.evaluation import Evaluation

SHORT = Evaluation(max_new_tokens=4)


class Losses(Callback):
    def __init__(self):
        self.values = []

    def on_train_batch_end(self, trainer, *_):
        self.values.append(float(trainer.callback_metrics["loss"]))


def first_loss(folder, **options):
    losses = Losses()
    module = SFT(tiny_spec(), evaluation=SHORT, **options)
    quiet_trainer(folder, max_steps=1, callbacks=[losses]).fit(module, tiny_data())
    return losses.values[0]


def expected_loss(completion_only):
    """Mean negative log-likelihood of the same batch by the model's own full logits, one row at a time."""
    module, data = SFT(tiny_spec(), evaluation=SHORT), tiny_data()
    module.configure_model()
    data.setup("fit")
    tokenizer, total, count = module.tokenizer, 0.0, 0
    for number in range(8):
        sample = data.train_set[number]
        prompt = tokenizer(sample.prompt, add_special_tokens=False)["input_ids"]
        row = prompt + tokenizer(sample.completion, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        logp = module.policy.causal_lm(torch.tensor([row])).logits.log_softmax(-1)[0]
        for place in range(len(prompt) if completion_only else 1, len(row)):
            total -= float(logp[place - 1, row[place]])
            count += 1
    return total / count


@pytest.mark.parametrize("completion_only", [True, False])
def test_loss_is_the_mean_over_target_tokens(tmp_path, completion_only):
    assert first_loss(tmp_path, completion_only=completion_only) == pytest.approx(expected_loss(completion_only), rel=1e-5)


@pytest.mark.parametrize("optimizer", [torch.optim.Adafactor, bnb.optim.PagedAdamW8bit])
def test_any_optimizer_trains(tmp_path, optimizer):
    losses = Losses()
    module = SFT(tiny_spec(config={"hidden_size": 64}), optimizer=functools.partial(optimizer, lr=1e-2), evaluation=SHORT)
    quiet_trainer(tmp_path, max_steps=10, callbacks=[losses]).fit(module, tiny_data(epoch_size=200))
    assert losses.values[-1] < losses.values[0]


def test_validation_without_generation_logs_the_loss_alone(tmp_path):
    module = SFT(tiny_spec(), evaluation=Evaluation(max_new_tokens=0))
    metrics = quiet_trainer(tmp_path, limit_val_batches=1.0).validate(module, tiny_data(), verbose=False)[0]
    assert set(metrics) == {"val/loss", "val/mean_token_accuracy"}


def test_a_loader_that_is_not_a_training_stream_is_refused(tmp_path):
    data = tiny_data()
    data.train_dataloader = lambda: torch.utils.data.DataLoader(data.train_set)
    with pytest.raises(ValueError, match=r"must return trainer\.lightning_module\.training_data\(loader\)\.$"):
        quiet_trainer(tmp_path, max_steps=1).fit(SFT(tiny_spec(), evaluation=SHORT), data)


def test_a_row_beyond_the_context_is_named(tmp_path):
    module = SFT(tiny_spec(config={"max_position_embeddings": 8}), evaluation=SHORT)
    with pytest.raises(ValueError, match=r"sample \d+ has \d+ tokens .* more than the model's 8 positions"):
        quiet_trainer(tmp_path, max_steps=1).fit(module, tiny_data())


def test_validation_logs_loss_token_accuracy_and_answer_accuracy(tmp_path):
    module = SFT(tiny_spec(), evaluation=Evaluation(max_new_tokens=4, samples=3))
    trainer = quiet_trainer(tmp_path, limit_val_batches=1.0)
    metrics = trainer.validate(module, tiny_data(), verbose=False)[0]
    names = {"loss", "mean_token_accuracy", "accuracy", "accuracy_low", "accuracy_high", "truncated", "pass_at_3", "maj_at_3"}
    assert {f"val/{name}" for name in names} <= set(metrics)


def test_a_test_logs_loss_and_token_accuracy_too(tmp_path):
    module, data = SFT(tiny_spec(), evaluation=SHORT), tiny_data()
    trainer = quiet_trainer(tmp_path, limit_val_batches=1.0, limit_test_batches=1.0)
    tested = trainer.test(module, data, verbose=False)[0]
    assert {"test/loss", "test/mean_token_accuracy"} <= tested.keys()
    assert 0 < tested["test/loss"] < 10
