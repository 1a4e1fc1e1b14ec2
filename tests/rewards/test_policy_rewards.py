"""Rewards that ask the policy: dense credit and information gain, against plain forwards of a tiny model."""

import copy
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from conftest import quiet_trainer, tiny_data, tiny_spec
from grpo_runs import MOVING
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny_rollouts import rollouts_of
from torch import Tensor, nn
from vocabularies import byte_level

from lit_rl.algorithms import GRPO
from lit_rl.evaluation import Evaluation
from lit_rl.hooks import RolloutCallback
from lit_rl.models import LoRASpec, Policy
from lit_rl.models.loading import load_tokenizer
from lit_rl.rewards import AnswerFormat, DensePrefixMatch, InformationGain, PrefixMatch, Reward, WeightedSum, dense
from lit_rl.rewards.base import RewardError, score_rollouts
from lit_rl.rewards.dense import first_token, vocabulary_bytes
from lit_rl.rewards.information_gain import thought_end
from lit_rl.rollouts import Rollouts
from lit_rl.sampling import Sampler
from lit_rl.sampling.actor import Actor
from lit_rl.sampling.check import check_policy
from lit_rl.sampling.position_renderer import PositionRenderer
from lit_rl.text.token_bytes import write_pieces
from lit_rl.types import PromptBatch, Sample

ANSWER = AnswerFormat(after="<answer>", opening="(", closing=")")
WHOLE = AnswerFormat(after="", opening="", closing="")
TEXTS = [("12+34=", "46"), ("7*8=", "56"), ("9-", "10=-1")]
"""Texts before a position, and after it."""


class Still:
    """A runtime on one process at an optimizer step that the test sets."""

    device = torch.device("cpu")
    step = 0
    sharded = False

    def forward_context(self):
        return nullcontext()


def actor_of(**options) -> Actor:
    spec = tiny_spec(**options)
    tokenizer = load_tokenizer(spec)
    policy = Policy(spec, tokenizer)
    check_policy(policy)
    return Actor(policy, PositionRenderer(tokenizer, "direct", 0), 0, Still())


@pytest.fixture(scope="module")
def actor():
    """An actor whose policy stays as it is."""
    torch.manual_seed(0)
    return actor_of()


@pytest.fixture
def mover(actor):
    """An actor whose policy may be changed."""
    return Actor(copy.deepcopy(actor.policy), actor.renderer, 0, Still())


def ids(actor: Actor, text: str) -> list[int]:
    return actor.renderer.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []


def sampled(actor: Actor, *groups: list[str], texts=TEXTS, truncated=None, **fields) -> Rollouts:
    """Completions of positions, whose prompts are not the texts themselves: the policy was asked about them."""
    samples = [
        Sample("", "", write_pieces([piece.encode() for piece in after]), number, ids(actor, before), ids(actor, after))
        for number, (before, after) in enumerate(texts)
    ]
    prompts = [ids(actor, f"<bos>next of {before}<scratchpad>") for before, _ in texts]
    batch = PromptBatch.pad(prompts, [[] for _ in prompts], samples, actor.renderer.pad_id)
    said = [text for group in groups for text in group]
    cut = torch.tensor(truncated or [False] * len(said))
    rows = [ids(actor, text) + ([] if late else ids(actor, "<eos>")) for text, late in zip(said, cut, strict=True)]
    if "prompt" not in fields:
        batch = batch.select(list(range(len(groups))))
    return rollouts_of(batch, len(groups[0]), rows, truncated=cut, texts=said, **fields)


def prepared(reward: Reward, actor: Actor, rollouts: Rollouts) -> Tensor:
    reward.prepare(actor, rollouts)
    score_rollouts(reward, rollouts)
    return rollouts.rewards


def plain_logprobs(actor: Actor, before: str, after: str) -> Tensor:
    """Of each token of a text after another, by a forward of the whole model."""
    first, second = ids(actor, before), ids(actor, after)
    with torch.no_grad():
        logits = actor.policy.model(torch.tensor([first + second])).logits[0, len(first) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(second)[:, None])[:, 0]


def move(actor: Actor, names: str = "") -> None:
    """Another policy, as after an optimizer step; only weights with the given word in their names change."""
    with torch.no_grad():
        for name, weight in actor.policy.named_parameters():
            weight += torch.randn_like(weight) * (0.1 if names in name else 0.0)
    actor.runtime.step += 1


# --- dense credit ---------------------------------------------------------------------------------------------------


def chance(actor: Actor, text: int, token: str) -> float:
    """Of a token after one of the texts."""
    return float(plain_logprobs(actor, TEXTS[text][0], token).exp())


def test_a_wrong_prediction_earns_the_probability_of_its_first_token_after_the_plain_text(actor):
    right = ["<answer>(7)", "<answer>()", "<answer>(56)"]
    groups = [["so<answer>(46)", "<answer>(57)", "no"], right, ["<answer>(zz)", "(1", ""]]
    expected = [1, chance(actor, 0, "5"), 0, chance(actor, 1, "7"), 0, 1, chance(actor, 2, "z"), 0, 0]
    assert prepared(DensePrefixMatch(ANSWER), actor, sampled(actor, *groups)).tolist() == pytest.approx(expected)


def test_each_text_is_asked_with_its_own_completions_in_forwards_of_a_few_texts(actor):
    texts = [(f"{number}+{number * number}=", "x") for number in range(19)]
    said = [[f"<answer>({number % 10})"] for number in range(19)]
    rewards = prepared(DensePrefixMatch(ANSWER), actor, sampled(actor, *said, texts=texts))
    expected = [float(plain_logprobs(actor, before, str(n % 10)).exp()) for n, (before, _) in enumerate(texts)]
    assert rewards.tolist() == pytest.approx(expected)


def test_rows_in_any_order_of_prompts_are_asked_after_their_own_text(actor, monkeypatch):
    monkeypatch.setattr(dense, "PROMPTS_PER_FORWARD", 2)
    prompt = torch.tensor([2, 0, 1, 0, 2, 1, 1])
    rows = sampled(actor, ["<answer>(3)"] * 7, prompt=prompt, group=torch.tensor([0, 0, 0, 1, 1, 1, 1]))
    rewards = prepared(DensePrefixMatch(ANSWER), actor, rows)
    assert rewards.tolist() == pytest.approx([chance(actor, text, "3") for text in prompt.tolist()])


def test_conditional_credit_is_for_groups_with_a_right_prediction(actor):
    rollouts = sampled(actor, ["<answer>(4)", "<answer>(57)"], ["<answer>(4)", "<answer>(57)"])
    rewards = prepared(DensePrefixMatch(ANSWER, conditional=True), actor, rollouts)
    wrong = chance(actor, 0, "5")
    assert rewards.tolist() == pytest.approx([1, wrong, 0, 0])
    assert wrong > 0


def test_a_right_prediction_of_one_prompt_gives_conditional_credit_to_all_rows_of_its_group(actor):
    said = ["<answer>(3)", "<answer>(46)", "<answer>(3)", "<answer>(3)", "<answer>(3)"]
    prompt, group = torch.tensor([1, 0, 2, 0, 1]), torch.tensor([0, 0, 1, 1, 0])
    rewards = prepared(DensePrefixMatch(ANSWER, conditional=True), actor, sampled(actor, said, prompt=prompt, group=group))
    assert rewards.tolist() == pytest.approx([chance(actor, 1, "3"), 1, 0, 0, chance(actor, 1, "3")])


def test_the_penalty_for_no_prediction_stands_beside_dense_credit(actor):
    reward = DensePrefixMatch(ANSWER, conditional=True, no_answer=-0.5)
    rollouts = sampled(actor, ["<answer>(1)", "no", "<answer>(46)"], truncated=[False, False, True])
    assert prepared(reward, actor, rollouts).tolist() == [0, -0.5, -0.5]


def test_dense_credit_is_logged_beside_the_hits(actor):
    rollouts = sampled(actor, ["<answer>(46)", "<answer>(57)"])
    rewards = prepared(DensePrefixMatch(ANSWER), actor, rollouts)
    assert rollouts.parts["prefix_match"].tolist() == [1, 0]
    assert rollouts.parts["dense"].tolist() == rewards.tolist()


def test_the_first_token_is_the_longest_that_a_prediction_begins_with():
    tokenizer = byte_level()
    tokens = vocabulary_bytes(tokenizer)

    def begins(text: bytes) -> str | None:
        token = first_token(text, tokens)
        return None if token is None else tokenizer.convert_ids_to_tokens(token)

    assert begins(b" time again") == "Ġtime"
    assert begins(b"\xc3") == "Ã"
    assert begins(b"<eos>") == "<"
    assert begins(b"") is None
    assert first_token("日".encode(), {b"a": 0}) is None


def test_rewards_that_were_not_prepared_are_refused(actor):
    rollouts = sampled(actor, ["<answer>(46)"])
    with pytest.raises(RewardError, match="without `prepare`; in an evaluation write PrefixMatch"):
        score_rollouts(DensePrefixMatch(ANSWER), rollouts)
    with pytest.raises(RewardError, match="without `prepare`; it is for training"):
        score_rollouts(InformationGain(after="="), rollouts)


# --- information gain -----------------------------------------------------------------------------------------------


def gain(actor: Actor, text: int, thought: str, after: str = "<answer>", lead: str = "") -> float:
    """Of a thought before the text, over none, under one policy."""
    before, follows = TEXTS[text]
    prompt = f"<bos>next of {before}<scratchpad>"
    informed = plain_logprobs(actor, prompt + thought + lead, follows).mean()
    return float(informed - plain_logprobs(actor, prompt + after + lead, follows).mean())


def test_the_reward_is_the_gain_in_log_probability_per_token_over_no_thought(actor):
    rollouts = sampled(actor, ["1+2<answer>", "x<answer>y<answer>(46)"], ["<answer>", "9*9<answer>7"])
    rewards = prepared(InformationGain(after="<answer>"), actor, rollouts)
    thoughts = [("1+2<answer>", 0), ("x<answer>y<answer>", 0), ("<answer>", 1), ("9*9<answer>", 1)]
    assert rewards.tolist() == pytest.approx([gain(actor, text, thought) for thought, text in thoughts], abs=1e-5)
    assert rewards[2] == pytest.approx(0, abs=1e-6)


def test_a_thought_that_does_not_end_is_ended(actor):
    rollouts = sampled(actor, ["1+2", "1+2"], truncated=[False, True])
    rewards = prepared(InformationGain(after="<answer>"), actor, rollouts)
    assert rewards.tolist() == pytest.approx([gain(actor, 0, "1+2<answer>")] * 2, abs=1e-5)


def test_the_lead_follows_the_thought_and_no_thought(actor):
    rewards = prepared(InformationGain(after="==", lead=" is "), actor, sampled(actor, ["1+2==3"]))
    assert rewards.tolist() == pytest.approx([gain(actor, 0, "1+2==", "==", " is ")], abs=1e-5)


def test_without_an_end_the_whole_completion_is_the_thought(actor):
    rewards = prepared(InformationGain(after=""), actor, sampled(actor, ["1+2<answer>", ""]))
    assert rewards.tolist() == pytest.approx([gain(actor, 0, "1+2<answer>", ""), 0], abs=1e-5)


def test_more_rows_than_one_forward_takes_keep_their_prompts_in_any_order(actor):
    thoughts = [f"{number}{'+1' * (number % 4)}<answer>" for number in range(21)]
    prompt = [(2 * number) % 3 for number in range(21)]
    rollouts = sampled(actor, thoughts, prompt=torch.tensor(prompt), group=torch.arange(21) % 2)
    rewards = prepared(InformationGain(after="<answer>"), actor, rollouts)
    expected = [gain(actor, text, thought) for text, thought in zip(prompt, thoughts, strict=True)]
    assert rewards.tolist() == pytest.approx(expected, abs=1e-5)


def test_a_thought_ends_with_the_token_in_which_its_end_ends():
    assert thought_end([b"a", b"</", b"think", b">", b"b"], b"</think>") == 4
    assert thought_end([b"a</th", b"ink>\n", b"b"], b"</think>") == 2
    assert thought_end([b"</think>", b"a", b"</think>", b"b"], b"</think>") == 3
    assert thought_end([b"</think>"], b"</think>") == 1
    assert thought_end([b"a", b"</think"], b"</think>") is None
    assert thought_end([], b"</think>") is None


def test_with_decay_1_the_baseline_is_the_policy_as_training_began(mover):
    reward, rollouts = InformationGain(decay=1.0, after="<answer>"), sampled(mover, ["1+2<answer>"])
    prompt = "<bos>next of 12+34=<scratchpad>"
    start = plain_logprobs(mover, prompt + "<answer>", "46").mean()
    prepared(reward, mover, rollouts)
    move(mover)
    now = plain_logprobs(mover, prompt + "1+2<answer>", "46").mean()
    assert prepared(reward, mover, rollouts).tolist() == pytest.approx([float(now - start)], abs=1e-5)


def test_with_decay_0_the_baseline_is_the_policy_itself(mover):
    reward, rollouts = InformationGain(decay=0.0, after="<answer>"), sampled(mover, ["1+2<answer>"])
    prepared(reward, mover, rollouts)
    move(mover)
    assert prepared(reward, mover, rollouts).tolist() == pytest.approx([gain(mover, 0, "1+2<answer>")], abs=1e-5)


def test_of_an_adapter_only_the_adapter_is_averaged_and_is_the_baseline():
    actor = actor_of(lora=LoRASpec(r=2))
    reward, rollouts = InformationGain(decay=1.0, after="<answer>"), sampled(actor, ["<answer>"])
    assert prepared(reward, actor, rollouts).tolist() == pytest.approx([0], abs=1e-6)
    trained = {name for name, weight in actor.policy.named_parameters() if weight.requires_grad}
    assert set(reward.average.weights) == trained
    assert all("lora" in name for name in trained)
    start = plain_logprobs(actor, "<bos>next of 12+34=<scratchpad><answer>", "46").mean()
    for _ in range(3):
        move(actor, "lora")
    now = plain_logprobs(actor, "<bos>next of 12+34=<scratchpad><answer>", "46").mean()
    assert abs(float(now - start)) > 1e-4
    assert prepared(reward, actor, rollouts).tolist() == pytest.approx([float(now - start)], abs=1e-5)


def test_a_decay_beyond_0_and_1_is_refused():
    for decay in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"reward\.decay is .*; write 0"):
            InformationGain(decay)


def test_an_end_of_thoughts_that_the_tokenizer_cannot_write_is_refused(actor):
    with pytest.raises(ValueError, match=r"reward\.after is '</think>', which the policy's tokenizer cannot write"):
        prepared(InformationGain(), actor, sampled(actor, ["1"]))


def test_samples_without_a_target_are_refused(actor):
    with pytest.raises(ValueError, match="sample 0 has no target for information_gain; set `positions`"):
        prepared(InformationGain(after="="), actor, sampled(actor, ["1"], texts=[("1+1=", "")]))


def test_a_thought_and_target_beyond_the_models_positions_are_refused(actor):
    with pytest.raises(ValueError, match=r"sample 0 has 139 tokens with thought and target, more than the model's 128"):
        prepared(InformationGain(after="="), actor, sampled(actor, ["1" * 120]))


def test_sharded_weights_are_refused(actor):
    sharded = SimpleNamespace(sharded=True)
    with pytest.raises(ValueError, match=r"fsdp2 shards them: write trainer\.strategy ddp"):
        InformationGain(after="=").prepare(Actor(actor.policy, actor.renderer, 0, sharded), sampled(actor, ["1"]))


# --- checkpoints ----------------------------------------------------------------------------------------------------


def test_the_average_comes_back_from_a_weights_only_file_inside_a_weighted_sum(mover, tmp_path):
    def build() -> WeightedSum:
        return WeightedSum([PrefixMatch(ANSWER), InformationGain(0.5, "<answer>")], [1.0, 0.5])

    reward, other, rollouts = build(), build(), sampled(mover, ["1+2<answer>(46)"])
    prepared(reward, mover, rollouts)
    torch.save(reward.state_dict(), tmp_path / "reward.pt")
    other.load_state_dict(torch.load(tmp_path / "reward.pt", weights_only=True))
    move(mover)
    expected = prepared(reward, mover, rollouts).clone()
    assert torch.equal(prepared(other, mover, rollouts), expected)
    assert torch.equal(rollouts.rewards, rollouts.parts["prefix_match"] + 0.5 * rollouts.parts["information_gain"])
    assert float(rollouts.parts["information_gain"]) != pytest.approx(gain(mover, 0, "1+2<answer>"), abs=1e-4)


def test_a_checkpoint_without_state_begins_a_new_average(mover):
    reward = InformationGain(1.0, "<answer>")
    reward.load_state_dict({})
    prepared(reward, mover, sampled(mover, ["1+2<answer>"]))
    for name, weight in mover.policy.named_parameters():
        assert torch.equal(reward.average.weights[name], weight)


# --- real runs ------------------------------------------------------------------------------------------------------


class Positions(RolloutCallback):
    """Makes positions of problems; keeps the policy's weights, and rewards and parts of each rollout."""

    def __init__(self):
        self.weights, self.rewards, self.parts = [], [], []

    def on_rollout_start(self, trainer, module, prompts):
        pairs = zip(prompts.samples, prompts.completions, strict=True)
        prompts.samples = [s._replace(target=ids, reference=write_pieces([s.reference.encode()])) for s, ids in pairs]
        self.weights.append({name: weight.detach().clone() for name, weight in module.policy.named_parameters()})
        return prompts

    def on_rollout_end(self, trainer, module, rollouts):
        self.rewards.append(rollouts.rewards)
        self.parts.append(rollouts.parts)
        return rollouts


def run(folder, saver=None, ckpt_path=None) -> tuple[GRPO, Positions]:
    """A real run of 8 steps, two a rollout, with both rewards."""
    torch.manual_seed(0)
    reward = WeightedSum([InformationGain(0.75, "<answer>"), DensePrefixMatch(WHOLE)], [1.0, 1.0])
    settings = {"group_size": 4, "minibatches": 2, "optimizer": MOVING, "evaluation": Evaluation(max_new_tokens=4)}
    module, seen = GRPO(tiny_spec(), sampler=Sampler(max_new_tokens=4), reward=reward, **settings), Positions()
    callbacks = [seen, saver] if saver else [seen]
    trainer = quiet_trainer(folder, max_steps=8, enable_checkpointing=saver is not None, callbacks=callbacks)
    trainer.fit(module, tiny_data(), ckpt_path=ckpt_path)
    return module, seen


def average_of(module: nn.Module) -> dict[str, Tensor]:
    return module.reward.rewards[0].average.weights


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run with a checkpoint after every step: its folder, module and what was seen."""
    folder = tmp_path_factory.mktemp("whole")
    saver = ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_on_train_epoch_end=False, save_top_k=-1)
    module, seen = run(folder, saver)
    return SimpleNamespace(folder=folder, module=module, seen=seen)


def test_the_average_follows_the_policy_once_per_rollout(whole):
    weights = whole.seen.weights
    assert len(weights) == 4
    for name, average in average_of(whole.module).items():
        expected = weights[0][name]
        for later in weights[1:]:
            expected = 0.75 * expected + 0.25 * later[name]
        torch.testing.assert_close(average, expected)


def test_the_average_is_not_a_part_of_the_model(whole):
    module = whole.module
    assert set(module.state_dict()) == {f"policy.{name}" for name in module.policy.state_dict()} | {
        f"evaluation.{name}" for name in module.evaluation.state_dict()
    }


def test_dense_credit_is_paid_in_a_real_run(whole):
    paid = whole.seen.parts[0]["dense"]
    assert bool(((paid > 0) & (paid < 1)).any())


@pytest.mark.parametrize(("step", "rollouts"), [(4, 2), (5, 1)], ids=["between two rollouts", "inside a rollout"])
def test_a_resumed_run_pays_the_same_rewards(whole, tmp_path, step, rollouts):
    module, seen = run(tmp_path, ckpt_path=whole.folder / f"step={step}.ckpt")
    assert len(seen.rewards) == rollouts
    for ours, theirs in zip(seen.rewards, whole.seen.rewards[-rollouts:], strict=True):
        assert torch.equal(ours, theirs)
        assert len(ours.unique()) > 1
    for name, average in average_of(whole.module).items():
        assert torch.equal(average, average_of(module)[name])
