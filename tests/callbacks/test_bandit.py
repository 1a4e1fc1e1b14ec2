"""The bandit in a run: what an arm earns, which arms draw, and that a resumed run goes on with the same ones."""

import pytest
import torch
from arm_runs import ARMS, grpo, stories
from conftest import quiet_trainer, tiny_data
from grpo_runs import Watch
from lightning.pytorch.callbacks import ModelCheckpoint
from resumed_runs import assert_same_end, run
from resumed_runs import grpo as plain_grpo
from tiny_rollouts import prompts_of, rollouts_of

from lit_rl.callbacks import Bandit, DynamicSampling
from lit_rl.callbacks.bandit import earnings
from lit_rl.rewards import RegimeW
from lit_rl.sampling import ArmSampler

NAMES = [arm.name for arm in ARMS]


def test_what_arms_earn():
    advantages = torch.tensor([[1.0, 1.0], [-3.0, 0.0], [0.5, 0.5], [9.0, 0.0]])
    rollouts = rollouts_of(
        prompts_of([1], [2]),
        2,
        [[4, 5], [4], [4, 5], [4]],
        rewards=torch.tensor([1.0, 0.0, 0.5, 9.0]),
        advantages=advantages,
        arm=torch.tensor([2, 0, 2, 0]),
        scored=torch.tensor([True, True, True, False]),
    )
    # Arm 0: a reward of 0; arm 2: 1 and 0.5.
    assert earnings(rollouts, "reward", 3).tolist() == [[1, 0, 2], [0, 0, 1.5], [0, 0, 1.25]]
    assert earnings(rollouts, "advantage", 3).tolist() == [[1, 0, 2], [3, 0, 1.5], [9, 0, 1.25]]


class Arms(Watch):
    """Arms of each rollout's rows, question by question, and what the bandit knew when it chose."""

    def __init__(self, bandit):
        super().__init__()
        self.bandit, self.known = bandit, []

    def on_rollout_end(self, trainer, module, rollouts):
        self.known.append(self.bandit.statistics.totals.copy())
        return super().on_rollout_end(trainer, module, rollouts)


@pytest.mark.parametrize(("method", "signal"), [("thompson", "reward"), ("ucb", "advantage")])
def test_a_bandit_draws_each_question_from_few_arms_and_learns_from_all_rows(tmp_path, method, signal):
    bandit = Bandit(method, signal, arms_per_question=2)
    watch = Arms(bandit)
    module = grpo(group_size=4, epochs=1, minibatches=1)
    trainer = quiet_trainer(tmp_path, max_steps=3, callbacks=[bandit, watch])
    trainer.fit(module, stories())
    for number, (rollouts, totals) in enumerate(zip(watch.rollouts, watch.known, strict=True)):
        arms = rollouts.arm[rollouts.rows_of(range(8))].view(8, 4)
        assert [len(set(row)) for row in arms.tolist()] == [2] * 8
        assert totals[0].sum() == 32 * number  # nothing is known before the first rollout
        if number + 1 < len(watch.known):
            earned = earnings(rollouts, signal, len(ARMS)).numpy()
            assert (watch.known[number + 1] == totals + earned).all()
    values = {name: value for name, value in watch.metrics[-1].items() if name.startswith("arms/")}
    assert {name for name in values if name.endswith("/value")} == {f"arms/{name}/value" for name in NAMES}
    assert sum(value for name, value in values.items() if name.endswith("/share")) == pytest.approx(1)
    assert module.sampler.choose is None  # another fit draws from all arms


def test_arms_and_bandit_resume_to_the_last_bit(tmp_path):
    """Between two rollouts, and inside one whose arms have been counted; changed questions are asked, groups drawn again."""
    saver = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_on_train_epoch_end=False, save_top_k=-1)

    def build():
        return grpo(reward=RegimeW(per="response", counterfactual_tokens=6))

    def again(*others, **options):
        return run(
            build, tmp_path, 16, [Bandit(arms_per_question=2, decay=0.9), DynamicSampling(), *others], data=stories(), **options
        )

    whole = again(saver)
    assert any(name.startswith("arms/") for name in whole[3][1])
    for step in (4, 5):
        assert_same_end(whole, again(ckpt_path=tmp_path / f"step={step}.ckpt"), step)


def test_a_checkpoint_of_other_arms_is_refused(tmp_path):
    saver = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    run(grpo, tmp_path, 16, [Bandit(arms_per_question=2), saver], data=stories(), max_steps=1)

    def fewer():
        return grpo(sampler=ArmSampler(max_new_tokens=6, arms=ARMS[:3], styles={"short": "", "long": "Say why."}))

    with pytest.raises(ValueError, match=r"drew from the arms short-0.6, short-1, long-0.6, long-1, and this run"):
        run(fewer, tmp_path, 16, [Bandit(arms_per_question=2)], data=stories(), ckpt_path=tmp_path / "step=1.ckpt")


def test_a_bandit_needs_arms_to_choose_from(tmp_path):
    with pytest.raises(ValueError, match="Bandit chooses among arms, and this run has none"):
        run(plain_grpo, tmp_path, 16, [Bandit()], data=tiny_data())
    with pytest.raises(ValueError, match="arms_per_question is 4 of 4 arms, which leaves nothing to choose"):
        run(grpo, tmp_path, 16, [Bandit(arms_per_question=4)], data=stories())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "greedy"}, "Bandit.method is 'greedy'; write one of thompson, ucb"),
        ({"signal": "loss"}, "Bandit.signal is 'loss'; write one of reward, advantage"),
        ({"arms_per_question": 0}, "Bandit.arms_per_question is 0; write 1 or more"),
        ({"exploration": -1.0}, r"Bandit.exploration is -1.0; write 0 or more"),
        ({"decay": 0.0}, "Bandit.decay is 0.0; write a factor above 0"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Bandit(**options)
