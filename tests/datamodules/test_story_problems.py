"""Word problems by template as a data module: prompts, sets of evaluation, levels, a solution that the reward accepts."""

import pytest
from math_runs import attached

from lit_rl.cli.configs import find_config, read_yaml
from lit_rl.datamodules import StoryProblems
from lit_rl.datamodules.collate import collate
from lit_rl.rewards import FinalNumber
from lit_rl.sampling import Arm, ArmSampler
from lit_rl.tasks.changed_stories import read_story
from lit_rl.tasks.stories import STYLES, StoryGrammar


def small_data(**options) -> StoryProblems:
    settings = {"batch_size": 8, "epoch_size": 64, "val_problems": 16, "test_problems": 16, "eval_batch_size": 16}
    return attached(StoryProblems(**{**settings, **options}), "stories")


def test_a_batch_holds_style_and_question_and_ends_each_solution_once():
    data = small_data()
    batch = next(iter(data.train_dataloader().prompts.loader))
    assert len(batch) == 8
    for ids, mask, completion, sample in zip(batch.ids, batch.mask, batch.completions, batch.samples, strict=True):
        assert data.tokenizer.decode(ids[mask]) == sample.prompt
        assert sample.prompt.removesuffix(f"\n\n{sample.question}\n") in STYLES.values()
        assert data.tokenizer.decode(completion) == f"{sample.completion}<eos>"


def test_solutions_are_right_by_the_reward_that_judges_them():
    judge = FinalNumber()
    for sample in small_data().val_set:
        assert judge.is_right(judge.read(sample.completion, sample), sample)


def test_the_evaluation_sets_depend_on_no_seed_and_no_level():
    first, second = small_data(seed=1), small_data(seed=2, levels=[StoryGrammar(max_operations=1)])
    assert first.val_set == second.val_set
    assert first.test_set == second.test_set
    assert first.problems[0] != second.problems[0]


def test_training_begins_on_the_first_level():
    data = small_data(grammar=StoryGrammar(3, 3), levels=[StoryGrammar(1, 1)])
    operations = [sample.completion.count("=") for sample in data.train_set]
    assert set(operations) == {1}
    data.set_level(1)
    assert data.train_set[0].completion.count("=") == 3
    assert all(read_story(sample.question) for sample in data.val_set)


def test_without_styles_questions_are_bare_so_that_arms_ask_as_training_did():
    styled, bare = small_data(), small_data(styles=[])
    arms = ArmSampler(max_new_tokens=8, arms=[Arm(name, name, 1.0) for name in STYLES], styles=STYLES)
    for before, sample in zip(styled.val_set, bare.val_set, strict=True):
        assert sample.prompt == f"{sample.question}\n"
        assert sample.completion == before.completion or before.prompt.startswith(STYLES["reflective"])
        shown = arms._shown(bare.tokenizer, collate(bare.tokenizer, [sample]), [(0, name) for name in STYLES])
        assert before.prompt in [each.prompt for each in shown.samples]


def test_the_arms_of_the_config_ask_in_the_styles_that_sft_teaches():
    sampler = read_yaml(find_config("looper_tiny_rollouts"))["model"]["init_args"]["sampler"]["init_args"]
    assert sampler["styles"] == STYLES


def test_an_unknown_style_is_refused():
    with pytest.raises(ValueError, match=r"^data\.styles has 'loud'; write precise or reflective, or \[\]\.$"):
        small_data(styles=["loud"])
