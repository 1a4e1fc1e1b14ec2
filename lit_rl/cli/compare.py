"""Several policies on the same questions: ``lit-rl compare NAME=POLICY NAME=POLICY ... --data GSM8K --data.path FOLDER``.

A policy is an exported folder, an adapter's folder or a hub name, called by a name of your choice. Policies stand before all
options. They are evaluated one after another, each with its own tokenizer and chat template; only one is in memory. Of each are
shown, with 95 % intervals: greedy accuracy, completions with an answer, truncated completions and the mean length, and with
`--model.evaluation.samples` the majority vote and pass@k. Of each pair: the difference, its interval, McNemar's exact test, and
the questions that changed sides. Answers are read from completions alone, never from prompts.

  lit-rl compare base=Qwen/Qwen2.5-1.5B sft=runs/sft/export --data GSM8K --data.path gsm8k --split val --limit 50

  --split val|test            questions of the validation or of the test set; default test
  --limit N                   at most N questions, evenly spread over the set, the same ones in every run; default all
  --folder FOLDER             where comparison.json, comparison.md and the answers of each policy go; default runs/compare
  --config CONFIG             a run's config, for its data, model.evaluation, model.policy (all but the model) and Trainer;
                              its callbacks and loggers are left out
  --model.evaluation.KEY      judge, lengths and samples; without a config 512 tokens, judged by FinalNumber (the number after
                              ####, or else the last one)
  --trainer.KEY, --data.KEY, --model.policy.KEY       as in lit-rl test, for all policies

Started again after an interruption it keeps the answers of the policies that were finished, unless options, data or weights
have changed since, and answers the others' questions from the first one on.
"""

from __future__ import annotations

import re
import sys

from lit_rl.cli.configs import resolve_configs
from lit_rl.cli.option_check import Classes, check_options
from lit_rl.cli.own_classes import check_chosen

EVALUATION = ("--model", "SFT", "--model.evaluation", "Evaluation", "--model.evaluation.max_new_tokens", "512",
              "--model.evaluation.correct", "FinalNumber", "--model.evaluation.correct.fallback", "last_number")  # fmt: skip
"""Evaluation of a comparison whose arguments name no model."""


def split_policies(args: list[str]) -> tuple[dict[str, str], list[str]]:
    """Sources of the policies by name, and the options after them.

    Args:
        args: arguments after ``compare``.

    Raises:
        ValueError: if they do not begin with two policies, or one of them has no name.
    """
    first = next((place for place, arg in enumerate(args) if arg.startswith("-")), len(args))
    policies: dict[str, str] = {}
    for arg in args[:first]:
        name, _, source = arg.partition("=")
        # It names a file and a column.
        if not re.fullmatch(r"\w[\w.-]{0,49}", name) or not source:
            raise ValueError(f"compare: {arg!r} is not a policy; write NAME=FOLDER, for example sft=runs/sft/export.")
        if name in policies:
            raise ValueError(f"compare: two policies are called {name!r}; give each a name of its own.")
        policies[name] = source
    if len(policies) < 2:
        raise ValueError(
            "write lit-rl compare and two policies or more, each as NAME=FOLDER, before all options; lit-rl test evaluates one."
        )
    return policies, args[first:]


def check_compare(args: list[str]) -> tuple[dict[str, str], list[str], Classes]:
    """Refuse wrong arguments as far as the source tells them.

    Args:
        args: arguments after ``compare``.

    Returns:
        Sources of the policies by name, all options with configs by path, and the classes that the options choose.

    Raises:
        ValueError: for the first wrong argument.
    """
    policies, options = split_policies(args)
    options = resolve_configs(options)
    classes = check_options(["compare", *options])
    if "model" not in classes.now:
        options = [*EVALUATION, *options]
        classes = check_options(["compare", *options])
    return policies, options, classes


def main(args: list[str]) -> None:
    """``lit-rl compare NAME=POLICY NAME=POLICY ...``.

    Args:
        args: arguments after ``compare``.
    """
    if "--help" in args or "-h" in args:
        print(__doc__)
        return
    policies, options, classes = check_compare(args)
    check_chosen(classes.all)
    # Processes that a strategy launches read the command line too.
    sys.argv[1:] = ["compare", *args]
    from lit_rl.cli.comparison import run_compare  # takes seconds: after the quick check

    run_compare(policies, options)
