"""States of streams in a checkpoint, and the refusal of another model's weights."""

import pytest
import torch

from lit_rl.training.resume import check_same_model, collect_states, state_of_rank

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
