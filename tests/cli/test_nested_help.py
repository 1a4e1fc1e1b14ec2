"""Help of options inside a class, however deep, with the words of docstrings."""

import contextlib

import pytest
from tiny_runs import lit_rl, refusal


def shown(capsys, *args) -> str:
    with contextlib.suppress(SystemExit):
        lit_rl(*args)
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["--model.sampler.help"], "--model.sampler.temperature"),
        (["--model.schedule.help"], "Optimizer steps in which the rate rises linearly from 0."),
        (["--model.policy.lora.help"], "--model.policy.lora.r"),
        (["--data.positions.help"], "--data.positions.eval_positions"),
        (["--config", "rpt_omni_math", "--data.positions.help"], "--data.positions.labels_length"),
        (["--model.evaluation.help"], "--model.evaluation.max_new_tokens"),
        (
            ["--model.evaluation.help", "NextTokenEvaluation"],
            "Help for --model.evaluation.help=lit_rl.evaluation.NextTokenEvaluation",
        ),
        (["--model.reward.help=FinalNumber"], "--model.reward.marker"),
        (["--model.optimizer.help", "torch.optim.SGD"], "--model.optimizer.momentum"),
        (["--model", "PPO", "--model.critic.help"], "--model.critic.pretrained"),
        (["--model.help", "GRPO", "--model.sampler.help"], "--model.sampler.temperature"),
        (["--model.policy.help"], "Hugging Face name or folder of a model"),
        (["--model.overlong.help"], "leaves truncated completions out of the loss"),
        (["--model.objective.help"], "Importance ratio of each token, or of each sequence"),
        (["--model.objective.correction.help"], "One weight for each token, or for each sequence"),
        (["--model.help", "GRPO"], "Hugging Face name or folder of a model"),
    ],
)
def test_an_option_that_holds_options_has_a_help(capsys, args, text):
    assert text in shown(capsys, "fit", *args)


def test_a_group_has_its_own_options_alone(capsys):
    assert "--model.group_size" not in shown(capsys, "fit", "--model.overlong.help")


def test_the_help_of_an_option_that_does_not_exist_gets_one_line():
    assert refusal("fit", "--model.samplr.help").endswith("Did you mean 'model.sampler.help'?")
