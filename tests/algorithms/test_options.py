"""Options that contradict each other or mean nothing are refused in one line that says what to write; no others are."""

from itertools import product

import pytest
from conftest import tiny_spec
from tiny_runs import refusal, tiny_config, write_yaml

from lit_rl.algorithms import GRPO, PPO, RPT
from lit_rl.models import LoRASpec
from lit_rl.objectives import Correction, Objective, Overlong
from lit_rl.sampling import Sampler

TOGETHER = (
    "What goes together: clip: ratio token or sequence, clip_low, clip_high, and with ratio token dual_clip; "
    "cispo: ratio token, clip_low, clip_high; sapo: ratio token, sapo_positive, sapo_negative; "
    "reinforce: one epoch of one minibatch."
)
BASELINES = ("group", "leave_one_out", "phantom_zero", "batch", "none")
SCALES = ("group", "batch", "none")
NO_SCALE = (("batch", "group"), ("none", "group"), ("none", "batch"))


def assert_refused(make, cases) -> None:
    """Each pair of options and message: the message is the whole line, or its beginning and its end around ``...``."""
    for options, expected in cases:
        with pytest.raises(ValueError, match=r"\S") as refused:
            make(**options)
        message = str(refused.value)
        begin, _, end = expected.partition("...")
        fits = message.startswith(begin) and message.endswith(end) and ("..." in expected or message == expected)
        assert fits, f"{options}: {message}"
        assert "\n" not in message, options


def assert_allowed(make, cases) -> None:
    for options in cases:
        made = make(**options)
        assert all(getattr(made, name) == value for name, value in options.items()), options


def grpo(**options) -> GRPO:
    return GRPO(options.pop("policy", tiny_spec()), **options)


def test_an_option_that_the_surrogate_does_not_read_is_refused_with_what_goes_together():
    others = {
        "ratio": "sequence",
        "clip_low": 0.1,
        "clip_high": 0.28,
        "dual_clip": 3.0,
        "sapo_positive": 2.0,
        "sapo_negative": 2.0,
    }
    unread = {
        "clip": ("sapo_positive", "sapo_negative"),
        "cispo": ("ratio", "dual_clip", "sapo_positive", "sapo_negative"),
        "sapo": ("ratio", "clip_low", "clip_high", "dual_clip"),
        "reinforce": tuple(others),
    }
    for surrogate, names in unread.items():
        for name in names:
            start = f"objective.{name} {others[name]} does not go with surrogate {surrogate}"
            assert_refused(Objective, [({"surrogate": surrogate, name: others[name]}, f"{start}...{TOGETHER}")])
    message = f"objective.dual_clip 3.0 does not go with surrogate clip on ratio sequence. {TOGETHER}"
    assert_refused(Objective, [({"ratio": "sequence", "dual_clip": 3.0}, message)])


def test_objective_options_out_of_range_are_refused():
    share = "write a share above 0 and up to 1 (all tokens)."
    assert_refused(
        Objective,
        [
            ({"clip_low": -0.1}, "objective.clip_low is -0.1; write 0 or more."),
            ({"surrogate": "cispo", "clip_high": -0.1}, "objective.clip_high is -0.1; write 0 or more."),
            ({"off_policy_threshold": -0.1}, "objective.off_policy_threshold is -0.1; write 0 or more."),
            (
                {"surrogate": "sapo", "sapo_positive": 0.0},
                "objective.sapo_positive is 0.0 and sapo_negative 1.05; write more than 0.",
            ),
            (
                {"surrogate": "sapo", "sapo_negative": -1.0},
                "objective.sapo_positive is 1.0 and sapo_negative -1.0; write more than 0.",
            ),
            ({"dual_clip": 1.2}, "objective.dual_clip is 1.2; write more than 1 + clip_high = 1.2."),
            ({"dual_clip": 1.25, "clip_high": 0.28}, "objective.dual_clip is 1.25; write more than 1 + clip_high = 1.28."),
            ({"dual_clip": 0.5}, "objective.dual_clip is 0.5; write more than 1 + clip_high = 1.2."),
            ({"top_entropy": 0.0}, f"objective.top_entropy is 0.0; {share}"),
            ({"top_entropy": 1.2}, f"objective.top_entropy is 1.2; {share}"),
            (
                {"kl_weighted": True, "kl_in": "reward"},
                "objective.kl_weighted goes with kl_in loss...write kl_in: loss or kl_weighted: false.",
            ),
        ],
    )


def test_an_unknown_name_from_python_is_refused_with_the_names():
    for make, option, value in [
        (Objective, "surrogate", "clipp"),
        (Objective, "ratio", "seq"),
        (Objective, "aggregation", "mean"),
        (Objective, "kl_estimator", "k4"),
        (Objective, "kl_in", "advantage"),
        (Correction, "method", "cut"),
        (Correction, "level", "row"),
        (Overlong, "action", "drop"),
        (grpo, "baseline", "mean"),
        (grpo, "advantage_scale", "all"),
    ]:
        with pytest.raises(ValueError, match=f"{option} is {value!r}; write one of "):
            make(**{option: value})


def test_objective_options_that_go_together_are_allowed():
    alone = [
        {},
        {"clip_low": 0.0, "clip_high": 0.0},
        {"clip_low": 1.5},
        {"dual_clip": 1.3},
        {"clip_high": 0.28, "dual_clip": 1.29},
        {"ratio": "sequence", "clip_low": 3e-4, "clip_high": 4e-4},
        {"surrogate": "cispo", "clip_low": 1.0, "clip_high": 4.0},
        {"surrogate": "sapo", "sapo_positive": 0.5, "sapo_negative": 3.0},
    ]
    with_every_surrogate = [
        {"aggregation": "sequence", "top_entropy": 0.2},
        {"aggregation": "constant", "off_policy_threshold": 0.1},
        {"kl_estimator": "k1", "kl_in": "reward"},
        {"kl_estimator": "k2", "kl_weighted": True},
        {"correction": Correction("mask", "sequence", 0.5, 2.0)},
    ]
    surrogates = ("clip", "cispo", "sapo", "reinforce")
    assert_allowed(Objective, alone + [{"surrogate": each} | more for each, more in product(surrogates, with_every_surrogate)])


def test_correction_options_that_contradict_each_other_are_refused():
    off = "correction.level, low and high go with method truncate or mask; write one of them."
    bounds = [(-0.1, 3.0), (1.1, 3.0), (0.0, 0.9), (2.0, 0.5)]
    assert_refused(Correction, [({"level": "sequence"}, off), ({"low": 0.5}, off), ({"high": 2.0}, off)])
    assert_refused(
        Correction,
        [
            (
                {"method": method, "low": low, "high": high},
                f"correction.low is {low} and correction.high {high}; ...write low from 0 to 1 and high from 1 on.",
            )
            for method, (low, high) in product(["truncate", "mask"], bounds)
        ],
    )
    around_one = [{"low": 0.5, "high": 5.0}, {"low": 1.0, "high": 1.0}, {"high": float("inf")}]
    assert_allowed(Correction, [{"method": "mask", "level": "sequence"} | bounds for bounds in around_one])


def test_a_buffer_goes_with_penalize_and_only_with_it():
    share = "write the share of max_new_tokens that it spans, up to 1."
    together = "a buffer above 0 goes with penalize, and only with it."
    assert_refused(
        Overlong,
        [
            ({"action": action, "buffer": buffer}, f"overlong.action is {action} and overlong.buffer is {buffer}; {together}")
            for action, buffer in [("keep", 0.2), ("mask", 0.2), ("keep", -0.2), ("penalize", 0.0)]
        ],
    )
    assert_refused(
        Overlong,
        [
            ({"action": "penalize", "buffer": buffer}, f"overlong.buffer is {buffer}; {share}")
            for buffer in (-0.2, 1.1, 4096.0, float("nan"))
        ],
    )
    assert_allowed(Overlong, [{"action": "mask", "buffer": 0.0}, {"action": "penalize", "buffer": 1.0}])


def test_options_of_grpo_that_contradict_each_other_are_refused():
    scales = (
        "What goes together: group, leave_one_out and phantom_zero with group, batch or none; batch with batch or none; "
        "none with none."
    )
    steps = "it has no ratio for a policy that has moved. With more steps a rollout write clip, cispo or sapo."
    reinforce = "objective.surrogate reinforce goes with one epoch of one minibatch, not"
    assert_refused(
        grpo,
        [
            (
                {"baseline": baseline, "advantage_scale": scale},
                f"model.advantage_scale {scale} does not go with baseline {baseline}. {scales}",
            )
            for baseline, scale in NO_SCALE
        ],
    )
    assert_refused(
        grpo,
        [
            ({"group_size": 1}, "model.group_size is 1; a group needs at least 2 completions to compare."),
            ({"group_size": -3}, "model.group_size is -3; a group needs at least 2 completions to compare."),
            (
                {"sampler": Sampler(temperature=0.0)},
                "model.sampler.temperature is 0: all completions of a group would be equal; write 1.0.",
            ),
            (
                {"sampler": Sampler(temperature=[1.0, 0.8, 0.6]), "group_size": 2},
                "model.sampler.temperature lists 3 temperatures, but a group has 2 completions; write at most 2, or raise "
                "model.group_size.",
            ),
            (
                {"policy": tiny_spec(lora=LoRASpec(r=4, alpha=8, dropout=0.1))},
                "model.policy.lora.dropout is 0.1; sampler and learner must agree: write 0.",
            ),
            ({"objective": Objective("reinforce"), "epochs": 2}, f"{reinforce} 2 x 1: {steps}"),
            ({"objective": Objective("reinforce"), "minibatches": 4}, f"{reinforce} 1 x 4: {steps}"),
            ({"epochs": 0}, "model.epochs is 0; write 1 or more."),
            ({"minibatches": 0}, "model.minibatches is 0; write 1 or more."),
            ({"kl_coef": -0.1}, "model.kl_coef is -0.1; write 0 or more."),
            ({"lm_coef": -0.1}, "model.lm_coef is -0.1; write 0 or more."),
            ({"negative_weight": -1.0}, "model.negative_weight is -1.0; write 0 or more."),
        ],
    )


def test_options_of_grpo_that_go_together_are_allowed():
    comparisons = [pair for pair in product(BASELINES, SCALES) if pair not in NO_SCALE]
    assert_allowed(grpo, [{"baseline": baseline, "advantage_scale": scale} for baseline, scale in comparisons])
    assert_allowed(
        grpo,
        [
            {"group_size": 2},
            {"objective": Objective("reinforce")},
            *({"objective": Objective(surrogate), "epochs": 3, "minibatches": 4} for surrogate in ("clip", "cispo", "sapo")),
        ],
    )
    assert grpo(policy=tiny_spec(lora=LoRASpec(r=4, alpha=8))).policy_spec.lora.dropout == 0


def test_options_of_ppo_out_of_range_are_refused():
    assert_refused(
        lambda **options: PPO(tiny_spec(), **options),
        [
            ({"gamma": 1.5}, "model.gamma is 1.5; write 1 or less."),
            ({"lam": -0.1}, "model.lam is -0.1; write 0 or more."),
            ({"value_clip": -1.0}, "model.value_clip is -1.0; write 0 or more."),
            ({"target_kl": -1.0}, "model.target_kl is -1.0; write 0 or more."),
            ({"group_size": 0}, "model.group_size is 0; write 1 or more."),
            ({"critic_lr": -0.01}, "model.critic_lr is -0.01; write 0 or more."),
            (
                {"target_kl": 0.1, "epochs": 2, "minibatches": 1},
                "model.target_kl is 0.1 with 2 step(s) a rollout...write epochs and minibatches for 3 steps or more, "
                "or target_kl 0.",
            ),
        ],
    )


def test_options_of_rpt_out_of_range_are_refused():
    template = "...write v0, v1, v2, v3, v4, v5, v6, direct, or a text that has {context} once."
    assert_refused(
        lambda **options: RPT(tiny_spec(), **options),
        [
            ({"max_context": -1}, "model.max_context is -1; write 0 (no limit) or more."),
            ({"template": "v7"}, f"model.template is 'v7'{template}"),
            ({"template": "no place for it"}, f"model.template is 'no place for it'{template}"),
            ({"template": "{context} and {context}"}, f"model.template is '{{context}} and {{context}}'{template}"),
        ],
    )


def test_a_refused_option_gets_one_line_on_the_command_line(tmp_path):
    config = write_yaml(tmp_path / "grpo.yaml", tiny_config(tmp_path / "run", algorithm="GRPO"))
    for flags, message in [
        (
            ["--model.objective.surrogate", "clipp"],
            "model.objective.surrogate: expected 'clip', 'cispo', 'sapo', 'reinforce'; got 'clipp'",
        ),
        (
            ["--model.objective.correction.method", "mask", "--model.objective.correction.low", 2],
            "correction.low is 2.0 and correction.high 3.0; a weight of 1 must stay: write low from 0 to 1 and high from 1 on.",
        ),
        (
            ["--config", "objective/reinforce", "--model.epochs", 2],
            "objective.surrogate reinforce goes with one epoch of one minibatch, not 2 x 1: it has no ratio for a policy that "
            "has moved. With more steps a rollout write clip, cispo or sapo.",
        ),
    ]:
        assert refusal("fit", "--config", config, *flags) == f"lit-rl: {message}"
