"""lit-rl's objectives beside TRL's GRPOTrainer: the same rollout gives the same loss and the same gradient.

Both get the same completions, rewards and sampler's log-probabilities, and make of them what they make of any rollout. Then
the weights move, so that ratios are far from 1, and each computes its loss. Where the two differ a test says how and shows it.
"""

from dataclasses import dataclass

import pytest
import torch
from conftest import tiny_spec
from datasets import Dataset
from transformers import AutoModelForCausalLM

from lit_rl.models import Policy, PolicySpec
from lit_rl.models.loading import load_model, load_tokenizer
from lit_rl.objectives import Correction, Objective, Overlong
from lit_rl.objectives.advantages import group_advantages
from lit_rl.objectives.aggregation import counted_sequences, token_weights
from lit_rl.objectives.objective import top_entropy_mask
from lit_rl.rollouts import Rollouts
from lit_rl.support import Support
from lit_rl.types import PromptBatch, Sample

trl = pytest.importorskip("trl", minversion="1.16.0")
if not trl.__version__.startswith("1.16."):
    pytest.skip(f"compared with trl 1.16, not {trl.__version__}", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("ignore:.*rollout_func:UserWarning")

PROMPTS = [[1, 3, 8, 17, 9, 6], [1, 3, 12, 6], [1, 4, 9, 9, 19, 10, 18, 11, 6]]
GROUP, LIMIT, END = 4, 7, 2
LENGTHS = [7, 1, 4, 2, 5, 7, 1, 6, 3, 1, 7, 4]
TRUNCATED = (0, 5)
REWARDS = [1.0, 0.0, 0.25, 1.5, 0.0, 1.0, 1.0, 0.0, 0.5, 2.0, 0.0, 0.125]
EVERY = list(range(len(LENGTHS)))
MOVED = 0.02  # std of what the weights move by
BEFORE, AFTER = 1, 123  # seeds of the moves from the reference to the sampler, and on to the learner
MISMATCH = 0.4  # std of what a sampler that computes otherwise is off by, in nats
SAME = 1e-5  # relative, in float32


def completions() -> list[list[int]]:
    """Random tokens; a row ends with the end token unless it was truncated."""
    draw = torch.Generator().manual_seed(5)
    rows = [torch.randint(7, 40, (length,), generator=draw).tolist() for length in LENGTHS]
    return [row if number in TRUNCATED else [*row[:-1], END] for number, row in enumerate(rows)]


def saved_model(folder, model_type: str):
    """A tiny model on disk, its weights large enough for entropies to differ."""
    spec = tiny_spec(model_type, config={"initializer_range": 0.2})
    torch.manual_seed(0)
    load_model(spec, load_tokenizer(spec)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return saved_model(tmp_path_factory.mktemp("start"), "llama")


def move(model: torch.nn.Module, seed: int, size: float = MOVED) -> None:
    """Change all weights a little, as some optimizer steps would."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=draw), alpha=size)


@dataclass
class Result:
    """What an optimizer step descends on, and what was logged with it."""

    loss: torch.Tensor
    gradient: dict[str, torch.Tensor]
    logged: dict

    def __add__(self, other: "Result") -> "Result":
        gradient = {name: value + other.gradient[name] for name, value in self.gradient.items()}
        return Result(self.loss + other.loss, gradient, {})

    def times(self, factor: float) -> "Result":
        return Result(factor * self.loss, {name: factor * value for name, value in self.gradient.items()}, {})


def gradient_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight.grad for name, weight in model.named_parameters()}


def assert_same_loss(ours: Result, theirs: Result) -> None:
    # Positive and negative tokens cancel, each a loss of order 1: hence the absolute bound.
    assert float(ours.loss) == pytest.approx(float(theirs.loss), rel=SAME, abs=SAME / 10)


def gradient_apart(ours: Result, theirs: Result) -> float:
    """The largest relative difference of any weight's gradient."""
    assert ours.gradient.keys() == theirs.gradient.keys()
    return max(float((ours.gradient[name] - value).norm() / value.norm()) for name, value in theirs.gradient.items())


def assert_same(ours: Result, theirs: Result) -> None:
    assert_same_loss(ours, theirs)
    assert gradient_apart(ours, theirs) < SAME


# --- lit-rl's side -----------------------------------------------------------------------------------------------


@torch.no_grad()
def rolled_out(folder, temperature=1.0, mismatch=0.0, masked=False, drift=0.0, support=None) -> tuple[Policy, Rollouts]:
    """A policy and what it sampled; ``mismatch`` is the sampler's error, ``drift`` is added to what it recorded."""
    spec = PolicySpec(pretrained=str(folder), tokenizer="arithmetic")
    policy = Policy(spec, load_tokenizer(spec))
    policy.disable_dropout()
    prompts = PromptBatch.pad(PROMPTS, [[] for _ in PROMPTS], [Sample("", "", "", n) for n in range(len(PROMPTS))], 0)
    ids = torch.tensor([row + [0] * (LIMIT - len(row)) for row in completions()])
    zeros, heat = torch.zeros(ids.shape), torch.full((len(ids),), temperature)
    truncated = torch.tensor([row in TRUNCATED for row in EVERY])
    rollouts = Rollouts(
        prompts,
        completion_ids=ids,
        lengths=torch.tensor(LENGTHS),
        truncated=truncated,
        logprobs=zeros,
        entropies=zeros,
        temperature=heat,
        support=support,
    )
    rollouts.rewards = torch.tensor(REWARDS)
    rollouts.ref_logprobs = policy.score(rollouts).logprobs
    move(policy.model, BEFORE)
    rollouts.old_logprobs, rollouts.entropies, _ = policy.score(rollouts)
    error = mismatch * torch.randn(ids.shape, generator=torch.Generator().manual_seed(3)) + drift
    rollouts.logprobs = rollouts.old_logprobs + error * rollouts.mask
    Overlong(action="mask" if masked else "keep").apply(rollouts, LIMIT)
    return policy, rollouts


def lit_rl(
    folder, objective: Objective, kl=0.0, entropy=0.0, scale="group", parts=((0, 1, 2),), moved=MOVED, **world
) -> Result:
    """Loss and gradient of lit-rl in one optimizer step; ``parts`` are its micro-batches, prompts in each."""
    policy, rollouts = rolled_out(folder, **world)
    move(policy.model, AFTER, moved)
    mask = rollouts.loss_mask
    advantages = group_advantages(rollouts.rewards.view(-1, GROUP), scale=scale)
    rollouts.advantages = advantages.view(-1, 1) * mask
    if objective.top_entropy < 1:
        rollouts.gradient_mask = top_entropy_mask(rollouts.entropies, mask, rollouts.entropies[mask], objective.top_entropy)
    if not kl:
        del rollouts.ref_logprobs
    pieces = [rollouts.select(list(part)) for part in parts]
    tokens = sum(int(piece.loss_mask.sum()) for piece in pieces)
    rows = sum(int(counted_sequences(piece.loss_mask, objective.aggregation).sum()) for piece in pieces)
    total, logged = torch.zeros(()), {"tokens": tokens}
    for piece in pieces:
        scores = policy.score(piece, entropy_grad=entropy != 0, details=False)
        losses, shares, means, weights = objective.token_losses(scores, piece, kl)
        loss = (losses * token_weights(piece.loss_mask, objective.aggregation, tokens, rows, LIMIT)).sum()
        loss = loss - entropy * (scores.entropies * piece.loss_mask).sum() / tokens
        loss.backward()
        total += loss.detach()
        logged |= {name: float((value * piece.loss_mask).sum() / tokens) for name, value in (shares | means).items()}
        logged |= {"ratio": (scores.logprobs.detach() - piece.logprobs).exp(), "weights": weights, "rows": piece}
    return Result(total, gradient_of(policy.model), logged)


# --- TRL's side --------------------------------------------------------------------------------------------------


def trl_rollout(folder, mismatch=0.0, **options):
    """A GRPOTrainer on the same weights, and what it made of the same completions, by its own code."""
    settings = {"loss_type": "grpo", "num_iterations": 2, "use_bias_correction_kl": False, "steps_per_generation": 1} | options
    quiet = {"report_to": "none", "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "disable_dropout": True}
    shape = {"num_generations": GROUP, "max_completion_length": LIMIT}
    shape["per_device_train_batch_size"] = len(EVERY) // settings["steps_per_generation"]
    config = trl.GRPOConfig(output_dir=str(folder / "out"), **quiet, **shape, **settings)
    sampled = rolled_out(folder, config.temperature, mismatch)[1].logprobs
    rollout = {
        "prompt_ids": [PROMPTS[row // GROUP] for row in EVERY],
        "completion_ids": completions(),
        "logprobs": [row[:length].tolist() for row, length in zip(sampled, LENGTHS, strict=True)],
    }
    examples = [{"prompt": f"prompt {row // GROUP}"} for row in EVERY]
    trainer = trl.GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        reward_funcs=lambda **_: REWARDS,
        args=config,
        train_dataset=Dataset.from_list(examples[::GROUP]),
        processing_class=load_tokenizer(tiny_spec()),
        rollout_func=lambda prompts, trainer: dict(rollout),
    )
    trainer.model.train()
    if mismatch:  # the correction is bound to vLLM; the completions are here already
        trainer.use_vllm, trainer._last_loaded_step = True, trainer.state.global_step
    move(trainer.model, BEFORE)
    inputs = trainer._generate_and_score_completions(examples)
    trainer.current_gradient_accumulation_steps = config.gradient_accumulation_steps
    return trainer, inputs


def trl_loss(folder, parts=((0, 1, 2),), moved=MOVED, drift=0.0, **options) -> Result:
    """Loss and gradient of TRL in one optimizer step."""
    trainer, inputs = trl_rollout(folder, **options)
    inputs["old_per_token_logps"] += drift * inputs["completion_mask"]
    move(trainer.model, AFTER, moved)
    total = torch.zeros(())
    for part in parts:
        rows = [row for row in EVERY if row // GROUP in part]
        loss = trainer._compute_loss(trainer.model, {k: v if v.dim() == 0 else v[rows] for k, v in inputs.items()})
        loss.backward()
        total += loss.detach()
    logged = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    return Result(total, gradient_of(trainer.model), logged)


# --- the same ----------------------------------------------------------------------------------------------------

EACH = ((0,), (1,), (2,))
BY_ROW = {"aggregation": "sequence"}
SEQUENCE = {"importance_sampling_level": "sequence"}


def correction(mode: str, low: float | None, high: float) -> tuple:
    level, method = mode.split("_")
    names = {"mode": mode, "clip_min": low, "clip_max": high}
    theirs = {f"vllm_importance_sampling_{name}": value for name, value in names.items()} | {"mismatch": MISMATCH}
    return theirs, Objective(**BY_ROW, correction=Correction(method, level, low or 0.0, high)), {"mismatch": MISMATCH}


TOKEN_MASK = correction("token_mask", None, 1.25)[0]

CASES = {
    "GRPO": ({}, Objective(**BY_ROW), {}),
    "GRPO with a KL": ({"beta": 0.5}, Objective(**BY_ROW), {"kl": 0.5}),
    "GRPO with a weighted KL": (
        {"beta": 0.5, "use_bias_correction_kl": True},
        Objective(**BY_ROW, kl_weighted=True),
        {"kl": 0.5},
    ),
    "BNPO": ({"loss_type": "bnpo"}, Objective(), {}),
    "DAPO": ({"loss_type": "dapo", "epsilon_high": 0.28}, Objective(clip_high=0.28), {}),
    "DAPO without truncated completions": (
        {"loss_type": "dapo", "mask_truncated_completions": True},
        Objective(),
        {"masked": True},
    ),
    "Dr. GRPO": ({"loss_type": "dr_grpo", "scale_rewards": "none"}, Objective(aggregation="constant"), {"scale": "none"}),
    "Dr. GRPO, truncated rows left out": (
        {"loss_type": "dr_grpo", "scale_rewards": "none", "mask_truncated_completions": True},
        Objective(aggregation="constant"),
        {"scale": "none", "masked": True},
    ),
    "CISPO": ({"loss_type": "cispo", "epsilon_high": 1.5}, Objective("cispo", clip_low=1.0, clip_high=0.5), {}),
    "SAPO": ({"loss_type": "sapo"}, Objective("sapo", **BY_ROW), {}),
    "GSPO": ({**SEQUENCE, "epsilon": 0.1, "epsilon_high": 0.15}, Objective("clip", "sequence", 0.1, 0.15, **BY_ROW), {}),
    "GSPO averaged over tokens": ({**SEQUENCE, "loss_type": "dapo"}, Objective(ratio="sequence"), {}),
    "two-sided clip": ({"delta": 1.4}, Objective(**BY_ROW, dual_clip=1.4), {}),
    "off-policy mask": ({"off_policy_mask_threshold": 0.05}, Objective(**BY_ROW, off_policy_threshold=0.05), {}),
    "temperature": ({"temperature": 0.7}, Objective(**BY_ROW), {"temperature": 0.7}),
    "entropy bonus": ({"loss_type": "bnpo", "entropy_coef": 0.5}, Objective(), {"entropy": 0.5}),
    "top entropy": ({"top_entropy_quantile": 0.2, "moved": 0.0}, Objective(**BY_ROW, top_entropy=0.2), {"moved": 0.0}),
    "tokens truncated": correction("token_truncate", 0.8, 1.25),
    "tokens masked": correction("token_mask", 0.8, 1.25),
    "sequences truncated": correction("sequence_truncate", None, 1.5),
    "sequences masked": correction("sequence_mask", 0.5, 2.0),
    "many at once": (
        {"loss_type": "dapo", "epsilon_high": 0.28, "delta": 1.4, "beta": 0.5, "entropy_coef": 0.1, "temperature": 0.7}
        | {"use_bias_correction_kl": True, "off_policy_mask_threshold": 0.05, "mask_truncated_completions": True}
        | TOKEN_MASK,
        Objective(
            clip_high=0.28, dual_clip=1.4, off_policy_threshold=0.05, kl_weighted=True, correction=Correction("mask", high=1.25)
        ),
        {"kl": 0.5, "entropy": 0.1, "temperature": 0.7, "masked": True, "mismatch": MISMATCH},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_are_those_of_trl(start, case):
    theirs, objective, ours = CASES[case]
    assert_same(lit_rl(start, objective, **ours), trl_loss(start, **theirs))


# One for each aggregation, and a ratio of sequences.
@pytest.mark.parametrize("case", ["GRPO", "DAPO", "Dr. GRPO", "GSPO"])
def test_loss_and_gradient_are_those_of_trl_over_micro_batches(start, case):
    theirs, objective, ours = CASES[case]
    pieces = {"gradient_accumulation_steps": 3, "steps_per_generation": 3}
    assert_same(lit_rl(start, objective, parts=EACH, **ours), trl_loss(start, parts=EACH, **theirs, **pieces))


def test_no_two_compared_objectives_have_the_same_loss(start):
    losses = {round(float(lit_rl(start, objective, **ours).loss), 5) for _, objective, ours in CASES.values()}
    assert len(losses) == len(CASES)


def test_the_compared_ratios_are_clipped_on_both_sides_for_both_signs(start):
    logged = lit_rl(start, Objective(**BY_ROW)).logged
    ratio, advantages = logged["ratio"], logged["rows"].advantages
    counts = [int((far & (sign * advantages > 0)).sum()) for far in (ratio > 1.2, ratio < 0.8) for sign in (1, -1)]
    assert min(counts) >= 4


def test_the_compared_ratios_of_sequences_are_clipped_on_both_sides(start):
    theirs = trl_loss(start, **CASES["GSPO"][0]).logged
    assert min(theirs["clip_ratio/low_mean"], theirs["clip_ratio/high_mean"]) > 0.05


def test_what_is_logged_is_what_trl_logs(start):
    theirs, objective, ours = CASES["GRPO with a KL"]
    lit, other = lit_rl(start, objective, **ours).logged, trl_loss(start, **theirs).logged
    for name in ("clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean", "kl"):
        assert lit[name] == pytest.approx(other[name], rel=SAME), name


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_advantages_are_those_of_trl(start, scale):
    theirs = trl_rollout(start, scale_rewards=scale)[1]["advantages"]
    assert torch.allclose(group_advantages(torch.tensor(REWARDS).view(-1, GROUP), scale=scale).flatten(), theirs, atol=1e-6)


# --- different ---------------------------------------------------------------------------------------------------


def test_trl_counts_completions_that_are_left_out_in_the_mean_over_sequences(start):
    # Leaving out is DAPO's, whose mean over tokens is the same in both; here lit-rl's is the mean of those that are left.
    ours = lit_rl(start, Objective(aggregation="sequence"), masked=True)
    theirs = trl_loss(start, loss_type="grpo", mask_truncated_completions=True)
    assert_same(ours.times((len(EVERY) - len(TRUNCATED)) / len(EVERY)), theirs)


def test_trl_averages_bnpo_over_micro_batches_first(start):
    # lit-rl's mean is over all tokens of the step, however it was cut (DAPO, 2503.14476, section 3.3).
    alone = [lit_rl(start, Objective(), parts=(part,)) for part in EACH]
    theirs = trl_loss(start, parts=EACH, loss_type="bnpo", gradient_accumulation_steps=3, steps_per_generation=3)
    assert_same((alone[0] + alone[1] + alone[2]).times(1 / 3), theirs)
    assert gradient_apart(lit_rl(start, Objective(), parts=EACH), theirs) > 0.1


def test_trl_divides_each_of_several_steps_on_a_rollout_by_their_mean_number_of_tokens(start):
    # lit-rl divides by the step's own tokens, as in DAPO's eq. 12 for the completions it sums over.
    ours = lit_rl(start, Objective(), parts=((1,),))
    theirs = trl_loss(start, parts=((1,),), loss_type="dapo", steps_per_generation=3)
    assert_same(ours.times(3 * ours.logged["tokens"] / sum(LENGTHS)), theirs)


def test_the_entropy_bonus_is_a_mean_over_tokens_under_any_loss(start):
    assert_same(lit_rl(start, Objective(**BY_ROW), entropy=0.5), trl_loss(start, entropy_coef=0.5))


APART = {
    # lit-rl weights the KL by the token's ratio, as DeepSeek-V3.2 does (2512.02556, section 3.1); TRL by the sequence's.
    "weighted KL under GSPO": (
        {**SEQUENCE, "beta": 0.5, "use_bias_correction_kl": True},
        Objective(ratio="sequence", kl_weighted=True, **BY_ROW),
        {"kl": 0.5},
    ),
    # lit-rl ranks tokens by the entropy at which they were sampled, once a rollout; TRL by the learner's, in each micro-batch.
    "top entropy after a step": ({"top_entropy_quantile": 0.2}, Objective(**BY_ROW, top_entropy=0.2), {}),
    # lit-rl keeps the bonus on all tokens: 2506.01939 leaves out policy gradients, and has no bonus.
    "entropy bonus with top entropy": (
        {"loss_type": "bnpo", "top_entropy_quantile": 0.2, "entropy_coef": 0.5, "moved": 0.0},
        Objective(top_entropy=0.2),
        {"entropy": 0.5, "moved": 0.0},
    ),
}


@pytest.mark.parametrize("case", APART)
def test_trl_differs_in(start, case):
    theirs, objective, ours = APART[case]
    assert gradient_apart(lit_rl(start, objective, **ours), trl_loss(start, **theirs)) > 0.05


@pytest.mark.parametrize(
    ("theirs", "ours", "world"),
    [
        ({"top_entropy_quantile": 0.2, "moved": 0.0}, {"top_entropy": 0.2}, {"moved": 0.0}),
        (TOKEN_MASK, {"correction": Correction("mask", high=1.25)}, {"mismatch": MISMATCH}),
    ],
    ids=["top entropy", "weights of tokens"],
)
def test_under_gspo_a_token_left_out_keeps_its_gradient_in_trl(start, theirs, ours, world):
    # A token's share goes to the ratio of the whole sequence there; in lit-rl to the token's own log-probability, as in
    # GSPO-token (2507.18071, eq. 14), so that what 2506.01939 leaves out is left out.
    lit, other = lit_rl(start, Objective(ratio="sequence", **BY_ROW, **ours), **world), trl_loss(start, **SEQUENCE, **theirs)
    assert_same_loss(lit, other)
    assert gradient_apart(lit, other) > 0.1


def test_the_share_of_highest_entropy_differs_by_at_most_one_token(start):
    # TRL interpolates a quantile over 47 gaps, lit-rl rounds the share of 48 tokens.
    trainer = trl_rollout(start)[0]
    entropies, mask = torch.rand(6, 8), torch.ones(6, 8, dtype=torch.bool)
    for share, ours, theirs in ((0.2, 10, 10), (0.3, 14, 15), (0.5, 24, 24)):
        assert int(top_entropy_mask(entropies, mask, entropies.flatten(), share).sum()) == ours
        assert int(trainer.get_high_entropy_mask(entropies, mask, 1 - share).sum()) == theirs


def test_trl_scores_another_policy_than_was_sampled_behind_padded_prompts_of_gpt2(tmp_path):
    # TRL passes no positions: absolute ones then count the padding.
    folder = saved_model(tmp_path, "gpt2")
    theirs = trl_rollout(folder)[1]["old_per_token_logps"]
    policy, rollouts = rolled_out(folder)
    whole = torch.tensor([PROMPTS[0] + completions()[0]])
    alone = policy.model(whole).logits.log_softmax(-1)[0, len(PROMPTS[0]) - 1 : -1].gather(1, whole[0, len(PROMPTS[0]) :, None])
    assert torch.allclose(rollouts.old_logprobs[0], alone[:, 0], atol=1e-5)
    assert torch.allclose(rollouts.old_logprobs[8:], theirs[8:], atol=1e-5)
    assert (rollouts.old_logprobs[:8] - theirs[:8]).abs().max() > 0.1


def test_trl_scores_tokens_without_the_top_k_they_were_drawn_from(start):
    mask = torch.arange(LIMIT) < torch.tensor(LENGTHS)[:, None]
    support = Support(torch.arange(40, dtype=torch.int32).repeat(sum(LENGTHS)), 40 * mask.int())
    theirs = trl_rollout(start, top_k=40)[1]["old_per_token_logps"]
    assert torch.allclose(rolled_out(start)[1].old_logprobs, theirs, atol=1e-5)
    assert (rolled_out(start, support=support)[1].old_logprobs > theirs + 0.05)[mask].all()


def test_a_ratio_that_overflows_is_infinite_in_trl_alone(start):
    assert torch.isfinite(lit_rl(start, Objective(), drift=-100.0).loss)
    assert not torch.isfinite(trl_loss(start, loss_type="bnpo", drift=-100.0).loss)
