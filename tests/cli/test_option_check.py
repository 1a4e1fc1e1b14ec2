"""Misspelt options: refused from the source alone, with the line that the parser gives, and never an option that exists."""

import shlex

import lightning.pytorch as pl
import pytest
from jsonargparse import ArgumentParser
from tiny_runs import tiny_config, write_yaml

import lit_rl.algorithms
import lit_rl.callbacks
import lit_rl.datamodules
import lit_rl.evaluation
import lit_rl.models
import lit_rl.objectives
import lit_rl.rewards
import lit_rl.sampling
from lit_rl.cli.errors import explain
from lit_rl.cli.lightning_cli import check_arguments
from lit_rl.cli.option_check import check_options
from lit_rl.cli.option_names import class_options
from lit_rl.tasks.infix import Grammar
from lit_rl.training.schedule import Schedule

# Options that a mistake is compared with are listed if they are fewer than 20.
SAMPLER = "Known here are max_new_tokens, max_rows, temperature, top_k, top_p."
TOP = "Known here are ckpt_path, config, data, model, print_config, seed_everything, trainer, weights_only."
SFT = "Known here are completion_only, evaluation, max_skipped_steps, optimizer, policy, schedule, seed."

FLAGS = [
    ("--trainer.max_stepz 3", "'trainer.max_stepz'. Did you mean 'trainer.max_steps'?"),
    ("--trainer.max_step 3", "'trainer.max_step'. Did you mean 'trainer.max_steps'?"),
    ("--trainr.max_stepz=3", "'trainr.max_stepz'. Did you mean 'trainer.max_steps'?"),
    ("--trainer.foo 1", "'trainer.foo'."),
    ("--foo.bar=3", f"'foo.bar'. {TOP}"),
    ("--verbose true", f"'verbose'. {TOP}"),
    ("--modell GRPO", "'modell'. Did you mean 'model'?"),
    ("--modell.group_size 4", "'modell.group_size'. Did you mean 'model.group_size'?"),
    ("--model.grup_size 8", "'model.grup_size'. Did you mean 'model.group_size'?"),
    ("--model.init_args.grup_size 8", "'model.grup_size'. Did you mean 'model.group_size'?"),
    ("--model SFT --model.group_size 8", f"'model.group_size'. {SFT}"),
    ("--model.polic.sizes tiny", "'model.polic.sizes'. Did you mean 'model.policy.size'?"),
    ("--model.policy.sizes tiny", "'model.policy.sizes'. Did you mean 'model.policy.size'?"),
    ("--model.policy='{sizes: tiny}'", "'model.policy.sizes'. Did you mean 'model.policy.size'?"),
    ("--model.policy.lora.rr 3", "'model.policy.lora.rr'. Did you mean 'model.policy.lora.r'?"),
    ("--model.sampler.temp 1", f"'model.sampler.temp'. {SAMPLER}"),
    ("--model.samplr.temperatur 1", "'model.samplr.temperatur'. Did you mean 'model.sampler.temperatur'?"),
    ("--model.reward ArithmeticAnswer --model.reward.markr x", "'model.reward.markr'. Did you mean 'model.reward.marker'?"),
    ("--data.grammars.max_digit 1", "'data.grammars.max_digit'. Did you mean 'data.grammar.max_digit'?"),
    ("--data.grammar.max_digit 1", "'data.grammar.max_digit'. Did you mean 'data.grammar.max_digits'?"),
    (
        "--trainer.callbacks+=SampleTable --trainer.callbacks.rowz 3",
        "'trainer.callbacks.rowz'. Did you mean 'trainer.callbacks.rows'?",
    ),
    (
        "--trainer.callbacks+ ModelCheckpoint --trainer.callbacks.save_lst=true",
        "'trainer.callbacks.save_lst'. Did you mean 'trainer.callbacks.save_last'?",
    ),
]
FILES = [
    ({"trainer": {"max_stepz": 3}}, "'trainer.max_stepz'. Did you mean 'trainer.max_steps'?"),
    ({"trainr": {"max_steps": 3}}, "'trainr.max_steps'. Did you mean 'trainer.max_steps'?"),
    ({"model": {"init_args": {"grup_size": 3}}}, "'model.grup_size'. Did you mean 'model.group_size'?"),
    (
        {"model": {"init_argz": {"seed": 3}, "class_path": "GRPO"}},
        "'model.init_argz.seed'. Did you mean 'model.init_args.seed'?",
    ),
    (
        {"data": {"init_args": {"grammar": {"max_digit": 3}}}},
        "'data.grammar.max_digit'. Did you mean 'data.grammar.max_digits'?",
    ),
    (
        {"trainer": {"callbacks": ["HFExport", {"class_path": "SampleTable", "init_args": {"rowz": 3}}]}},
        "'trainer.callbacks.rowz'. Did you mean 'trainer.callbacks.rows'?",
    ),
]


@pytest.fixture
def mistakes(tmp_path):
    """Command lines with an unknown option, and the line that each gets."""
    grpo = write_yaml(tmp_path / "grpo.yaml", tiny_config(tmp_path, "GRPO"))
    overlays = [write_yaml(tmp_path / f"{number}.yaml", content) for number, (content, _) in enumerate(FILES)]
    lines = [(shlex.split(flags), message) for flags, message in FLAGS]
    lines += [(["--config", file], message) for file, (_, message) in zip(overlays, FILES, strict=True)]
    return [(["fit", "--config", grpo, *args], f"unknown option {message}") for args, message in lines]


def refusal(check, args):
    with pytest.raises(ValueError) as error:  # noqa: PT011  (its text is compared)
        check(args)
    return explain(error.value)


def test_a_misspelt_option_gets_one_line_that_says_what_was_meant(mistakes):
    for args, message in mistakes:
        assert refusal(check_options, args) == message, args


def test_the_parser_gives_the_same_lines(mistakes):
    for args, message in mistakes[::2] + mistakes[-len(FILES) :]:
        assert refusal(check_arguments, args) == message, args


def test_what_the_source_does_not_tell_is_left_to_the_parser(tmp_path):
    config = write_yaml(tmp_path / "grpo.yaml", tiny_config(tmp_path, "GRPO"))
    for flags in (
        "--model.policy.config.foo 3",
        "--model.dict_kwargs.foo 3",
        "--model mine.GRPO --model.foo 3",
        "--model.reward mine.Correct --model.reward.foo 3",
        "--model.group_size 3 --model SFT",
        "--model.optimizer torch.optim.SGD --model.optimizer.foo 3",
        "--trainer.logger WandbLogger --trainer.logger.group mine",
        "--trainer.strategy FSDP2Strategy --trainer.strategy.foo 3",
        "--trainer.callbacks null",
        "--model.help GRPO",
        "--model.policy={broken",
        "--config",
    ):
        check_options(["fit", "--config", config, *flags.split(" ")])


def test_names_from_the_source_are_those_of_the_parser():
    packages = (lit_rl.algorithms, lit_rl.callbacks, lit_rl.datamodules, lit_rl.evaluation, lit_rl.models, lit_rl.objectives)
    packages += (lit_rl.rewards, lit_rl.sampling)
    classes = [getattr(package, name) for package in packages for name in package.__all__] + [Schedule, Grammar, pl.Trainer]
    theirs = [pl.callbacks.ModelCheckpoint, pl.callbacks.RichProgressBar, pl.callbacks.EarlyStopping, pl.loggers.CSVLogger]
    for each in classes + theirs:
        parser = ArgumentParser()
        parser.add_class_arguments(each, fail_untyped=False)
        parsed = {action.dest.split(".")[0] for action in parser._actions} - {"help", "print_config", "print_shtab"}
        assert set(class_options(each.__name__)) == parsed, each.__name__


def test_a_class_that_hands_its_options_on_to_unknown_places_is_not_known():
    assert class_options("WandbLogger") is None
    assert class_options("TensorBoardLogger") is None
    assert class_options("NoSuchClass") is None
