"""How much each token weighs in the loss of an optimizer step."""

import pytest
import torch

from lit_rl.objectives.aggregation import token_weights

RAGGED = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0]]).bool()
AGGREGATIONS = ["token", "sequence", "constant"]


def test_token_weights_share_one_equally_among_all_tokens():
    weights = token_weights(RAGGED, "token", num_tokens=7, num_sequences=3, constant_length=10)
    assert weights.tolist() == [pytest.approx(row) for row in ([1 / 7] * 4, [1 / 7, 0, 0, 0], [1 / 7, 1 / 7, 0, 0])]


def test_sequence_weights_give_every_row_the_same_share():
    weights = token_weights(RAGGED, "sequence", num_tokens=7, num_sequences=3, constant_length=10)
    assert weights.tolist() == [pytest.approx(row) for row in ([1 / 12] * 4, [1 / 3, 0, 0, 0], [1 / 6, 1 / 6, 0, 0])]


def test_constant_weights_divide_by_the_longest_possible_completion():
    weights = token_weights(RAGGED, "constant", num_tokens=7, num_sequences=3, constant_length=10)
    assert weights.tolist() == [pytest.approx(row) for row in ([1 / 30] * 4, [1 / 30, 0, 0, 0], [1 / 30, 1 / 30, 0, 0])]


@pytest.mark.parametrize(("aggregation", "total"), [("token", 1.0), ("sequence", 1.0), ("constant", 7 / 30)])
def test_weights_add_up(aggregation, total):
    assert float(token_weights(RAGGED, aggregation, 7, 3, 10).sum()) == pytest.approx(total, abs=1e-6)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_a_row_weighs_the_same_in_any_micro_batch(aggregation):
    whole = token_weights(RAGGED, aggregation, 7, 3, 10)
    alone = [token_weights(RAGGED[[row]], aggregation, 7, 3, 10) for row in range(3)]
    assert torch.equal(torch.cat(alone), whole)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_a_row_without_tokens_weighs_nothing(aggregation):
    weights = token_weights(torch.tensor([[1, 1], [0, 0]]).bool(), aggregation, 2, 2, 2)
    assert weights[1].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_a_step_without_tokens_has_finite_weights(aggregation):
    assert token_weights(torch.zeros(2, 3).bool(), aggregation, 0, 2, 3).tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_a_step_without_sequences_has_finite_weights(aggregation):
    assert token_weights(torch.zeros(2, 3).bool(), aggregation, 0, 0, 3).tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_weights_are_single_precision_unless_asked_otherwise(aggregation):
    assert token_weights(RAGGED, aggregation, 7, 3, 10).dtype == torch.float32


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_weights_in_double_precision_are_exact_to_its_rounding(aggregation):
    # The last row's first token: 1 / 7, 1 / (3 * 2), 1 / (3 * 10)
    expected = {"token": 1 / 7, "sequence": 1 / 6, "constant": 1 / 30}[aggregation]
    weights = token_weights(RAGGED, aggregation, 7, 3, 10, dtype=torch.float64)
    assert weights.dtype == torch.float64
    assert float(weights[2, 0]) == pytest.approx(expected, rel=1e-15)
