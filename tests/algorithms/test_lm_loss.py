"""The language-model loss beside the policy's, and a run with every option that stops and resumes."""

import functools

import pytest
import torch
from conftest import quiet_trainer, tiny_data, tiny_spec
from grpo_runs import MOVING, STILL, Length, Watch, assert_same, flat, watched
from lightning.pytorch.callbacks import ModelCheckpoint
from resumed_runs import Stopped, Stopper, assert_same_end, run
from torch import Tensor

from lit_rl.algorithms import GRPO, SFT
from lit_rl.datamodules import PromptDataModule
from lit_rl.evaluation import Evaluation
from lit_rl.objectives import Correction, Objective
from lit_rl.rewards import Reward
from lit_rl.sampling import Sampler
from lit_rl.training import Schedule
from lit_rl.types import Sample


class Equal(Reward):
    """The same for all: no group has a signal."""

    def score(self, rollouts):
        return torch.ones(len(rollouts))


def likelihood_loss(module: GRPO, samples: list[Sample]) -> Tensor:
    """Mean negative log-likelihood of the true completions by the model's own full logits, one row at a time."""
    tokenizer, total, count = module.tokenizer, 0.0, 0
    for sample in samples:
        prompt = tokenizer(sample.prompt, add_special_tokens=False)["input_ids"]
        row = prompt + tokenizer(sample.completion, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        logp = module.policy.causal_lm(torch.tensor([row])).logits.log_softmax(-1)[0]
        for place in range(len(prompt), len(row)):
            total = total - logp[place - 1, row[place]]
            count += 1
    return total / count


def likelihood_gradient(module: GRPO, samples: list[Sample]) -> Tensor:
    return flat(torch.autograd.grad(likelihood_loss(module, samples), list(module.policy.parameters())))


@pytest.fixture(scope="module", params=[(3, 1), (2, 2)], ids=["3 micro-batches", "2 minibatches of 2 micro-batches"])
def with_and_without(request, tmp_path_factory) -> tuple[GRPO, Watch, Watch]:
    """One rollout with the language-model loss, and one without it; weights stay as they are."""
    accumulate, minibatches = request.param
    options = {"dtype": "float64", "steps": minibatches, "accumulate": accumulate, "minibatches": minibatches}
    torch.manual_seed(0)
    module, both = watched(tmp_path_factory.mktemp("both"), lm_coef=0.3, **options)
    torch.manual_seed(0)
    return module, both, watched(tmp_path_factory.mktemp("alone"), **options)[1]


def test_the_gradient_is_that_of_the_policy_and_a_share_of_the_likelihoods(with_and_without):
    module, both, alone = with_and_without
    assert sum(map(len, both.prompts)) == 8
    for step, gradient in enumerate(both.gradients):
        expected = alone.gradients[step] + 0.3 * likelihood_gradient(module, both.prompts[step])
        assert_same(gradient, expected, 1e-10)


def test_the_log_shows_the_mean_over_the_targets_of_a_step(with_and_without):
    module, both, alone = with_and_without
    for step, metrics in enumerate(both.metrics):
        expected = float(likelihood_loss(module, both.prompts[step]).detach())
        assert metrics["lm_loss"] == pytest.approx(expected, rel=1e-6)
        assert metrics["loss"] == pytest.approx(alone.metrics[step]["loss"] + 0.3 * expected, rel=1e-6)
        assert "lm_loss" not in alone.metrics[step]


def test_without_a_signal_the_gradient_is_a_share_of_sfts(tmp_path):
    _, watch = watched(tmp_path, dtype="float64", accumulate=2, reward=Equal(), lm_coef=0.3)
    dry = tiny_spec("gpt2", "float64", config={"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0})
    sft = SFT(dry, optimizer=STILL, evaluation=Evaluation(max_new_tokens=4))
    gradients = Gradients()
    quiet_trainer(tmp_path, max_steps=1, callbacks=[gradients]).fit(sft, tiny_data())
    # The shares of SFT's tokens are float32.
    assert_same(watch.gradients[0], 0.3 * gradients.gradients[0], 1e-6)


class Gradients(Watch):
    """Keeps gradients of supervised training, whose rows have no samples."""

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        pass


def test_it_raises_the_likelihood_of_true_completions(tmp_path):
    _, watch = watched(tmp_path, data=tiny_data(epoch_size=8), steps=10, lm_coef=1.0, reward=Equal(), optimizer=MOVING)
    assert watch.metrics[-1]["lm_loss"] < watch.metrics[0]["lm_loss"] - 0.5


class NoSolutions(PromptDataModule):
    """Problems; one has no solution."""

    def setup(self, stage):
        problems = [Sample("<bos><big>1+1<answer>", "" if n == 5 else "2", "2", 40 + n) for n in range(8)]
        self.train_set = self.val_set = self.test_set = problems


def test_samples_without_a_completion_are_refused_in_one_line(tmp_path):
    with pytest.raises(ValueError, match="sample 45 has no completion to learn") as refusal:
        watched(tmp_path, data=NoSolutions(batch_size=8), lm_coef=0.1)
    assert "\n" not in str(refusal.value)


def test_samples_without_a_completion_do_if_there_is_no_such_loss(tmp_path):
    _, watch = watched(tmp_path, data=NoSolutions(batch_size=8))
    assert len(watch.gradients) == 1


# --- stop and resume ---------------------------------------------------------------------------------------------


def everything():
    settings = {
        "baseline": "batch",
        "advantage_scale": "batch",
        "epochs": 2,
        "minibatches": 2,
        "kl_coef": 0.1,
        "lm_coef": 0.1,
        "objective": Objective(kl_in="reward", top_entropy=0.5, off_policy_threshold=0.1, correction=Correction("truncate")),
    }
    return GRPO(
        tiny_spec(),
        sampler=Sampler(max_new_tokens=4),
        reward=Length(),
        optimizer=functools.partial(torch.optim.AdamW, lr=1e-2),
        schedule=Schedule("cosine", warmup_steps=2),
        evaluation=Evaluation(max_new_tokens=4),
        group_size=4,
        **settings,
    )


def test_a_run_with_every_option_resumes_in_a_rollout_to_the_last_bit(tmp_path):
    stop, options = 6, {"accumulate_grad_batches": 2}
    whole = run(everything, tmp_path, 64, **options)
    saver = ModelCheckpoint(tmp_path, "at", every_n_train_steps=stop, save_on_train_epoch_end=False)
    with pytest.raises(Stopped):
        run(everything, tmp_path, 64, [saver, Stopper(stop)], **options)
    resumed = run(everything, tmp_path, 64, ckpt_path=tmp_path / "at.ckpt", **options)
    assert_same_end(whole, resumed, stop)
