"""States of streams in a checkpoint, and the refusal of another model's weights."""

import pytest
import torch
from conftest import tiny_spec

from lit_rl.training.resume import check_checkpoint, check_same_model, collect_states, describe_models, state_of_rank

OWN = {"a": torch.zeros(2, 3), "b": torch.zeros(4)}


def test_one_process_collects_its_own_state():
    assert collect_states({"done": 3}, 1) == [{"done": 3}]


def test_each_rank_gets_its_own_state():
    states = [{"done": 0}, {"done": 1}]
    assert [state_of_rank(states, rank, 2) for rank in range(2)] == states


@pytest.mark.parametrize("ranks", [1, 4])
def test_states_of_another_number_of_processes_are_refused(ranks):
    with pytest.raises(ValueError, match=rf"written by 2 process\(es\) and this run has {ranks}; resume with as many"):
        state_of_rank([{}, {}], 0, ranks)


def test_weights_of_the_same_shapes_are_taken():
    check_same_model(OWN, {"b": torch.ones(4), "a": torch.ones(2, 3)})
    check_same_model(OWN, {})
    check_same_model({}, OWN)


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({"a": torch.zeros(2, 5), "b": OWN["b"]}, r"a is \(2, 5\) there and \(2, 3\) here; set model\.policy"),
        ({"a": OWN["a"]}, r"b is missing there and \(4,\) here"),
        (OWN | {"c": torch.zeros(())}, r"c is \(\) there and missing here"),
    ],
)
def test_weights_of_another_model_are_refused(saved, message):
    with pytest.raises(ValueError, match=f"^the checkpoint is of another model: {message}"):
        check_same_model(OWN, saved)


def described(spec):
    """The description of a policy made from a spec."""
    from lit_rl.models.loading import load_tokenizer
    from lit_rl.models.policy import Policy

    tokenizer = load_tokenizer(spec)
    return describe_models([Policy(spec, tokenizer)], tokenizer)


def test_a_model_of_the_same_shapes_with_another_config_is_refused_and_the_key_is_named():
    checkpoint = {"state_dict": {}, "models": described(tiny_spec(config={"rms_norm_eps": 1e-6}))}
    check_checkpoint(checkpoint, {}, described(tiny_spec(config={"rms_norm_eps": 1e-6}, dtype="bfloat16")), resuming=False)
    with pytest.raises(ValueError, match=r"model 1\.rms_norm_eps is 1e-06 there and 1e-05 here; set model\.policy"):
        check_checkpoint(checkpoint, {}, described(tiny_spec(config={"rms_norm_eps": 1e-5})), resuming=False)


def test_an_adapter_of_the_same_shapes_with_another_scale_is_refused():
    from lit_rl.models import LoRASpec

    one, two = (described(tiny_spec(lora=LoRASpec(r=2, alpha=alpha))) for alpha in (4, 8))
    with pytest.raises(ValueError, match=r"adapter 1\.lora_alpha is 4 there and 8 here"):
        check_checkpoint({"state_dict": {}, "models": one}, {}, two, resuming=False)


def test_a_vocabulary_in_another_order_is_refused():
    one = described(tiny_spec())
    with pytest.raises(ValueError, match="vocabulary is"):
        check_checkpoint({"models": one}, {}, one.replace('"vocabulary": "', '"vocabulary": "0'), resuming=False)
