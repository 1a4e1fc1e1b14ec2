"""Problems in reverse Polish notation: sets that never meet, prompts that keep the answer, levels."""

from collections import Counter

import pytest
import torch
from conftest import TINY, quiet_trainer
from math_runs import attached

from lit_rl.algorithms import GRPO
from lit_rl.callbacks import Curriculum
from lit_rl.datamodules import RPN
from lit_rl.evaluation import Evaluation
from lit_rl.hooks import RolloutCallback
from lit_rl.models import PolicySpec
from lit_rl.rewards import Reward
from lit_rl.sampling import Sampler
from lit_rl.tasks import RPNGrammar
from lit_rl.tasks.rpn import read_prompt
from lit_rl.tasks.rpn_problems import RPNProblems, held_out_problems, split_of

SPEC = PolicySpec(config={"model_type": "llama", **TINY}, tokenizer="rpn13")


def small_data(**options) -> RPN:
    settings = {"batch_size": 8, "epoch_size": 64, "val_problems": 16, "test_problems": 16, "eval_batch_size": 16}
    return RPN(**{**settings, **options})


def prompts(samples) -> set[str]:
    return {sample.prompt for sample in samples}


def operations(sample) -> int:
    return (len(read_prompt(sample.prompt)) - 1) // 2


# --- the three sets --------------------------------------------------------------------------------------------------


def test_the_sets_share_no_problem():
    for complexity in (1, 2):
        grammar = RPNGrammar(5, ("+", "*"), complexity, complexity)
        # Of 50 and 1,000 expressions: the sets would meet without being held apart.
        train = prompts(RPNProblems(grammar, 2000, 0))
        val = prompts(RPNProblems(grammar, 200, 0, "val"))
        test = prompts(RPNProblems(grammar, 200, 0, "test"))
        assert val, complexity
        assert test, complexity
        assert not train & (val | test), complexity
        assert not val & test, complexity


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
    samples = held_out_problems(RPNGrammar(max_operations=4), 100, "test")
    assert len(prompts(samples)) == 100
    assert [sample.number for sample in samples] == list(range(100))
    assert set(map(operations, samples)) == {1, 2, 3, 4}


def test_a_grammar_too_small_for_the_evaluation_is_refused_in_one_line():
    one = RPNGrammar(min_operations=1, max_operations=1)
    with pytest.raises(
        ValueError, match=r"^The grammar is too small: 1000 draws for val problem [^\n]*fewer problems\. [^\n]*$"
    ):
        small_data(grammar=one, val_problems=100).setup("fit")


def test_the_sets_of_a_run_share_no_problem_and_have_their_sizes():
    grammar = RPNGrammar(operators=("+", "-"), max_operations=2)
    data = small_data(grammar=grammar, epoch_size=1000, val_problems=100, test_problems=100)
    data.setup("fit")
    train, val, test = map(prompts, (data.train_set, data.val_set, data.test_set))
    assert (len(data.train_set), len(val), len(test)) == (1000, 100, 100)
    assert not train & (val | test)
    assert not val & test


def test_the_evaluation_sets_depend_on_no_seed_and_no_level():
    first, second = small_data(seed=1), small_data(seed=2, levels=[RPNGrammar(max_operations=1)])
    for data in (first, second):
        data.setup("fit")
    assert first.val_set == second.val_set
    assert first.test_set == second.test_set


# --- prompts and completions -----------------------------------------------------------------------------------------


def test_a_prompt_never_holds_the_answer():
    # simplexity cut prompts at 10 tokens or more: of one operation the answer and the end token were in them.
    for sample in RPNProblems(RPNGrammar(min_operations=1, max_operations=2), 200, 0):
        assert "=" not in sample.prompt
        assert len(sample.prompt.split()) == 1 + len(read_prompt(sample.prompt)) in (4, 6)


def test_the_completion_is_the_derivation_and_ends_in_the_reference():
    for sample in RPNProblems(RPNGrammar(13, ("+", "-", "*"), 1, 5), 200, 0):
        assert sample.completion.startswith("= ")
        assert sample.completion.split(" ")[-2:] == ["=", sample.reference]
        assert "<eoe>" not in sample.completion


def test_a_batch_is_padded_on_the_left_and_every_completion_ends_once():
    data = attached(small_data(grammar=RPNGrammar(max_operations=12)), "rpn13")
    batch = next(iter(data.train_dataloader().prompts.loader))
    begin, end, pad = (data.tokenizer.convert_tokens_to_ids(token) for token in ("<boe>", "<eoe>", "<pad>"))
    assert batch.mask[:, -1].all()
    assert not batch.mask[:, 0].all()  # lengths differ, so that there is padding to speak of
    for ids, mask, completion, sample in zip(batch.ids, batch.mask, batch.completions, batch.samples, strict=True):
        assert data.tokenizer.decode(ids[mask]) == sample.prompt
        assert ids[mask][0] == begin
        assert bool((ids[~mask] == pad).all())
        # The longest too: simplexity lost the end token of completions that ran over its window.
        assert data.tokenizer.decode(completion) == f"{sample.completion} <eoe>"
        assert completion.count(end) == 1


def test_evaluation_loads_every_held_out_problem_once():
    data = attached(small_data(eval_batch_size=6), "rpn13")
    for loader, kept in ((data.val_dataloader(), data.val_set), (data.test_dataloader(), data.test_set)):
        assert [sample for batch in loader for sample in batch.samples] == kept


# --- levels ----------------------------------------------------------------------------------------------------------


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
