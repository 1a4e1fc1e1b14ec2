"""Demonstrations of reasoning: the texts that SFT shows a model before RPT."""

from lit_rl.datamodules import ReasonedArithmetic
from lit_rl.datamodules.reasoned_arithmetic import demonstrate
from lit_rl.rewards import AnswerFormat, PrefixMatch
from lit_rl.tasks import Grammar
from lit_rl.types import Sample


def test_a_demonstration_reasons_from_the_lowest_digit_and_predicts_what_follows():
    sample = Sample("<bos><big>57+68<answer>", "125", "125", 3)
    shown = demonstrate(sample)
    begun = shown.prompt.removeprefix(sample.prompt).removesuffix("<think>")
    reasoning, _, said = shown.completion.partition("</think>")
    assert reasoning == "521"
    assert "125".startswith(begun + AnswerFormat(after="").read(said))
    assert shown.reference == "│".join("125"[len(begun) :])


def test_demonstrations_are_right_by_the_reward_that_judges_them():
    data = ReasonedArithmetic(Grammar(max_digits=2), epoch_size=64, val_problems=64, test_problems=1)
    data.setup("fit")
    judge = PrefixMatch()
    assert all(judge.is_right(judge.answer.read(sample.completion).encode(), sample) for sample in data.val_set)


def test_about_half_of_the_training_samples_are_demonstrations():
    data = ReasonedArithmetic(Grammar(max_digits=2), epoch_size=200, val_problems=1, test_problems=1)
    data.setup("fit")
    shown = sum(data.train_set[number].prompt.endswith("<think>") for number in range(200))
    assert 70 < shown < 130
