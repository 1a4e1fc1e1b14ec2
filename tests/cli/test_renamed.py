"""Old names of classes and options end with one line that says the new name."""

import pytest
from tiny_runs import refusal, tiny_config, write_yaml

import lit_rl.callbacks
import lit_rl.rewards
from lit_rl.cli.errors import explain
from lit_rl.cli.lightning_cli import check_arguments
from lit_rl.cli.renamed import CLASSES

CALLBACKS = {"AdaptiveTemperature", "KLController"}


def test_every_new_name_is_a_class():
    for old, new in CLASSES.items():
        package = lit_rl.callbacks if old in CALLBACKS else lit_rl.rewards
        assert isinstance(getattr(package, new), type), new


def test_an_old_name_on_the_command_line_gets_one_line(tmp_path):
    config = write_yaml(tmp_path / "grpo.yaml", tiny_config(tmp_path, "GRPO"))
    place = {"model": {"init_args": {"reward": {"class_path": "lit_rl.rewards.answers.Correct"}}}}
    mean = {"class_path": "WeightedSum", "init_args": {"rewards": ["Format"], "weights": [1.0]}}
    within = write_yaml(tmp_path / "within.yaml", {"model": {"init_args": {"reward": mean}}})
    cases = [
        (["--model.reward", "Correct"], "model.reward: class 'Correct' is called ArithmeticAnswer now."),
        (
            ["--config", write_yaml(tmp_path / "place.yaml", place)],
            "model.reward: class 'lit_rl.rewards.answers.Correct' is called ArithmeticAnswer now.",
        ),
        (["--config", within], "model.reward.rewards: class 'Format' is called ArithmeticFormat now."),
        (["--trainer.callbacks+=KLController"], "trainer.callbacks: class 'KLController' is called AdaptiveKL now."),
        (["--model.policy.gather=layer"], "option 'model.policy.gather' is called 'model.policy.unshard' now."),
    ]
    for args, message in cases:
        assert refusal("fit", "--config", config, *args) == f"lit-rl: {message}"


def test_the_parser_knows_old_names_too(tmp_path):
    config = write_yaml(tmp_path / "grpo.yaml", tiny_config(tmp_path, "GRPO"))
    for args, message in [
        (["--model.reward", "Correct"], "model.reward: class 'Correct' is called ArithmeticAnswer now."),
        (["--model.reward", "lit_rl.rewards.Correct"], "class 'lit_rl.rewards.Correct' is called ArithmeticAnswer now."),
        (["--model.policy.gather=layer"], "option 'model.policy.gather' is called 'model.policy.unshard' now."),
    ]:
        with pytest.raises(ValueError) as error:  # noqa: PT011  (its text is compared)
            check_arguments(["fit", "--config", config, *args])
        assert explain(error.value).endswith(message)
