"""Options that contradict each other or mean nothing are refused in one line that says what to write; no others are."""

from itertools import product

import pytest
from conftest import tiny_spec
from tiny_runs import refusal, tiny_config, write_yaml

from lit_rl.algorithms import GRPO
from lit_rl.models import LoRASpec
from lit_rl.objectives import Correction, Objective, Overlong
from lit_rl.sampling import Sampler

BASELINES = ["group", "leave_one_out", "phantom_zero", "batch", "none"]
SCALES = ["group", "batch", "none"]
TOGETHER = (
    "What goes together: clip: ratio token or sequence, clip_low, clip_high, and with ratio token dual_clip; "
    "cispo: ratio token, clip_low, clip_high; sapo: ratio token, sapo_positive, sapo_negative; "
    "reinforce: one epoch of one minibatch."
)


def refused(make, **options) -> str:
    """The one line that the options are refused with."""
    with pytest.raises(ValueError, match=r"\S") as stop:
        make(**options)
    message = str(stop.value)
    assert "\n" not in message
    return message


def grpo(**options) -> GRPO:
    return GRPO(tiny_spec(), **options)


# --- surrogates --------------------------------------------------------------------------------------------------

UNREAD = [
    ("clip", {"sapo_positive": 2.0}),
    ("clip", {"sapo_negative": 2.0}),
    ("cispo", {"ratio": "sequence"}),
    ("cispo", {"dual_clip": 3.0}),
    ("cispo", {"sapo_positive": 2.0}),
    ("cispo", {"sapo_negative": 2.0}),
    ("sapo", {"ratio": "sequence"}),
    ("sapo", {"clip_low": 0.1}),
    ("sapo", {"clip_high": 0.28}),
    ("sapo", {"dual_clip": 3.0}),
    ("reinforce", {"ratio": "sequence"}),
    ("reinforce", {"clip_low": 0.1}),
    ("reinforce", {"clip_high": 0.28}),
    ("reinforce", {"dual_clip": 3.0}),
    ("reinforce", {"sapo_positive": 2.0}),
    ("reinforce", {"sapo_negative": 2.0}),
]


@pytest.mark.parametrize(("surrogate", "option"), UNREAD)
def test_an_option_that_the_surrogate_does_not_read_is_refused_with_what_goes_together(surrogate, option):
    ((name, value),) = option.items()
    message = refused(Objective, surrogate=surrogate, **option)
    assert message.startswith(f"objective.{name} {value} does not go with surrogate {surrogate}")
    assert message.endswith(TOGETHER)


def test_a_dual_clip_of_sequences_is_refused():
    message = refused(Objective, ratio="sequence", dual_clip=3.0)
    assert message == f"objective.dual_clip 3.0 does not go with surrogate clip on ratio sequence. {TOGETHER}"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"clip_low": 0.1, "clip_high": 0.28},
        {"clip_low": 0.0, "clip_high": 0.0},
        {"clip_low": 1.5},
        {"dual_clip": 3.0},
        {"dual_clip": 1.3},
        {"clip_high": 0.28, "dual_clip": 1.29},
        {"ratio": "sequence", "clip_low": 3e-4, "clip_high": 4e-4},
        {"surrogate": "cispo", "clip_low": 1.0, "clip_high": 4.0},
        {"surrogate": "sapo", "sapo_positive": 0.5, "sapo_negative": 3.0},
        {"surrogate": "reinforce"},
    ],
)
def test_what_goes_together_is_allowed(options):
    objective = Objective(**options)
    assert all(getattr(objective, name) == value for name, value in options.items())


@pytest.mark.parametrize("surrogate", ["clip", "cispo", "sapo", "reinforce"])
@pytest.mark.parametrize(
    "options",
    [
        {"aggregation": "token"},
        {"aggregation": "sequence"},
        {"aggregation": "constant"},
        {"top_entropy": 0.2},
        {"off_policy_threshold": 0.1},
        {"kl_estimator": "k1", "kl_in": "reward"},
        {"kl_estimator": "k2"},
        {"kl_estimator": "k3", "kl_weighted": True},
        {"correction": Correction("truncate")},
        {"correction": Correction("mask", "sequence", 0.5, 2.0)},
    ],
)
def test_the_other_options_go_with_every_surrogate(surrogate, options):
    objective = Objective(surrogate, **options)
    assert all(getattr(objective, name) == value for name, value in options.items())


# --- values of the objective -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"clip_low": -0.1},
        {"clip_high": -0.1},
        {"surrogate": "cispo", "clip_low": -0.1},
        {"surrogate": "sapo", "sapo_positive": 0.0},
        {"surrogate": "sapo", "sapo_negative": -1.0},
    ],
)
def test_bounds_and_temperatures_out_of_range_are_refused(options):
    message = refused(Objective, **options)
    assert message.startswith("objective.")
    assert message.endswith(("write 0 or more.", "write more than 0."))


@pytest.mark.parametrize(("dual_clip", "clip_high", "smallest"), [(1.2, 0.2, 1.2), (1.25, 0.28, 1.28), (0.5, 0.2, 1.2)])
def test_a_dual_clip_inside_the_bounds_is_refused(dual_clip, clip_high, smallest):
    message = refused(Objective, dual_clip=dual_clip, clip_high=clip_high)
    assert message == f"objective.dual_clip is {dual_clip}; write more than 1 + clip_high = {smallest}."


@pytest.mark.parametrize("share", [0.0, -0.2, 1.2])
def test_a_share_of_entropy_out_of_range_is_refused(share):
    message = refused(Objective, top_entropy=share)
    assert message == f"objective.top_entropy is {share}; write a share above 0 and up to 1 (all tokens)."


def test_a_weighted_kl_in_the_reward_is_refused():
    message = refused(Objective, kl_weighted=True, kl_in="reward")
    assert message.startswith("objective.kl_weighted goes with kl_in loss")
    assert message.endswith("write kl_in: loss or kl_weighted: false.")


def test_a_negative_off_policy_threshold_is_refused():
    assert "off_policy_threshold" in refused(Objective, off_policy_threshold=-0.1)


# --- correction --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"level": "sequence"}, {"low": 0.5}, {"high": 2.0}])
def test_options_of_a_correction_that_is_off_are_refused(options):
    assert "go with method truncate or mask" in refused(Correction, **options)


@pytest.mark.parametrize(
    ("kind", "option", "value"),
    [
        (Objective, "surrogate", "clipp"),
        (Objective, "ratio", "seq"),
        (Objective, "aggregation", "mean"),
        (Objective, "kl_estimator", "k4"),
        (Objective, "kl_in", "advantage"),
        (Correction, "method", "cut"),
        (Overlong, "action", "drop"),
    ],
)
def test_an_unknown_name_from_python_is_refused_with_the_names(kind, option, value):
    assert f"{option} is {value!r}; write one of " in refused(kind, **{option: value})


@pytest.mark.parametrize(("low", "high"), [(-0.1, 3.0), (1.1, 3.0), (0.0, 0.9), (2.0, 0.5)])
@pytest.mark.parametrize("method", ["truncate", "mask"])
def test_bounds_that_leave_out_a_weight_of_one_are_refused(method, low, high):
    message = refused(Correction, method=method, low=low, high=high)
    assert message.startswith(f"correction.low is {low} and correction.high {high}; ")
    assert message.endswith("write low from 0 to 1 and high from 1 on.")


@pytest.mark.parametrize(("low", "high"), [(0.0, 3.0), (0.5, 5.0), (1.0, 1.0), (0.0, float("inf"))])
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("method", ["truncate", "mask"])
def test_bounds_around_one_are_allowed(method, level, low, high):
    assert Correction(method, level, low, high).high == high


# --- overlong ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("action", "buffer"), [("keep", 0.2), ("mask", 0.2), ("keep", -0.2), ("penalize", 0.0)])
def test_a_buffer_goes_with_penalize_and_only_with_it(action, buffer):
    message = refused(Overlong, action=action, buffer=buffer)
    assert message.startswith(f"overlong.action is {action} and overlong.buffer is {buffer}; ")
    assert message.endswith("a buffer above 0 goes with penalize, and only with it.")


@pytest.mark.parametrize("buffer", [-0.2, 1.1, 4096.0, float("nan")])
def test_a_buffer_that_is_no_share_is_refused(buffer):
    message = refused(Overlong, action="penalize", buffer=buffer)
    assert message == f"overlong.buffer is {buffer}; write the share of max_new_tokens that it spans, up to 1."


@pytest.mark.parametrize(("action", "buffer"), [("keep", 0.0), ("mask", 0.0), ("penalize", 0.2), ("penalize", 1.0)])
def test_overlong_options_that_agree_are_allowed(action, buffer):
    assert Overlong(action, buffer).buffer == buffer


# --- GRPO --------------------------------------------------------------------------------------------------------

NO_SCALE = [("batch", "group"), ("none", "group"), ("none", "batch")]


@pytest.mark.parametrize(("baseline", "scale"), NO_SCALE)
def test_a_scale_that_the_baseline_cannot_have_is_refused(baseline, scale):
    message = refused(grpo, baseline=baseline, advantage_scale=scale)
    assert message.startswith(f"model.advantage_scale {scale} does not go with baseline {baseline}. ")
    assert message.endswith(
        "What goes together: group, leave_one_out and phantom_zero with group, batch or none; batch with batch or none; "
        "none with none."
    )


@pytest.mark.parametrize(("baseline", "scale"), [pair for pair in product(BASELINES, SCALES) if pair not in NO_SCALE])
def test_every_other_pair_of_baseline_and_scale_is_allowed(baseline, scale):
    assert grpo(baseline=baseline, advantage_scale=scale).baseline == baseline


@pytest.mark.parametrize("size", [1, 0, -3])
def test_a_group_without_others_is_refused(size):
    message = refused(grpo, group_size=size)
    assert message == f"model.group_size is {size}; a group needs at least 2 completions to compare."


def test_a_group_of_two_is_allowed():
    assert grpo(group_size=2).group_size == 2


def test_greedy_completions_are_refused():
    message = refused(grpo, sampler=Sampler(temperature=0.0))
    assert message == "model.sampler.temperature is 0: all completions of a group would be equal; write 1.0."


def test_dropout_in_lora_is_refused():
    message = refused(GRPO, policy=tiny_spec(lora=LoRASpec(r=4, alpha=8, dropout=0.1)))
    assert message == "model.policy.lora.dropout is 0.1; sampler and learner must agree: write 0."


def test_lora_without_dropout_is_allowed():
    assert GRPO(tiny_spec(lora=LoRASpec(r=4, alpha=8))).policy_spec.lora.dropout == 0


@pytest.mark.parametrize(("epochs", "minibatches"), [(2, 1), (1, 4), (2, 4)])
def test_reinforce_with_more_steps_a_rollout_is_refused(epochs, minibatches):
    message = refused(grpo, objective=Objective("reinforce"), epochs=epochs, minibatches=minibatches)
    assert message.startswith(
        f"objective.surrogate reinforce goes with one epoch of one minibatch, not {epochs} x {minibatches}: "
    )
    assert message.endswith("write clip, cispo or sapo.")


def test_reinforce_with_one_step_a_rollout_is_allowed():
    assert grpo(objective=Objective("reinforce")).objective.surrogate == "reinforce"


@pytest.mark.parametrize("surrogate", ["clip", "cispo", "sapo"])
def test_the_other_surrogates_take_any_number_of_steps(surrogate):
    assert grpo(objective=Objective(surrogate), epochs=3, minibatches=4).epochs == 3


@pytest.mark.parametrize(
    ("name", "value"), [("epochs", 0), ("minibatches", 0), ("kl_coef", -0.1), ("lm_coef", -0.1), ("negative_weight", -1.0)]
)
def test_numbers_of_grpo_out_of_range_are_refused(name, value):
    assert f"model.{name}" in refused(grpo, **{name: value})


# --- on the command line -----------------------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path):
    """The path of a config that trains two steps."""
    return write_yaml(tmp_path / "grpo.yaml", tiny_config(tmp_path / "run", algorithm="GRPO"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--model.objective.surrogate", "clipp"],
            "model.objective.surrogate: expected 'clip', 'cispo', 'sapo', 'reinforce'; got 'clipp'",
        ),
        (
            ["--model.baseline", "mean"],
            "model.baseline: expected 'group', 'leave_one_out', 'phantom_zero', 'batch', 'none'; got 'mean'",
        ),
        (
            ["--model.objective.correction.method", "cut"],
            "model.objective.correction.method: expected 'none', 'truncate', 'mask'; got 'cut'",
        ),
        (
            ["--model.objective.surogate", "clip"],
            "unknown option 'model.objective.surogate'. Did you mean 'model.objective.surrogate'?",
        ),
        (
            ["--model.objective.ratio", "sequence", "--model.objective.dual_clip", 3.0],
            f"objective.dual_clip 3.0 does not go with surrogate clip on ratio sequence. {TOGETHER}",
        ),
        (
            ["--model.overlong.action", "penalize"],
            "overlong.action is penalize and overlong.buffer is 0.0; a buffer above 0 goes with penalize, and only with it.",
        ),
        (
            ["--model.objective.correction.method", "mask", "--model.objective.correction.low", 2],
            "correction.low is 2.0 and correction.high 3.0; a weight of 1 must stay: write low from 0 to 1 and high from 1 on.",
        ),
    ],
)
def test_a_refused_option_gets_one_line_on_the_command_line(config, flags, message):
    assert refusal("fit", "--config", config, *flags) == f"lit-rl: {message}"


def test_reinforce_and_more_epochs_contradict_each_other_on_the_command_line(config):
    message = refusal("fit", "--config", config, "--config", "objective/reinforce", "--model.epochs", 2)
    assert message.startswith("lit-rl: objective.surrogate reinforce goes with one epoch of one minibatch, not 2 x 1: ")


def test_an_unknown_preset_is_answered_with_the_nearest(config):
    message = refusal("fit", "--config", config, "--config", "objective/dappo")
    assert message.startswith("lit-rl: no config 'objective/dappo'")
    assert message.endswith("Did you mean 'objective/dapo'?")
