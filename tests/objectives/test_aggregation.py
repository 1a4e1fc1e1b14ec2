"""How much each token weighs in the loss of an optimizer step."""

import pytest
import torch

from lit_rl.objectives.aggregation import counted_sequences, token_weights

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


def test_a_row_weighs_the_same_in_any_micro_batch():
    for aggregation in AGGREGATIONS:
        whole = token_weights(RAGGED, aggregation, 7, 3, 10)
        alone = [token_weights(RAGGED[[row]], aggregation, 7, 3, 10) for row in range(3)]
        assert torch.equal(torch.cat(alone), whole), aggregation


def test_tokens_outside_the_mask_weigh_nothing():
    # Tokens 1 and 3 of the first row were sampled, and the last of the second.
    mask = torch.tensor([[1, 0, 1], [0, 0, 1]]).bool()
    weights = {name: token_weights(mask, name, 3, 2, 10).tolist() for name in AGGREGATIONS}
    assert weights["token"] == [pytest.approx([1 / 3, 0, 1 / 3]), pytest.approx([0, 0, 1 / 3])]
    assert weights["sequence"] == [pytest.approx([1 / 4, 0, 1 / 4]), pytest.approx([0, 0, 1 / 2])]
    assert weights["constant"] == [pytest.approx([1 / 20, 0, 1 / 20]), pytest.approx([0, 0, 1 / 20])]


def test_rows_and_steps_without_tokens_weigh_nothing():
    for aggregation in AGGREGATIONS:
        weights = token_weights(torch.tensor([[1, 1], [0, 0]]).bool(), aggregation, 2, 2, 2)
        assert weights[1].tolist() == [0.0, 0.0], aggregation
        for sequences in (2, 0):
            nothing = token_weights(torch.zeros(2, 3).bool(), aggregation, 0, sequences, 3)
            assert nothing.tolist() == [[0.0] * 3] * 2, (aggregation, sequences)


def test_rows_with_tokens_count_as_sequences_and_for_a_constant_all_do():
    mask = torch.tensor([[1, 0], [0, 0], [0, 1]]).bool()
    counted = {name: counted_sequences(mask, name).tolist() for name in AGGREGATIONS}
    assert counted == {"token": [True, False, True], "sequence": [True, False, True], "constant": [True, True, True]}


def test_weights_in_double_precision_are_exact_to_its_rounding():
    # The last row's first token: 1 / 7, 1 / (3 * 2), 1 / (3 * 10)
    for aggregation, expected in {"token": 1 / 7, "sequence": 1 / 6, "constant": 1 / 30}.items():
        assert token_weights(RAGGED, aggregation, 7, 3, 10).dtype == torch.float32
        weights = token_weights(RAGGED, aggregation, 7, 3, 10, dtype=torch.float64)
        assert weights.dtype == torch.float64
        assert float(weights[2, 0]) == pytest.approx(expected, rel=1e-15)
