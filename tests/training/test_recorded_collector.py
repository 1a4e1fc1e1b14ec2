"""Runs on recorded rollouts: which completions are drawn, their rewards and gradients, the guard, and resuming."""

import json
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY, quiet_trainer, tiny_spec
from grpo_runs import MOVING, SHARES, STILL, Watch, assert_same, policy_gradient, slow_rows
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from recorded_runs import Digits, lines, opened, record, recorder, replayed
from resumed_runs import assert_same_end, run

from lit_rl.algorithms import GRPO, PPO
from lit_rl.callbacks import DynamicSampling, SampleTable
from lit_rl.datamodules import Recorded, StoryProblems
from lit_rl.evaluation import Evaluation
from lit_rl.models import PolicySpec
from lit_rl.objectives import Correction, Objective, Overlong
from lit_rl.rewards import FinalNumber, Reward
from lit_rl.sampling import Arm, ArmSampler
from lit_rl.training.recorded import RecordedCollector
from lit_rl.types import PromptBatch


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Four completions of each of 48 questions, by the policy of seed 0."""
    return record(tmp_path_factory.mktemp("recorded"), limit=48)


class Length(Reward):
    """Pays the length of a completion."""

    def score(self, rollouts):
        return rollouts.lengths.float()


def learner(kind=GRPO, **options):
    """The policy that recorded, which learns from its rollouts."""
    settings = {"evaluation": Evaluation(4), "optimizer": STILL} | ({"group_size": 4} if kind is GRPO else {})
    return kind(tiny_spec(dtype="float64"), **settings | options)


def replay(folder, module, path, steps=1, callbacks=(), data=(), **options) -> Watch:
    """A few steps on recorded rollouts, watched."""
    watch = Watch()
    trainer = quiet_trainer(folder, max_steps=steps, callbacks=[watch, *callbacks], **options)
    trainer.fit(module, replayed(path, **dict(data)))
    return watch


# --- draws -----------------------------------------------------------------------------------------------------------


def test_a_group_is_all_completions_of_a_question(recorded, tmp_path):
    (rollouts,) = replay(tmp_path, learner(), recorded).rollouts
    entries = {entry["number"]: entry for entry in lines(recorded)}
    assert rollouts.group.tolist() == [group for group in range(8) for _ in range(4)]
    for group, number in enumerate(rollouts.prompts.numbers):
        outputs = entries[number]["arm_outputs"]
        rows = range(4 * group, 4 * group + 4)
        assert [rollouts.texts[row] for row in rows] == [output["full_text"] for output in outputs]
        assert [float(rollouts.rewards[row]) for row in rows] == pytest.approx([output["reward"] for output in outputs])
        assert rollouts.logprobs[4 * group, 0] == torch.tensor(outputs[0]["logprobs"][0])
        assert rollouts.prompts.ids[group][rollouts.prompts.mask[group]].tolist() == entries[number]["prompts"][0]["token_ids"]
    assert set(rollouts.parts) == {"digits"}


def texts(path, rollout=0, numbers=range(48), seed=0, group_size=1):
    """Completions that are drawn of questions, by their numbers."""
    data, runtime = opened(replayed(path)), SimpleNamespace(device="cpu", step=0, sharded=False)
    actor = SimpleNamespace(seed=seed, policy=SimpleNamespace(model=torch.nn.Linear(1, 1)), runtime=runtime)
    collector = RecordedCollector(actor, data, Digits(), Overlong(), group_size, rescores=False)
    collector.number = rollout
    samples = [data.recordings[number].sample for number in numbers]
    rollouts = collector.draw(PromptBatch.pad([[0]] * len(samples), [[] for _ in samples], samples, 0), round=0)
    rows = [rollouts.rows_of([group]).tolist() for group in range(rollouts.num_groups)]
    return {rollouts.samples[group[0]].number: [rollouts.texts[row] for row in group] for group in rows}


def test_smaller_groups_are_drawn_at_random_in_the_order_of_the_recording(recorded):
    said = {entry["number"]: [output["full_text"] for output in entry["arm_outputs"]] for entry in lines(recorded)}
    single = [said[number].index(text) for number, (text,) in texts(recorded).items()]
    # 48 draws of 4: a place comes 12 times on average, with a standard deviation of 3.
    assert all(3 <= single.count(place) <= 21 for place in range(4))
    for number, pair in texts(recorded, group_size=2).items():
        first, second = (said[number].index(text) for text in pair)
        assert first < second


def test_draws_depend_on_seed_rollout_and_question_alone(recorded):
    first = texts(recorded)
    assert texts(recorded) == first
    assert texts(recorded, numbers=[7, 3]) == {7: first[7], 3: first[3]}
    assert texts(recorded, seed=1) != first
    assert texts(recorded, rollout=1) != first


def test_ppo_learns_one_completion_of_each_question(recorded, tmp_path):
    (rollouts,) = replay(tmp_path, learner(PPO, epochs=1, minibatches=2), recorded, steps=2).rollouts
    learnt = zip(rollouts.prompts.numbers, ([text] for text in rollouts.texts), strict=True)
    assert dict(learnt).items() <= texts(recorded).items()


def test_a_question_whose_completions_could_not_be_scored_is_in_no_loss(recorded, tmp_path):
    entries = lines(recorded)
    for entry in entries:
        for output in entry["arm_outputs"][: 4 if entry["number"] % 2 else 1]:
            output["reward"] = None
    file = tmp_path / "rollouts.jsonl"
    file.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    (rollouts,) = replay(tmp_path, learner(), file).rollouts
    for group, number in enumerate(rollouts.prompts.numbers):
        in_loss = rollouts.in_loss[rollouts.group == group].tolist()
        assert in_loss == ([False] * 4 if number % 2 else [True] * 3)


def test_a_reward_of_the_model_scores_the_completions_again(recorded, tmp_path):
    (rollouts,) = replay(tmp_path, learner(reward=Length()), recorded).rollouts
    assert torch.equal(rollouts.rewards, rollouts.lengths.float())
    assert set(rollouts.parts) == {"length"}


def test_completions_of_several_arms_keep_their_prompts(tmp_path):
    policy = PolicySpec(config={"model_type": "llama", **TINY}, tokenizer="stories", dtype="float64")
    styles = {"plain": "", "long": "Write the steps alone."}
    arms = ArmSampler(4, arms=[Arm("plain", "plain", 0.8, 0.9), Arm("long", "long", 1.2, 0.7)], styles=styles)
    problems = {"val_problems": 4, "test_problems": 4, "eval_batch_size": 4}
    judge = Evaluation(4, FinalNumber())
    file = record(tmp_path, recorder(policy=policy, sampler=arms, evaluation=judge), 8, StoryProblems(**problems))
    assert [output["arm"] for output in lines(file)[0]["arm_outputs"]] == ["plain", "plain", "long", "long"]
    watch = Watch()
    module = GRPO(policy, group_size=4, evaluation=judge, optimizer=STILL)
    quiet_trainer(tmp_path, max_steps=1, callbacks=[watch]).fit(module, Recorded(file, StoryProblems(**problems), batch_size=8))
    (rollouts,) = watch.rollouts
    assert (rollouts.num_groups, len(rollouts.prompts)) == (8, 16)
    assert {round(float(value), 3) for value in rollouts.temperature} == {0.8, 1.2}
    # Under another prompt, temperature or support a token would have another probability; the guard has looked too.
    assert watch.metrics[0]["sampling/sampling_logp_difference/mean"] < 1e-6


def test_groups_of_one_reward_each_are_reported(recorded, tmp_path):
    entries = lines(recorded)
    for entry in entries:
        for output in entry["arm_outputs"]:
            output["reward"] = entry["reward"]
    file = tmp_path / "rollouts.jsonl"
    file.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    with pytest.warns(UserWarning, match="a baseline within the group has nothing to compare"):
        replay(tmp_path, learner(), file)


def test_dynamic_sampling_draws_other_recorded_questions(recorded, tmp_path):
    class Rare(Reward):
        def score(self, rollouts):
            return (rollouts.completion_ids[:, 0] % 8 == 0).float()

    refill = DynamicSampling(max_rounds=1)
    replay(tmp_path, learner(reward=Rare()), recorded, callbacks=[refill, SampleTable()])
    assert refill.metrics["sampling/rounds"] == 1


# --- importance correction -------------------------------------------------------------------------------------------


CORRECTED = Objective(correction=Correction("truncate", high=1.05))


@pytest.mark.parametrize("minibatches", [1, 2])
def test_log_probabilities_of_another_policy_are_corrected(minibatches, recorded, tmp_path):
    """The gradient equals the slow reference's, with p_learner / p_recorded cut at 1.05 as the weight of each token."""
    module = learner(objective=CORRECTED, minibatches=minibatches, seed=1, optimizer=MOVING if minibatches == 2 else STILL)
    watch = replay(tmp_path, module, recorded, steps=minibatches)
    metrics = watch.metrics[0]
    assert metrics["sampling/importance_sampling_ratio/max"] == pytest.approx(1.05)
    assert metrics["sampling/importance_sampling_ratio/min"] < 0.9
    assert metrics["sampling/sampling_logp_difference/mean"] > 0.05, "the rollouts are stale"
    (rollouts,) = watch.rollouts
    assert rollouts.has("old_logprobs") == (minibatches == 2)
    if minibatches == 1:
        assert_same(watch.gradients[0], policy_gradient(module, rollouts, slow_rows(rollouts)), SHARES)


def test_without_correction_the_recording_policy_is_the_old_one(recorded, tmp_path):
    module = learner(seed=1)
    watch = replay(tmp_path, module, recorded)
    assert watch.metrics[0]["clip_ratio/region_mean"] > 0, "it is far from the policy that recorded"
    assert_same(watch.gradients[0], policy_gradient(module, watch.rollouts[0], slow_rows(watch.rollouts[0])), SHARES)


# --- the guard -------------------------------------------------------------------------------------------------------


def with_other_logprobs(path, folder):
    entries = lines(path)
    for entry in entries:
        for output in entry["arm_outputs"]:
            output["logprobs"] = [value - 0.1 for value in output["logprobs"]]
    file = folder / "rollouts.jsonl"
    file.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return file


def test_recorded_log_probabilities_of_the_same_policy_must_be_its_own(recorded, tmp_path):
    with pytest.raises(ValueError, match=r"differ by 0\.1 nats a token before any step"):
        replay(tmp_path, learner(), with_other_logprobs(recorded, tmp_path))


def test_log_probabilities_of_another_policy_may_differ(recorded, tmp_path):
    watch = replay(tmp_path, learner(seed=1), with_other_logprobs(recorded, tmp_path))
    assert watch.metrics[0]["sampling/sampling_logp_difference/mean"] > 0.05


def test_a_policy_that_has_moved_is_not_held_to_its_rollouts(recorded, tmp_path):
    watch = replay(tmp_path, learner(optimizer=MOVING), recorded, steps=3)
    assert watch.metrics[0]["sampling/sampling_logp_difference/mean"] < 1e-6
    assert watch.metrics[2]["sampling/sampling_logp_difference/mean"] > 1e-3


# --- resuming and ranks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [GRPO, PPO])
def test_a_resumed_run_ends_as_the_uninterrupted_one(kind, recorded, tmp_path):
    """Twelve steps, three a rollout: the checkpoint at step 5 is inside the second rollout, and the epoch ends at step 18."""
    options = {"epochs": 1, "minibatches": 3, "optimizer": MOVING, "objective": CORRECTED}
    options |= {"group_size": 3} if kind is GRPO else {}

    def build():
        return learner(kind, **options)

    def start(folder, *callbacks, **settings):
        return run(build, folder, 0, callbacks, data=replayed(recorded, batch_size=9), **settings)

    saver = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=5, save_top_k=-1)
    whole = start(tmp_path, saver)
    resumed = start(tmp_path, ckpt_path=tmp_path / "step=5.ckpt")
    assert_same_end(whole, resumed, 5)


def test_a_run_does_not_go_on_with_files_that_changed(recorded, tmp_path):
    file = tmp_path / "rollouts.jsonl"
    file.write_bytes(recorded.read_bytes())
    saver = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1)
    replay(tmp_path, learner(), file, callbacks=[saver], enable_checkpointing=True)
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))
    trainer = quiet_trainer(tmp_path, max_steps=2)
    with pytest.raises(ValueError, match="has changed since the checkpoint"):
        trainer.fit(learner(), replayed(file), ckpt_path=tmp_path / "step=1.ckpt")


class Gradient(Callback):
    """Saves the gradient of the first step."""

    def __init__(self, file):
        self.file = file

    def on_before_optimizer_step(self, trainer, module, optimizer):
        if trainer.is_global_zero:
            gradients = {name: value.grad for name, value in module.policy.named_parameters()}
            torch.save({name: value for name, value in gradients.items() if value is not None}, self.file)


@pytest.mark.parametrize("kind", [GRPO, PPO])
def test_two_processes_learn_as_one(kind, recorded, tmp_path):
    options = {"minibatches": 1} | ({} if kind is GRPO else {"epochs": 1})
    for ranks, strategy in ((1, "auto"), (2, "ddp_fork")):
        callbacks = [Gradient(tmp_path / f"{ranks}.pt")]
        replay(tmp_path, learner(kind, **options), recorded, callbacks=callbacks, devices=ranks, strategy=strategy)
    one, two = (torch.load(tmp_path / f"{ranks}.pt", weights_only=True) for ranks in (1, 2))
    assert float(one["model.model.layers.0.mlp.up_proj.weight"].norm()) > 1e-6
    for name, value in one.items():
        assert float((two[name] - value).norm()) <= 1e-10 * float(value.norm()), name


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (lambda: learner(group_size=5), "at most 4 completions of a question are recorded"),
        (lambda: learner(PPO, kl_coef=0.1), "write objective.kl_in loss"),
        (lambda: learner(objective=Objective("reinforce")), "with recorded rollouts write objective.correction"),
        (lambda: learner(overlong=Overlong("penalize", 0.5)), "changes a reward that is recorded"),
    ],
)
def test_options_that_go_wrong_on_recorded_rollouts_are_refused(module, message, recorded, tmp_path):
    with pytest.raises(ValueError, match=message):
        replay(tmp_path, module(), recorded)
