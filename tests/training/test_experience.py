"""Micro-batches of rollouts: whole groups, whatever their sizes and prompts, on a collector that only hands out rollouts."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from conftest import quiet_trainer, tiny_spec
from tiny_rollouts import prompts_of, rollouts_of

from lit_rl.algorithms import GRPO
from lit_rl.rollouts import Rollouts
from lit_rl.training.batch_plan import BatchPlan
from lit_rl.training.experience import Experience
from lit_rl.training.step_metrics import rollout_metrics
from lit_rl.training.stream import MicroBatch
from lit_rl.types import TokenScores

GROUP = torch.tensor([0, 0, 0, 1, 2, 2, 3, 3, 4, 4, 4, 4, 5, 6, 6, 7, 7, 7])
"""Groups of 3, 1, 2, 2, 4, 1, 2 and 3 rows."""
PROMPT = torch.tensor([0, 1, 2, 3, 4, 4, 5, 6, 7, 7, 8, 8, 9, 10, 10, 11, 12, 12])
"""Groups 0, 3, 4 and 7 hold several prompts."""
LENGTHS = [2, 1, 3, 2, 1, 1, 4, 2, 1, 3, 2, 2, 5, 1, 1, 2, 2, 2]
LIMIT = 8


class Loader(list):
    """One batch of prompts, from a position on."""

    sampler = SimpleNamespace(set_position=lambda epoch, batch: None)


class Runtime(SimpleNamespace):
    """One rank at the beginning of an epoch."""

    position, ranks, device = 0, 1, torch.device("cpu")
    sum = max = gather = staticmethod(lambda values: values)


def mixed(**fields) -> Rollouts:
    """Rows that are told apart by their tokens; others wrote the second token of each longer row."""
    rows = [[number + 1] * length for number, length in enumerate(LENGTHS)]
    widths = [1, 2, 3, 8, 7, 3, 1, 2, 3, 1, 2, 3, 1]
    prompts = prompts_of(*[[4] * width for width in widths], completions=[[1] * (n % 4) for n in range(13)])
    sampled = torch.tensor([[t < length and t != 1 for t in range(5)] for length in LENGTHS])
    return rollouts_of(prompts, 1, rows, prompt=PROMPT, group=GROUP, sampled=sampled, advantages=sampled * 1.0, **fields)


def stream(
    rollouts: Rollouts, minibatches: int, accumulate: int, skips: bool = False, aggregation="token", epochs=1
) -> Experience:
    """Experience on rollouts that are there already."""
    collector = SimpleNamespace(
        actor=SimpleNamespace(runtime=Runtime()),
        sampler=SimpleNamespace(max_new_tokens=LIMIT, arm_names=()),
        collect=lambda prompts: rollouts,
        on_policy=True,
        number=0,
        metrics={},
    )
    plan = BatchPlan(8, 1, 1, epochs, minibatches, accumulate)
    return Experience(Loader(["prompts"]), plan, collector, lambda rows: {}, nullcontext, aggregation, lambda: skips)


def numbers(batch: MicroBatch[Rollouts]) -> list[int]:
    """Row numbers of a micro-batch in the whole rollout."""
    return (batch.rows.completion_ids[:, 0] - 1).tolist()


def groups_of(batch: MicroBatch[Rollouts]) -> list[int]:
    """Groups of a micro-batch, after a check that they are whole and bring their prompts."""
    rows, rollouts = numbers(batch), mixed()
    groups = sorted({int(GROUP[row]) for row in rows})
    assert sorted(rows) == [row for row in range(len(GROUP)) if GROUP[row] in groups]
    for row, sample in zip(rows, batch.rows.samples, strict=True):
        assert sample == rollouts.samples[row]
    own = [int(GROUP[row]) for row in rows]
    for mine, group in zip(batch.rows.group.tolist(), own, strict=True):
        assert [other for other, number in zip(own, batch.rows.group.tolist(), strict=True) if number == mine] == [
            group
        ] * own.count(group)
    return groups


def test_minibatches_and_micro_batches_hold_whole_groups():
    experience = stream(mixed(), minibatches=2, accumulate=2, epochs=2)
    batches = list(experience)
    assert len(batches) == len(experience) == 8
    dealt = [groups_of(batch) for batch in batches]
    # Tokens, prompts once: groups 0 to 3 have 6 + 6, 2 + 8, 2 + 7 and 6 + 4; groups 4 to 7 have 8 + 5, 5 + 1, 2 + 2, 6 + 4.
    # Dearest first to the cheaper part: 12 + 9 and 10 + 10, 13 + 4 and 10 + 6.
    assert dealt == [[0, 2], [1, 3], [4, 6], [5, 7]] * 2
    assert [batch.first for batch in batches] == [True, False] * 4
    assert [batch.last for batch in batches] == [False, True] * 4
    assert [batch.on_policy for batch in batches] == [True, True] + [False] * 6


def test_weights_of_a_step_add_up_over_micro_batches_of_unequal_groups():
    # Sampled tokens, the second of each row not: groups 0 to 3 have 1 + 1 + 2, 1, 1 + 1, 3 + 1; the others 5, 4, 2, 3.
    # Rows of the two steps: 8 and 10.
    for aggregation, totals in {
        "token": [1.0, 1.0],
        "sequence": [1.0, 1.0],
        "constant": [11 / (8 * LIMIT), 14 / (10 * LIMIT)],
    }.items():
        batches = list(stream(mixed(), 2, 2, aggregation=aggregation))
        sums = [float(sum(batch.weights.sum() for batch in batches[first : first + 2])) for first in (0, 2)]
        assert sums == pytest.approx(totals), aggregation
        assert [batch.num_tokens for batch in batches] == [11, 11, 14, 14]
        # True completions of 0 1 2 3 0 1 2 tokens for the first seven prompts, of 3 0 1 2 3 0 for the others.
        assert [batch.num_targets for batch in batches] == [9, 9, 9, 9]
        assert all(not batch.weights[~batch.rows.sampled].any() for batch in batches)


def test_equal_rows_of_a_mixed_group_are_merged_and_keep_their_weight():
    rollouts = mixed(logprobs=torch.zeros(18, 5), entropies=torch.zeros(18, 5))
    # Rows 10 and 11 are of one prompt, rows 9 and 10 of two.
    rollouts.completion_ids[10:12] = rollouts.completion_ids[10]
    (batch,) = stream(rollouts, 1, 1)
    assert len(batch.rows) == 17
    assert batch.rows.multiplicity.tolist() == [1.0] * 10 + [2.0] + [1.0] * 6
    assert float(batch.weights.sum()) == pytest.approx(1.0)


def test_groups_without_advantages_are_left_out_whole():
    rollouts = mixed()
    for group in (1, 3, 4, 5, 6, 7):
        rollouts.advantages[group == GROUP] = 0.0
    rollouts.advantages[GROUP == 0] = 0.0
    rollouts.advantages[1, 0] = 1.0  # one token of one row of group 0
    dealt = [groups_of(batch) for batch in stream(rollouts, 2, 2, skips=True)]
    # The second step has none left: one group for each micro-batch, since every rank runs them all.
    assert dealt == [[0], [2], [4], [5]]


def test_groups_that_do_not_divide_into_steps_are_refused():
    with pytest.raises(ValueError, match=r"^callbacks left 7 groups on this rank, which do not divide into 2 minibatch"):
        list(stream(mixed().select(range(7)), 2, 2))


# --- numbers at tokens of others ---------------------------------------------------------------------------------


def test_a_rollout_is_counted_once_it_is_finished():
    """A checkpoint of an exception before that must not skip a key of sampling."""
    experience = stream(mixed(), minibatches=1, accumulate=1)

    def fail(rollouts):
        raise RuntimeError("the reference failed")

    finish, experience._finish = experience._finish, fail
    with pytest.raises(RuntimeError, match="the reference failed"):
        experience.begin()
    assert experience.collector.number == 0
    experience._finish = finish
    experience.begin()
    assert experience.collector.number == 1


def test_numbers_at_tokens_of_others_show_in_no_metric_and_no_check(tmp_path):
    rollouts = mixed()
    rollouts.entropies = rollouts.sampled * 1.5
    rollouts.logprobs = rollouts.sampled * -1.0
    expected = rollout_metrics(rollouts, lambda values: values)
    assert expected["entropy"] == pytest.approx(1.5)
    scores = TokenScores(rollouts.logprobs, rollouts.entropies, rollouts.sampled)
    rollouts.logprobs = rollouts.logprobs.masked_fill(~rollouts.sampled, 9.0)
    rollouts.entropies = rollouts.entropies.masked_fill(~rollouts.sampled, 9.0)
    assert rollout_metrics(rollouts, lambda values: values) == expected

    module = GRPO(tiny_spec())
    module.trainer = quiet_trainer(tmp_path)
    (batch,) = stream(rollouts, 1, 1)
    step = module.policy_loss(batch, scores)  # refuses a sampler that disagrees
    assert float(step.ratios["sampling/sampling_logp_difference/mean"][0]) == 0.0
    assert float(step.loss) == pytest.approx(-1.0)
