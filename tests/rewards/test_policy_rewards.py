"""Rewards that ask the policy: dense credit and information gain, against plain forwards of a tiny model."""

import functools

import pytest
import torch
from conftest import quiet_trainer, tiny_data, tiny_spec
from grpo_runs import MOVING, Length
from lightning.pytorch.callbacks import ModelCheckpoint
from vocabularies import byte_level
from tiny_rollouts import rollouts_of
from torch import Tensor, nn

from lit_rl.algorithms import GRPO, RPT
from lit_rl.evaluation import Evaluation
from lit_rl.hooks import RolloutCallback
from lit_rl.models import LoRASpec
from lit_rl.rewards import AnswerFormat, DensePrefixMatch, InformationGain, PrefixMatch, Reward, WeightedSum
from lit_rl.rewards.base import RewardError, score_rollouts
from lit_rl.rewards.dense import first_token, vocabulary_bytes
from lit_rl.rewards.information_gain import WeightAverage, thought_end
from lit_rl.rollouts import Rollouts
from lit_rl.sampling import Sampler
from lit_rl.text.token_bytes import write_pieces
from lit_rl.types import PromptBatch, Sample

ANSWER = AnswerFormat(after="<answer>", opening="(", closing=")")
TEXTS = [("12+34=", "46"), ("7*8=", "56"), ("9-", "10=-1")]
"""Texts before a position, and behind it."""


def attached(reward: Reward, **options) -> RPT:
    """A tiny module as it is in a fit."""
    module = RPT(tiny_spec(**options), template="direct", reward=reward)
    module.trainer = quiet_trainer(".")
    module.configure_model()
    return module


def ids(module: RPT, text: str) -> list[int]:
    return module.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []


def sampled(module: RPT, *groups: list[str], texts=TEXTS, truncated=None) -> Rollouts:
    """Completions of positions, whose prompts are not the texts themselves: the policy was asked about them."""
    samples = [
        Sample("", "", write_pieces([piece.encode() for piece in behind]), number, ids(module, before), ids(module, behind))
        for number, (before, behind) in enumerate(texts[: len(groups)])
    ]
    prompts = [ids(module, f"<bos>next of {before}<scratchpad>") for before, _ in texts[: len(groups)]]
    batch = PromptBatch.pad(prompts, [[] for _ in prompts], samples, int(module.tokenizer.pad_token_id))
    texts = [text for group in groups for text in group]
    cut = torch.tensor(truncated or [False] * len(texts))
    rows = [ids(module, text) + ([] if late else ids(module, "<eos>")) for text, late in zip(texts, cut, strict=True)]
    rollouts = rollouts_of(batch, len(groups[0]), rows, truncated=cut)
    rollouts.texts = texts
    return rollouts


def prepared(module: RPT, rollouts: Rollouts) -> Tensor:
    module.reward.prepare(module, rollouts)
    score_rollouts(module.reward, rollouts)
    return rollouts.rewards


def plain_logprobs(module: RPT, before: str, behind: str) -> Tensor:
    """Of each token of a text behind another, by a forward of the whole model."""
    first, second = ids(module, before), ids(module, behind)
    with torch.no_grad():
        logits = module.policy.model(torch.tensor([first + second])).logits[0, len(first) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(second)[:, None])[:, 0]


def move(module: nn.Module, scale: float = 0.1) -> None:
    """Another policy, as after some steps."""
    with torch.no_grad():
        for weight in module.parameters():
            weight += scale * torch.randn_like(weight)


# --- dense credit ---------------------------------------------------------------------------------------------------


def test_a_wrong_prediction_earns_the_probability_of_its_first_token_behind_the_plain_text():
    module = attached(DensePrefixMatch(ANSWER))
    right = ["<answer>(7)", "<answer>()", "<answer>(56)"]
    groups = [["so<answer>(46)", "<answer>(57)", "no"], right, ["<answer>(zz)", "(1", ""]]
    expected = [
        [1, plain_logprobs(module, "12+34=", "5").exp(), 0],
        [plain_logprobs(module, "7*8=", "7").exp(), 0, 1],
        [plain_logprobs(module, "9-", "z").exp(), 0, 0],
    ]
    assert prepared(module, sampled(module, *groups)).tolist() == pytest.approx([float(p) for row in expected for p in row])


def test_each_text_is_asked_with_its_own_completions_in_forwards_of_a_few_texts():
    module = attached(DensePrefixMatch(ANSWER))
    texts = [(f"{number}+{number * number}=", "x") for number in range(19)]
    rewards = prepared(module, sampled(module, *[[f"<answer>({number % 10})"] for number in range(19)], texts=texts))
    expected = [float(plain_logprobs(module, before, str(n % 10)).exp()) for n, (before, _) in enumerate(texts)]
    assert rewards.tolist() == pytest.approx(expected)


def test_conditional_credit_is_for_groups_with_a_right_prediction():
    module = attached(DensePrefixMatch(ANSWER, conditional=True))
    rewards = prepared(module, sampled(module, ["<answer>(4)", "<answer>(57)"], ["<answer>(4)", "<answer>(57)"]))
    wrong = float(plain_logprobs(module, "12+34=", "5").exp())
    assert rewards.tolist() == pytest.approx([1, wrong, 0, 0])
    assert wrong > 0


def test_the_penalty_for_no_prediction_stands_beside_dense_credit():
    module = attached(DensePrefixMatch(ANSWER, conditional=True, no_answer=-0.5))
    rollouts = sampled(module, ["<answer>(1)", "no", "<answer>(46)"], truncated=[False, False, True])
    assert prepared(module, rollouts).tolist() == [0, -0.5, -0.5]


def test_dense_credit_is_logged_beside_the_hits():
    module = attached(DensePrefixMatch(ANSWER))
    rollouts = sampled(module, ["<answer>(46)", "<answer>(57)"])
    rewards = prepared(module, rollouts)
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


def test_dense_credit_without_the_policy_is_refused():
    module = attached(DensePrefixMatch(ANSWER))
    with pytest.raises(RewardError, match="without `prepare`; in an evaluation write PrefixMatch"):
        score_rollouts(module.reward, sampled(module, ["<answer>(46)"]))


# --- information gain -----------------------------------------------------------------------------------------------


def gain(module: RPT, text: str, thought: str, after: str = "<answer>", lead: str = "") -> float:
    """Of a thought before the text, over none, under one policy."""
    before, behind = text
    prompt = f"<bos>next of {before}<scratchpad>"
    informed = plain_logprobs(module, prompt + thought + lead, behind).mean()
    return float(informed - plain_logprobs(module, prompt + after + lead, behind).mean())


def test_the_reward_is_the_gain_in_log_probability_per_token_over_no_thought():
    module = attached(InformationGain(after="<answer>"))
    rewards = prepared(module, sampled(module, ["1+2<answer>", "x<answer>y<answer>(46)"], ["<answer>", "9*9<answer>7"]))
    thoughts = [("1+2<answer>", 0), ("x<answer>y<answer>", 0), ("<answer>", 1), ("9*9<answer>", 1)]
    assert rewards.tolist() == pytest.approx([gain(module, TEXTS[text], thought) for thought, text in thoughts], abs=1e-5)
    assert rewards[2] == pytest.approx(0, abs=1e-6)


def test_a_thought_that_does_not_end_is_ended():
    module = attached(InformationGain(after="<answer>"))
    rewards = prepared(module, sampled(module, ["1+2", "1+2"], truncated=[False, True]))
    assert rewards.tolist() == pytest.approx([gain(module, TEXTS[0], "1+2<answer>")] * 2, abs=1e-5)


def test_the_lead_stands_behind_the_thought_and_behind_none():
    module = attached(InformationGain(after="==", lead=" is "))
    rewards = prepared(module, sampled(module, ["1+2==3"]))
    assert rewards.tolist() == pytest.approx([gain(module, TEXTS[0], "1+2==", "==", " is ")], abs=1e-5)


def test_without_an_end_the_whole_completion_is_the_thought():
    module = attached(InformationGain(after=""))
    rewards = prepared(module, sampled(module, ["1+2<answer>", ""]))
    assert rewards.tolist() == pytest.approx([gain(module, TEXTS[0], "1+2<answer>", ""), 0], abs=1e-5)


def test_more_rows_than_one_forward_takes_keep_their_order():
    module = attached(InformationGain(after="<answer>"))
    thoughts = [f"{number}{'+1' * (number % 4)}<answer>" for number in range(21)]
    rewards = prepared(module, sampled(module, *(thoughts[first : first + 7] for first in (0, 7, 14))))
    expected = [gain(module, TEXTS[number // 7], thought) for number, thought in enumerate(thoughts)]
    assert rewards.tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("pieces", "end"),
    [
        ([b"a", b"</", b"think", b">", b"b"], 4),
        ([b"a</th", b"ink>\n", b"b"], 2),
        ([b"</think>", b"a", b"</think>", b"b"], 3),
        ([b"</think>"], 1),
        ([b"a", b"</think"], None),
        ([], None),
    ],
)
def test_a_thought_ends_with_the_token_in_which_its_end_ends(pieces, end):
    assert thought_end(pieces, b"</think>") == end


def test_with_decay_1_the_baseline_is_the_policy_as_training_began():
    module = attached(InformationGain(decay=1.0, after="<answer>"))
    rollouts = sampled(module, ["1+2<answer>"])
    prompt = "<bos>next of 12+34=<scratchpad>"
    start = plain_logprobs(module, prompt + "<answer>", "46").mean()
    prepared(module, rollouts)
    move(module)
    module.reward.average.step = -1  # as after an optimizer step
    now = plain_logprobs(module, prompt + "1+2<answer>", "46").mean()
    assert prepared(module, rollouts).tolist() == pytest.approx([float(now - start)], abs=1e-5)


def test_with_decay_0_the_baseline_is_the_policy_itself():
    module = attached(InformationGain(decay=0.0, after="<answer>"))
    rollouts = sampled(module, ["1+2<answer>"])
    prepared(module, rollouts)
    move(module)
    module.reward.average.step = -1
    assert prepared(module, rollouts).tolist() == pytest.approx([gain(module, TEXTS[0], "1+2<answer>")], abs=1e-5)


@pytest.mark.parametrize("decay", [-0.1, 1.1, float("nan")])
def test_a_decay_beyond_0_and_1_is_refused(decay):
    with pytest.raises(ValueError, match=r"reward\.decay is .*; write 0"):
        InformationGain(decay)


def test_an_end_of_thoughts_that_the_tokenizer_cannot_write_is_refused():
    module = attached(InformationGain())
    with pytest.raises(ValueError, match=r"reward\.after is '</think>', which the policy's tokenizer cannot write"):
        prepared(module, sampled(module, ["1"]))


def test_samples_without_a_target_are_refused():
    module = attached(InformationGain(after="="))
    with pytest.raises(ValueError, match="sample 0 has no target for information_gain; set `positions`"):
        prepared(module, sampled(module, ["1"], texts=[("1+1=", "")]))


def test_a_thought_and_target_beyond_the_models_positions_are_refused():
    module = attached(InformationGain(after="="))
    with pytest.raises(ValueError, match=r"sample 0 has 139 tokens with thought and target, more than the model's 128"):
        prepared(module, sampled(module, ["1" * 120]))


def test_sharded_weights_are_refused():
    module = attached(InformationGain(after="="))
    module._device_mesh = object()  # what the fsdp2 strategy sets
    with pytest.raises(ValueError, match=r"fsdp2 shards them: write trainer\.strategy ddp"):
        prepared(module, sampled(module, ["1"]))


def test_information_gain_without_the_policy_is_refused():
    module = attached(InformationGain(after="="))
    with pytest.raises(RewardError, match="without `prepare`"):
        score_rollouts(module.reward, sampled(module, ["1"]))


# --- the moving average ---------------------------------------------------------------------------------------------


def linear(*values: float, dtype=torch.float32) -> nn.Linear:
    layer = nn.Linear(len(values), 1, bias=False, dtype=dtype)
    layer.weight.data = torch.tensor([values], dtype=dtype)
    return layer


def test_the_average_moves_by_its_share_once_per_step():
    model, average = linear(1.0, 8.0), WeightAverage(0.75)
    average.update(model, 0)
    assert average.weights["weight"].tolist() == [[1, 8]]
    model.weight.data = torch.tensor([[5.0, 0.0]])
    average.update(model, 0)
    assert average.weights["weight"].tolist() == [[1, 8]]
    average.update(model, 2)
    assert average.weights["weight"].tolist() == [[2, 6]]
    average.update(model, 3)
    assert average.weights["weight"].tolist() == [[2.75, 4.5]]


def test_the_average_of_bfloat16_weights_does_not_stand_still():
    model, average = linear(1.0, dtype=torch.bfloat16), WeightAverage(0.999)
    average.update(model, 0)
    model.weight.data += 1
    average.update(model, 1)
    assert float(average.weights["weight"]) == pytest.approx(1.001)


@pytest.mark.parametrize("breaks", [False, True])
def test_the_model_has_its_own_tensors_again_after_the_average_stood_in(breaks):
    model, average = linear(1.0, 8.0), WeightAverage(0.5)
    average.update(model, 0)
    model.weight.data = torch.tensor([[1 / 3, 0.1]])
    own, parameter = model.weight.data_ptr(), model.weight
    try:
        with average.in_place_of(model):
            assert model.weight.tolist() == [[1, 8]]
            if breaks:
                raise KeyError
    except KeyError:
        assert breaks
    assert model.weight is parameter
    assert model.weight.data_ptr() == own
    assert torch.equal(model.weight, torch.tensor([[1 / 3, 0.1]]))


def test_of_an_adapter_only_the_adapter_is_averaged():
    module = attached(InformationGain(decay=0.5, after="<answer>"), lora=LoRASpec(r=2))
    rollouts = sampled(module, ["1+2<answer>"])
    prepared(module, rollouts)
    trained = {name for name, weight in module.policy.named_parameters() if weight.requires_grad}
    assert set(module.reward.average.weights) == trained
    assert all("lora" in name for name in trained)


def test_an_average_of_an_adapter_is_the_baseline_of_its_policy():
    module = attached(InformationGain(decay=1.0, after="<answer>"), lora=LoRASpec(r=2))
    rollouts = sampled(module, ["<answer>"])
    assert prepared(module, rollouts).tolist() == pytest.approx([0], abs=1e-6)
    start = plain_logprobs(module, "<bos>next of 12+34=<scratchpad><answer>", "46").mean()
    with torch.no_grad():
        for name, weight in module.policy.named_parameters():
            weight += torch.randn_like(weight) * ("lora" in name)
    now = plain_logprobs(module, "<bos>next of 12+34=<scratchpad><answer>", "46").mean()
    assert abs(float(now - start)) > 1e-3
    assert prepared(module, rollouts).tolist() == pytest.approx([float(now - start)], abs=1e-5)


# --- checkpoints ----------------------------------------------------------------------------------------------------


def test_the_average_comes_back_from_a_weights_only_file_inside_a_weighted_sum(tmp_path):
    def build() -> WeightedSum:
        return WeightedSum([PrefixMatch(ANSWER), InformationGain(0.5, "<answer>")], [1.0, 0.5])

    module, other = attached(build()), attached(build())
    rollouts = sampled(module, ["1+2<answer>(46)"])
    prepared(module, rollouts)
    move(module)
    torch.save(module.reward.state_dict(), tmp_path / "reward.pt")
    other.reward.load_state_dict(torch.load(tmp_path / "reward.pt", weights_only=True))
    other.load_state_dict(module.state_dict())
    expected = prepared(module, rollouts).clone()
    assert torch.equal(prepared(other, rollouts), expected)
    assert torch.equal(rollouts.rewards, rollouts.parts["prefix_match"] + 0.5 * rollouts.parts["information_gain"])
    assert float(rollouts.parts["information_gain"]) != pytest.approx(gain(module, TEXTS[0], "1+2<answer>"), abs=1e-4)


def test_rewards_without_state_have_none_and_take_none():
    reward = WeightedSum([PrefixMatch(), Length()], [1.0, 1.0])
    assert reward.state_dict() == {"prefix_match": {}, "length": {}}
    reward.load_state_dict({})
    PrefixMatch().load_state_dict(PrefixMatch().state_dict())


class Positions(RolloutCallback):
    """Makes positions of problems; keeps the policy's weights and the rewards of each rollout."""

    def __init__(self):
        self.weights, self.rewards = [], []

    def on_rollout_start(self, trainer, module, prompts):
        pairs = zip(prompts.samples, prompts.completions, strict=True)
        prompts.samples = [s._replace(target=ids, reference=write_pieces([s.reference.encode()])) for s, ids in pairs]
        self.weights.append({name: weight.detach().clone() for name, weight in module.policy.named_parameters()})
        return prompts

    def on_rollout_end(self, trainer, module, rollouts):
        self.rewards.append(rollouts.rewards)
        return rollouts


def run(folder, reward: Reward, saver=None, ckpt_path=None, steps=8, lora=None) -> tuple[GRPO, Positions]:
    """A real run with two steps a rollout."""
    settings = {"group_size": 4, "minibatches": 2, "optimizer": MOVING, "evaluation": Evaluation(max_new_tokens=4)}
    module, seen = GRPO(tiny_spec(lora=lora), sampler=Sampler(max_new_tokens=4), reward, **settings), Positions()
    callbacks = [seen, saver] if saver else [seen]
    trainer = quiet_trainer(folder, max_steps=steps, enable_checkpointing=saver is not None, callbacks=callbacks)
    trainer.fit(module, tiny_data(), ckpt_path=ckpt_path)
    return module, seen


def test_the_average_follows_the_policy_once_per_rollout(tmp_path):
    module, seen = run(tmp_path, InformationGain(0.75, "<answer>"))
    assert len(seen.weights) == 4
    for name, average in module.reward.average.weights.items():
        expected = seen.weights[0][name]
        for later in seen.weights[1:]:
            expected = 0.75 * expected + 0.25 * later[name]
        torch.testing.assert_close(average, expected)


def test_the_average_is_no_part_of_the_model(tmp_path):
    module, _ = run(tmp_path, InformationGain(0.75, "<answer>"), steps=2)
    assert set(module.state_dict()) == {f"policy.{name}" for name in module.policy.state_dict()} | {
        f"evaluation.{name}" for name in module.evaluation.state_dict()
    }


@pytest.mark.parametrize("step", [4, 5])  # between two rollouts and inside one
@pytest.mark.parametrize("lora", [None, LoRASpec(r=2)])
def test_a_resumed_run_pays_the_same_rewards(tmp_path, step, lora):
    build = functools.partial(InformationGain, 0.75, "<answer>")
    saver = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=step, save_on_train_epoch_end=False, save_top_k=-1)
    whole, watched = run(tmp_path, build(), saver, lora=lora)
    resumed, seen = run(tmp_path, build(), ckpt_path=tmp_path / f"step={step}.ckpt", lora=lora)
    assert len(seen.rewards) == {4: 2, 5: 1}[step]
    for ours, theirs in zip(seen.rewards, watched.rewards[-len(seen.rewards) :], strict=True):
        assert torch.equal(ours, theirs)
        assert len(ours.unique()) > 1
    for name, average in whole.reward.average.weights.items():
        assert torch.equal(average, resumed.reward.average.weights[name])


def test_a_checkpoint_of_a_run_without_state_begins_a_new_average(tmp_path):
    saver = ModelCheckpoint(tmp_path, "at", every_n_train_steps=2)
    run(tmp_path, Length(), saver, steps=2)
    module, seen = run(tmp_path, InformationGain(1.0, "<answer>"), ckpt_path=tmp_path / "at.ckpt", steps=4)
    for name, average in module.reward.average.weights.items():
        assert torch.equal(average, seen.weights[0][name])


def test_dense_credit_is_paid_in_a_real_run(tmp_path):
    _, seen = run(tmp_path, DensePrefixMatch(AnswerFormat(after="", opening="", closing="")), steps=2)
    assert bool(((seen.rewards[0] > 0) & (seen.rewards[0] < 1)).any())
