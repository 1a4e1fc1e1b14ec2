"""Groups without signal make room for fresh ones: which prompts come, what is counted, on two ranks and after a restart."""

import functools
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import quiet_trainer, tiny_spec
from lightning.pytorch.callbacks import ModelCheckpoint
from resumed_runs import Logged, Stopped, Stopper, assert_same_end, run
from torch.utils.data import Dataset

from lit_rl.algorithms import GRPO, SFT
from lit_rl.callbacks import DynamicSampling
from lit_rl.datamodules import PromptDataModule
from lit_rl.evaluation import Evaluation
from lit_rl.hooks import RolloutCallback
from lit_rl.objectives import Objective
from lit_rl.rewards import Reward
from lit_rl.sampling import Sampler
from lit_rl.training import FSDP2Strategy
from lit_rl.types import Sample

RIGHT, WRONG = [1.0, 1.0], [0.0, 0.0]


class Given(Reward):
    """Rewards of the groups of some prompts, by the prompt's number; those of all others differ."""

    def __init__(self, groups):
        self.groups = groups

    def score(self, rollouts):
        members = [0.1 * member for member in range(rollouts.rows_per_prompt)]
        return torch.tensor([reward for number in rollouts.prompts.numbers for reward in self.groups.get(number, members)])


class Third(Reward):
    """Of three prompts one is all right, one is paid by what was sampled, and one has rewards that differ."""

    def score(self, rollouts):
        numbers = torch.tensor(rollouts.prompts.numbers).repeat_interleave(rollouts.rows_per_prompt)
        kinds = torch.stack([torch.ones(len(rollouts)), rollouts.lengths % 2, torch.arange(len(rollouts))])
        return kinds.gather(0, numbers[None] % 3)[0]


class Endless(Dataset):
    """Sample n has the number n, and prompts have three lengths."""

    def __len__(self):
        return 64

    def __getitem__(self, number):
        return Sample(f"<bos><big>{'1' * (1 + number % 3)}+1<answer>", "2", "2", number)


class Numbered(PromptDataModule):
    """The first batch has the prompts 0 to 3, the next one 4 to 7, and so on."""

    endless = True

    def setup(self, stage):
        self.train_set, self.val_set, self.test_set = Endless(), [], []


class Look(RolloutCallback):
    """Keeps prompts before the sampling, finished rollouts, and the micro-batches made of them."""

    def __init__(self):
        self.prompts, self.rollouts, self.batches = [], [], []

    def on_rollout_start(self, trainer, module, prompts):
        self.prompts.append(prompts.numbers)
        return prompts

    def on_rollout_end(self, trainer, module, rollouts):
        self.rollouts.append(rollouts)
        return rollouts

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.batches.append(batch)


def grpo(reward, **options):
    settings = {"sampler": Sampler(max_new_tokens=4), "group_size": 2, "evaluation": Evaluation(max_new_tokens=4)}
    still = functools.partial(torch.optim.SGD, lr=0.0)
    settings |= {"policy": tiny_spec(), "optimizer": still, **options}
    return GRPO(settings.pop("policy"), reward=reward, **settings)


def looked(folder, callback, reward, steps=1, trainer=None, data=None, **options):
    """A run of a few steps, and all metrics that were logged with each of them."""
    look, metrics, module = Look(), Logged(), grpo(reward, **options)
    settings = {"max_steps": steps, "logger": metrics, "callbacks": [callback, look], **(trainer or {})}
    quiet_trainer(folder, **settings).fit(module, data or Numbered(batch_size=4))
    sampling = {"kept", "dropped", "dropped_all_right", "dropped_all_wrong", "rounds"}
    look.metrics = [
        {name: by_name[f"sampling/{name}"] for name in sampling if f"sampling/{name}" in by_name}
        for _, by_name in sorted(metrics.by_step.items())
    ]
    return look


def counted_groups(rollouts):
    return rollouts.in_loss.view(-1, 2).tolist()


def counts_of(kept, right, wrong, rounds):
    named = {"kept": kept, "dropped": right + wrong, "dropped_all_right": right, "dropped_all_wrong": wrong, "rounds": rounds}
    return {name: float(value) for name, value in named.items()}


# --- which prompts come --------------------------------------------------------------------------------------------


def test_dynamic_sampling_refills_groups_with_a_cap_on_attempts_from_a_start_step_and_leaves_the_temperature(tmp_path):
    # Step 0: 0 and 1 stay. Step 1: of 4 to 15 only 15 differs, and two attempts do not reach 16.
    reward = Given(dict.fromkeys([0, 1, *range(4, 15)], WRONG))
    look = looked(tmp_path, DynamicSampling(start_step=1, max_rounds=2), reward, steps=3)
    assert [each.prompts.numbers for each in look.rollouts] == [[0, 1, 2, 3], [15, 5, 6, 7], [16, 17, 18, 19]]
    both, none = [True, True], [False, False]
    assert [counted_groups(each) for each in look.rollouts] == [[both] * 4, [both, none, none, none], [both] * 4]
    assert all((each.temperature == 1).all() for each in look.rollouts)


def test_groups_of_equal_rewards_are_replaced_in_place_and_the_surplus_is_cut(tmp_path):
    look = looked(tmp_path, DynamicSampling(), Given({1: RIGHT, 2: WRONG}), steps=2)
    assert [each.prompts.numbers for each in look.rollouts] == [[0, 4, 5, 3], [8, 9, 10, 11]]
    assert look.rollouts[0].rewards.tolist() == pytest.approx([0.0, 0.1] * 4)
    assert look.rollouts[0].in_loss.all()
    assert look.metrics == [counts_of(4, 1, 1, 1), counts_of(4, 0, 0, 0)]


def test_fresh_prompts_are_drawn_until_the_batch_is_full(tmp_path):
    # 0 to 3 give nothing, 4 to 7 one group, 8 to 11 two, 12 to 15 the last one.
    reward = Given(dict.fromkeys((0, 1, 2, 3, 4, 5, 7, 8, 11), WRONG))
    look = looked(tmp_path, DynamicSampling(), reward)
    assert look.rollouts[0].prompts.numbers == [6, 9, 10, 12]
    assert look.metrics == [counts_of(4, 0, 9, 3)]


def test_a_batch_that_stays_short_keeps_its_size_and_masks_what_is_missing(tmp_path):
    reward = Given({0: RIGHT, 1: RIGHT, 2: WRONG, 4: RIGHT, 5: WRONG, 6: WRONG})
    look = looked(tmp_path, DynamicSampling(max_rounds=1), reward)
    assert look.rollouts[0].prompts.numbers == [7, 1, 2, 3]
    assert counted_groups(look.rollouts[0]) == [[True, True], [False, False], [False, False], [True, True]]
    assert look.metrics == [counts_of(2, 3, 3, 1)]


def test_without_rounds_equal_groups_are_only_left_out(tmp_path):
    look = looked(tmp_path, DynamicSampling(max_rounds=0), Given({0: RIGHT, 3: WRONG}), steps=2)
    assert [each.prompts.numbers for each in look.rollouts] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert counted_groups(look.rollouts[0]) == [[False, False], [True, True], [True, True], [False, False]]
    assert look.metrics[0] == counts_of(2, 1, 1, 0)


def test_before_its_start_step_nothing_is_drawn_masked_or_counted(tmp_path):
    look = looked(tmp_path, DynamicSampling(start_step=9), Given({0: RIGHT}), steps=2)
    assert look.prompts == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert all(each.in_loss.all() for each in look.rollouts)
    assert look.metrics == [{}, {}]


def test_continuous_rewards_are_compared_exactly(tmp_path):
    groups = {0: [0.3, 0.3], 1: [0.3, 0.3 + 1e-7], 2: [-0.7, -0.7], 3: [1000.0, 1000.0625]}
    look = looked(tmp_path, DynamicSampling(), Given(groups))
    assert look.rollouts[0].prompts.numbers == [4, 1, 5, 3]


def test_a_dropped_group_is_all_right_if_its_reward_is_above_0(tmp_path):
    rewards = (1.0, 0.01, 0.0, -0.5)
    look = looked(tmp_path, DynamicSampling(), Given({number: [reward] * 2 for number, reward in enumerate(rewards)}))
    assert look.metrics == [counts_of(4, right=2, wrong=2, rounds=1)]


def test_other_callbacks_see_fresh_prompts_and_the_finished_batch(tmp_path):
    look = looked(tmp_path, DynamicSampling(), Given({0: RIGHT, 5: RIGHT}))
    assert look.prompts == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert [each.prompts.numbers for each in look.rollouts] == [[4, 1, 2, 3]]


class Few(PromptDataModule):
    """Four prompts, again and again."""

    def setup(self, stage):
        self.train_set, self.val_set, self.test_set = [Endless()[number] for number in range(4)], [], []


def test_a_prompt_that_comes_again_in_a_refill_gets_other_completions(tmp_path):
    class Second(Reward):
        """The first draw teaches nothing."""

        first = None

        def score(self, rollouts):
            rewards = torch.arange(len(rollouts), dtype=torch.float32)
            if self.first is None:
                self.first = dict(zip(rollouts.prompts.numbers, zip(*[iter(rollouts.texts)] * 2, strict=True), strict=True))
                return 0 * rewards
            return rewards

    reward = Second()
    again = looked(tmp_path, DynamicSampling(), reward, data=Few(batch_size=4), sampler=Sampler(max_new_tokens=16)).rollouts[0]
    assert sorted(again.prompts.numbers) == [0, 1, 2, 3]
    for place, number in enumerate(again.prompts.numbers):
        assert again.texts[2 * place] not in reward.first[number]


# --- what is learned -----------------------------------------------------------------------------------------------


def test_masked_groups_move_nothing(tmp_path):
    # Without a baseline a reward of 1 for all would raise the probability of whatever was sampled.
    moved = []
    for callback in (RolloutCallback(), DynamicSampling(max_rounds=0)):
        options = {"optimizer": functools.partial(torch.optim.SGD, lr=1.0), "baseline": "none", "advantage_scale": "none"}
        module = grpo(Given(dict.fromkeys(range(4), RIGHT)), **options)
        trainer = quiet_trainer(tmp_path, max_steps=1, callbacks=[callback])
        module.configure_model()
        before = [p.detach().clone() for p in module.policy.parameters()]
        trainer.fit(module, Numbered(batch_size=4))
        moved.append(any(not torch.equal(*pair) for pair in zip(before, module.policy.parameters(), strict=True)))
    assert moved == [True, False]


@pytest.mark.parametrize("aggregation", ["token", "sequence"])
def test_a_masked_group_takes_no_share_of_the_loss(tmp_path, aggregation):
    reward = Given({0: RIGHT, 1: WRONG})
    look = looked(tmp_path, DynamicSampling(max_rounds=0), reward, objective=Objective(aggregation=aggregation))
    (batch,), (rollouts,) = look.batches, look.rollouts
    assert batch.num_tokens == int(rollouts.lengths[4:].sum())
    assert float(batch.weights.sum()) == pytest.approx(1.0)


@pytest.mark.parametrize(("baseline", "scale"), [("group", "group"), ("batch", "batch"), ("batch", "none")])
def test_the_reward_of_a_masked_group_changes_no_advantage_of_the_others(tmp_path, baseline, scale):
    advantages = []
    for reward in (RIGHT, [1000.0, 1000.0]):
        options = {"baseline": baseline, "advantage_scale": scale}
        look = looked(tmp_path, DynamicSampling(max_rounds=0), Given({0: reward, 3: reward}), **options)
        advantages.append(look.rollouts[0].advantages)
    assert advantages[0][2:6].abs().min() > 0.01
    assert not advantages[0][[0, 1, 6, 7]].any()
    assert torch.equal(*advantages)


def test_rewards_in_the_log_are_those_of_the_finished_batch(tmp_path):
    metrics = Logged()
    trainer = quiet_trainer(tmp_path, max_steps=1, logger=metrics, callbacks=[DynamicSampling(max_rounds=1)])
    # 0 is replaced by 7, 1 stays: rewards 0 0.1, 1 1, 0 0.1, 0 0.1
    module = grpo(Given(dict.fromkeys((0, 1, 4, 5, 6), RIGHT)))
    trainer.fit(module, Numbered(batch_size=4))
    assert metrics.by_step[0]["reward"] == pytest.approx(2.3 / 8)
    assert metrics.by_step[0]["frac_reward_zero_std"] == 0.25


def test_counters_are_logged_with_every_optimizer_step_of_a_rollout(tmp_path):
    options = {"epochs": 2, "minibatches": 2, "trainer": {"accumulate_grad_batches": 2}}
    look = looked(tmp_path, DynamicSampling(), Given({0: RIGHT, 9: WRONG, 10: WRONG}), steps=8, **options)
    # The first rollout is 4 1 2 3, the second one begins at 8 and takes 12 and 13.
    assert look.metrics == [counts_of(4, 1, 0, 1)] * 4 + [counts_of(4, 0, 2, 1)] * 4


# --- what is refused -----------------------------------------------------------------------------------------------


def test_negative_options_are_refused():
    for options in ({"start_step": -1}, {"max_rounds": -1}):
        with pytest.raises(
            ValueError, match=r"^DynamicSampling: start_step is .* and max_rounds .*; write 0 or more for both\.$"
        ):
            DynamicSampling(**options)


def test_an_algorithm_that_does_not_sample_is_refused(tmp_path):
    module = SFT(tiny_spec(), evaluation=Evaluation(max_new_tokens=4))
    with pytest.raises(ValueError, match="DynamicSampling needs an algorithm that samples; SFT does not"):
        quiet_trainer(tmp_path, max_steps=1, callbacks=[DynamicSampling()]).fit(module, Numbered(batch_size=4))


# --- resuming ------------------------------------------------------------------------------------------------------


def resumable():
    adam = functools.partial(torch.optim.AdamW, lr=1e-2)
    return grpo(Third(), group_size=4, epochs=2, minibatches=2, kl_coef=0.1, optimizer=adam)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The uninterrupted run: four optimizer steps a rollout, two rollouts an epoch, refills ahead of Lightning's epochs."""
    return run(resumable, tmp_path_factory.mktemp("whole"), 16, [DynamicSampling(start_step=4)], accumulate_grad_batches=2)


# After a rollout, inside one, after an epoch.
@pytest.mark.parametrize("stop", [4, 5, 8])
def test_stop_and_resume_with_dynamic_sampling_changes_no_bit(tmp_path, whole, stop):
    options = {"accumulate_grad_batches": 2}
    saver = ModelCheckpoint(tmp_path, "at", every_n_train_steps=stop, save_on_train_epoch_end=False)
    with pytest.raises(Stopped):
        run(resumable, tmp_path, 16, [DynamicSampling(start_step=4), saver, Stopper(stop)], **options)
    resumed = run(resumable, tmp_path, 16, [DynamicSampling(start_step=4)], ckpt_path=tmp_path / "at.ckpt", **options)
    assert_same_end(whole, resumed, stop)
    drawn = [metrics["sampling/rounds"] for step, metrics in sorted(whole[3].items()) if step >= 4]
    assert min(drawn) >= 1
    assert "sampling/rounds" not in whole[3][3]


# --- two ranks -----------------------------------------------------------------------------------------------------


def two_ranks(rewards, max_rounds, unshard):
    """What the ranks of one run of two rollouts saw; of each batch of four prompts rank 0 has the even ones."""
    look, metrics = Look(), Logged()
    sgd = functools.partial(torch.optim.SGD, lr=0.1)
    module = grpo(Given(rewards), policy=tiny_spec(unshard=unshard), sampler=Sampler(max_new_tokens=8), optimizer=sgd)
    trainer = quiet_trainer(
        Path("."),
        max_steps=2,
        strategy=FSDP2Strategy() if unshard == "layer" else "ddp",
        devices=2,
        logger=metrics,
        callbacks=[DynamicSampling(max_rounds=max_rounds), look],
    )
    trainer.fit(module, Numbered(batch_size=4))
    seen = {
        "numbers": [each.prompts.numbers for each in look.rollouts],
        "in_loss": [counted_groups(each) for each in look.rollouts],
        "metrics": {name: float(v) for name, v in trainer.callback_metrics.items() if name.startswith("sampling/")},
    }
    ranks = [None, None]
    torch.distributed.all_gather_object(ranks, seen)
    return ranks


# Rank 0 has nothing but equal groups for two draws; then for ever, where each forward is one of both ranks (FSDP2).
TWO_RANKS = {
    "one rank waits": (dict.fromkeys((0, 2, 4, 6, 14), RIGHT), 4, "rollout"),
    "one rank stays empty": (dict.fromkeys(range(0, 64, 2), WRONG), 2, "layer"),
}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """Each run by name, by rank."""
    file = tmp_path_factory.mktemp("ranks") / "seen.pt"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    paths = os.pathsep.join(filter(None, [str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "PYTHONPATH": paths}
    command = [sys.executable, __file__, str(file)]
    output = {"cwd": file.parent, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    processes = [subprocess.Popen(command, env={**environment, "LOCAL_RANK": rank}, **output) for rank in "01"]
    try:
        texts = [process.communicate(timeout=1800)[0].decode() for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(process.returncode == 0 for process in processes), "\n".join(text[-3000:] for text in texts)
    return torch.load(file, weights_only=True)


def test_ranks_draw_together_until_the_last_one_is_full(ranks):
    # Draws: 0 2 | 1 3, then 4 6 | 5 7, then 8 10 | 9 11; the second rollout draws 12 14 | 13 15, then 16 18 | 17 19.
    zero, one = ranks["one rank waits"]
    assert zero["numbers"] == [[8, 10], [12, 16]]
    assert one["numbers"] == [[1, 3], [13, 15]]
    assert zero["in_loss"] == one["in_loss"] == [[[True, True]] * 2] * 2


def test_a_rank_that_stays_empty_is_masked_and_holds_up_no_other(ranks):
    zero, one = ranks["one rank stays empty"]
    assert zero["numbers"] == [[0, 2], [12, 14]]
    assert one["numbers"] == [[1, 3], [13, 15]]
    assert zero["in_loss"] == [[[False, False]] * 2] * 2
    assert one["in_loss"] == [[[True, True]] * 2] * 2


def test_counters_are_over_all_ranks(ranks):
    # The last rollout of each run: 14 was dropped; and on rank 0 six groups of three draws.
    for run_name, counts in {"one rank waits": (4, 1, 0, 1), "one rank stays empty": (2, 0, 6, 2)}.items():
        expected = {f"sampling/{name}": value for name, value in counts_of(*counts).items()}
        for seen in ranks[run_name]:
            assert {name: seen["metrics"][name] for name in expected} == expected


if __name__ == "__main__":
    seen = {name: two_ranks(*settings) for name, settings in TWO_RANKS.items()}
    if os.environ["LOCAL_RANK"] == "0":
        torch.save(seen, sys.argv[1])
    # Together and tidily: a process whose peer has gone first may be aborted on its way out.
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
