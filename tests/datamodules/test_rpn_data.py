"""Problems in reverse Polish notation: sets that never meet, the same ones everywhere, and prompts that keep the answer."""

import os
import subprocess
import sys
from collections import Counter

import pytest
import torch
from conftest import TINY, quiet_trainer

from lit_rl.algorithms import GRPO, SFT
from lit_rl.callbacks import Curriculum
from lit_rl.datamodules import RPN
from lit_rl.evaluation import Evaluation
from lit_rl.hooks import RolloutCallback
from lit_rl.models import PolicySpec
from lit_rl.rewards import Reward
from lit_rl.sampling import Sampler
from lit_rl.tasks.rpn import RPNGrammar, read_prompt
from lit_rl.tasks.rpn_problems import RPNProblems, held_out_problems, split_of

SPEC = PolicySpec(config={"model_type": "llama", **TINY}, tokenizer="rpn13")
ITEMS = """
from lit_rl.tasks.rpn import RPNGrammar
from lit_rl.tasks.rpn_problems import RPNProblems, held_out_problems
grammar = RPNGrammar(13, ("+", "-"), 1, 5)
print([tuple(sample) for sample in [*RPNProblems(grammar, 50, 7), *held_out_problems(grammar, 50, "val")]])
"""


def small_data(**options) -> RPN:
    settings = {"batch_size": 8, "epoch_size": 64, "val_problems": 16, "test_problems": 16, "eval_batch_size": 16}
    return RPN(**{**settings, **options})


def attached(data: RPN, module=None) -> RPN:
    """The data module as it is in a fit."""
    module = module or SFT(SPEC)
    data.trainer = module.trainer = quiet_trainer(".")
    data.trainer.strategy.connect(module)
    data.setup("fit")
    return data


def prompts(samples) -> set[str]:
    return {sample.prompt for sample in samples}


def operations(sample) -> int:
    return (len(read_prompt(sample.prompt)) - 1) // 2


# --- the three sets --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("complexity", [1, 2, 3])
def test_the_sets_share_no_problem(complexity):
    grammar = RPNGrammar(5, ("+", "*"), complexity, complexity)
    # Of 50, 1,000 and 25,000 expressions: the sets would meet without being held apart.
    train = prompts(RPNProblems(grammar, 4000, 0))
    val = prompts(RPNProblems(grammar, 400, 0, "val"))
    test = prompts(RPNProblems(grammar, 400, 0, "test"))
    assert val
    assert test
    assert not train & (val | test)
    assert not val & test


def test_the_simplest_expressions_are_not_used_up():
    # 13 * 13 expressions: about 135 for training, 17 for each of the other two.
    counts = Counter(split_of(f"<boe> {first} {second} +") for first in range(13) for second in range(13))
    assert sum(counts.values()) == 169
    assert all(8 <= counts[split] <= 27 for split in ("val", "test"))  # 17 and 2.5 standard deviations
    one = RPNGrammar(min_operations=1, max_operations=1)
    assert len(prompts(RPNProblems(one, 3000, 0))) == counts["train"]
    assert len(held_out_problems(one, 10, "val")) == 10


def test_a_tenth_of_the_expressions_is_held_out_for_each_evaluation():
    splits = Counter(split_of(f"<boe> {first} {second} -") for first in range(113) for second in range(113))
    for split in ("val", "test"):
        assert abs(splits[split] / 113**2 - 0.1) < 0.014  # five standard deviations


def test_evaluation_has_distinct_problems_of_every_complexity():
    samples = held_out_problems(RPNGrammar(max_operations=4), 400, "test")
    assert len(prompts(samples)) == 400
    assert [sample.number for sample in samples] == list(range(400))
    assert set(map(operations, samples)) == {1, 2, 3, 4}


def test_a_grammar_too_small_for_the_evaluation_is_refused_in_one_line():
    one = RPNGrammar(min_operations=1, max_operations=1)
    with pytest.raises(
        ValueError, match=r"^The grammar is too small: 1000 draws for val problem [^\n]*fewer problems\. [^\n]*$"
    ):
        attached(small_data(grammar=one, val_problems=100))


def test_a_run_has_three_sets_that_share_no_problem():
    data = attached(small_data(grammar=RPNGrammar(operators=("+", "-")), epoch_size=2000, val_problems=200, test_problems=200))
    train, val, test = map(prompts, (data.train_set, data.val_set, data.test_set))
    assert len(val) == len(test) == 200
    assert not train & (val | test)
    assert not val & test


def test_the_evaluation_sets_depend_on_no_seed_and_no_level():
    first = attached(small_data(seed=1))
    second = attached(small_data(seed=2, levels=[RPNGrammar(max_operations=1)]))
    assert first.val_set == second.val_set
    assert first.test_set == second.test_set


def test_two_seeds_give_unrelated_training_problems():
    grammar = RPNGrammar(113, min_operations=3)
    first, second = (prompts(RPNProblems(grammar, 100, seed)) for seed in (0, 1))
    assert not first & second


# --- one problem is the same everywhere ------------------------------------------------------------------------------


def test_problems_are_the_same_in_two_processes():
    outputs = [
        subprocess.run(
            [sys.executable, "-c", ITEMS],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    ]
    assert outputs[0] == outputs[1] != ""


def test_workers_prepare_the_same_samples():
    batches = {}
    for workers in (0, 2):
        loader = attached(small_data(num_workers=workers)).train_dataloader().prompts.loader
        batches[workers] = [(batch.samples, batch.ids.tolist()) for batch in loader]
    assert len(batches[0]) == 8  # 64 problems, 8 at a time
    assert batches[0] == batches[2]


def test_a_problem_does_not_depend_on_what_was_drawn_before():
    problems = RPNProblems(RPNGrammar(), 5, 0)
    later = problems[40]
    assert [problems[index] for index in range(41)][40] == later
    assert problems[10**12].number == 10**12


def test_an_epoch_ends_at_its_size_and_the_next_is_new():
    problems = RPNProblems(RPNGrammar(max_operations=6), 5, 0)
    assert [sample.number for sample in problems] == [0, 1, 2, 3, 4]
    sampler = attached(small_data()).train_dataloader().prompts.loader.sampler
    sampler.set_position(1, 0)
    assert list(sampler) == list(range(64, 128))


def test_bad_sizes_and_indices_are_named():
    with pytest.raises(ValueError, match=r"^RPNProblems size=0: write 1 or more\.$"):
        RPNProblems(RPNGrammar(), 0, 0)
    with pytest.raises(IndexError, match=r"^RPNProblems index=-1: write 0 or more\.$"):
        RPNProblems(RPNGrammar(), 5, 0)[-1]


# --- prompts and completions -----------------------------------------------------------------------------------------


def test_a_prompt_never_holds_the_answer():
    # The seed cut prompts at 10 tokens or more: of one operation the answer and the end token were in them.
    for sample in RPNProblems(RPNGrammar(min_operations=1, max_operations=2), 1000, 0):
        assert "=" not in sample.prompt
        assert len(sample.prompt.split()) == 1 + len(read_prompt(sample.prompt)) in (4, 6)


def test_the_completion_is_the_derivation_and_ends_in_the_reference():
    for sample in RPNProblems(RPNGrammar(13, ("+", "-", "*"), 1, 5), 1000, 0):
        assert sample.completion.startswith("= ")
        assert sample.completion.split(" ")[-2:] == ["=", sample.reference]
        assert "<eoe>" not in sample.completion


def test_a_batch_is_padded_on_the_left_and_every_completion_ends_once():
    data = attached(small_data(grammar=RPNGrammar(max_operations=12)))
    batch = next(iter(data.train_dataloader().prompts.loader))
    begin, end, pad = (data.tokenizer.convert_tokens_to_ids(token) for token in ("<boe>", "<eoe>", "<pad>"))
    assert batch.mask[:, -1].all()
    assert not batch.mask[:, 0].all()  # lengths differ, so that there is padding to speak of
    for ids, mask, completion, sample in zip(batch.ids, batch.mask, batch.completions, batch.samples, strict=True):
        assert data.tokenizer.decode(ids[mask]) == sample.prompt
        assert ids[mask][0] == begin
        assert bool((ids[~mask] == pad).all())
        # The longest too: the seed lost the end token of what ran over its window.
        assert data.tokenizer.decode(completion) == f"{sample.completion} <eoe>"
        assert completion.count(end) == 1


def test_evaluation_loads_every_held_out_problem_once():
    data = attached(small_data(eval_batch_size=6))
    for loader, kept in ((data.val_dataloader(), data.val_set), (data.test_dataloader(), data.test_set)):
        assert [sample for batch in loader for sample in batch.samples] == kept


# --- levels ----------------------------------------------------------------------------------------------------------


def test_a_level_is_set_between_epochs_and_stays_apart_from_evaluation():
    levels = [RPNGrammar(max_operations=1)]
    data = attached(small_data(grammar=RPNGrammar(min_operations=2), levels=levels, epoch_size=500))
    assert {operations(sample) for sample in data.train_set} == {1}
    data.set_level(1)
    assert {operations(sample) for sample in data.train_set} == {2, 3}
    data.setup("fit")
    assert {operations(sample) for sample in data.train_set} == {2, 3}, "a later setup keeps the level"
    assert not prompts(data.train_set) & (prompts(data.val_set) | prompts(data.test_set))


def test_levels_of_another_modulus_are_refused():
    with pytest.raises(ValueError, match=r"^data\.levels have moduli \[7, 13\]; write the grammar's 13 in all\.$"):
        RPN(levels=[RPNGrammar(modulus=7)])


class Full(Reward):
    """Pays every completion."""

    def score(self, rollouts):
        return torch.ones(rollouts.lengths.shape)


class Watch(RolloutCallback):
    """The most operations in each rollout's prompts."""

    def __init__(self):
        self.operations = []

    def on_rollout_start(self, trainer, module, prompts):
        self.operations.append(max(map(operations, prompts.samples)))
        return prompts


def test_the_curriculum_raises_the_level(tmp_path):
    one, two = (RPNGrammar(min_operations=count, max_operations=count) for count in (1, 2))
    data = small_data(grammar=two, levels=[one], epoch_size=16, val_problems=1, test_problems=1)
    settings = {"sampler": Sampler(max_new_tokens=2), "group_size": 2, "evaluation": Evaluation(max_new_tokens=0)}
    module = GRPO(SPEC, reward=Full(), **settings)
    watch = Watch()
    quiet_trainer(tmp_path, max_steps=4, callbacks=[Curriculum(threshold=0.5), watch]).fit(module, data)
    assert watch.operations == [1, 1, 2, 2]  # two rollouts of 8 an epoch
