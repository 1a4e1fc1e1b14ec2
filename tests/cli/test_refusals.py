"""Odd arguments, configs and modules of the user: each gets the one line that helps."""

import contextlib
import os
import sys

import pytest
import yaml
from tiny_runs import lit_rl, refusal, tiny_config, write_yaml


@pytest.fixture
def sft(tmp_path, monkeypatch):
    """A config that runs, in a working directory of its own, whose modules are forgotten after the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    yield write_yaml(tmp_path / "sft.yaml", tiny_config(tmp_path / "run"))
    for name in ("own_algorithm", "broken_module"):
        sys.modules.pop(name, None)


def printed(capsys, *args) -> dict:
    with contextlib.suppress(SystemExit):
        lit_rl(*args, "--print_config")
    return yaml.safe_load(capsys.readouterr().out)


# --- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data.epoch_size=null"], "data.epoch_size: expected int; got null"),
        (["--data.epoch_size", "null"], "data.epoch_size: expected int; got null"),
        (["--model.optimizer.lr=null"], "model.optimizer.lr: expected float, Tensor; got null"),
        (["--model.policy", "null"], "model.policy: expected named options; got None"),
        (["--model.policy", "[1]"], "model.policy: expected named options; got [1]"),
        (["--model.policy.config", "3"], "model.policy.config: expected dict[str, Any], null; got '3'"),
        (["--model.policy.config", "[1, 2]"], "model.policy.config: expected dict[str, Any], null; got '[1, 2]'"),
        (["--seed_everything", "true"], "seed_everything: invalid literal for int() with base 10: 'true'"),
        (["--seed_everything", "-5"], "seed_everything: -5 does not conform to restriction v>=0 and v<4294967296"),
        (["--trainer.devices", "2147483648"], "trainer.devices is 2147483648; write the number of devices of one machine."),
        (["--trainer.devices", "="], "trainer: `devices` selected with `CPUAccelerator` should be an int > 0."),
        (["--data.batch_size", "\x1b[31mred\x07"], r"data.batch_size: expected int; got '\x1b[31mred\x07'"),
        (["--model.policy.config", "[" * 3000 + "]" * 3000], "it is nested more than 50 levels deep."),
    ],
)
def test_a_value_of_a_wrong_kind_gets_one_line(sft, flags, message):
    assert refusal("fit", "--config", sft, *flags) == f"lit-rl: {message}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: " + "[" * 3000 + "]" * 3000, "it is nested more than 50 levels deep."),
        ("a: " + "{b: " * 100 + "1" + "}" * 100, "it is nested more than 50 levels deep."),
        ("a: &a [*a]", "it is nested more than 50 levels deep."),
        ("\n".join(f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]" if n else "a1: &a1 [x]" for n in range(9)), "100,000"),
        ("a: 2020-13-45", "month must be in 1..12"),
        ("a: \x1b[31m", "this is not a YAML text: "),
    ],
)
def test_a_file_that_no_config_needs_gets_one_line(sft, tmp_path, text, message):
    (tmp_path / "odd.yaml").write_text(text)
    answer = refusal("fit", "--config", "odd.yaml")
    assert answer.startswith("lit-rl: odd.yaml: ")
    assert message in answer
    assert answer.isprintable()


def test_control_characters_of_data_do_not_reach_the_terminal(sft, tmp_path):
    (tmp_path / "data.jsonl").write_text('{"\\u001b[31mred": 1}\n')
    data = {"class_path": "Corpus", "init_args": {"path": "data.jsonl", "window": 8, "cache_folder": "cache"}}
    answer = refusal("fit", "--config", sft, "--config", write_yaml(tmp_path / "data.yaml", {"data": data}))
    assert answer.isprintable()
    assert r"\x1b[31mred" in answer


# --- the optimizer ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("algorithm", "rate"), [("SFT", 2e-5), ("GRPO", 1e-6)])
def test_the_default_optimizer_is_shown_and_its_rate_can_be_set(tmp_path, capsys, algorithm, rate):
    config = write_yaml(tmp_path / "run.yaml", tiny_config(tmp_path / "run", algorithm))
    for flags, expected in [([], rate), (["--model.optimizer.lr", "1e-4"], 1e-4)]:
        optimizer = printed(capsys, "fit", "--config", config, *flags)["model"]["init_args"]["optimizer"]
        assert optimizer["class_path"] == "torch.optim.AdamW"
        assert (optimizer["init_args"]["lr"], optimizer["init_args"]["weight_decay"]) == (expected, 0.0)


@pytest.mark.parametrize(
    "call",
    [
        {"class_path": "os.system", "init_args": {"command": "touch called"}},
        {"class_path": "os.system", "dict_kwargs": {"command": "touch called"}},
        {"class_path": "posix.system", "init_args": {"command": "touch called"}},
        {"class_path": "subprocess.getoutput", "init_args": {"cmd": "touch called"}},
    ],
)
@pytest.mark.parametrize("key", ["model.optimizer", "model.schedule", "model.evaluation", "trainer.callbacks"])
def test_a_function_that_stands_for_a_class_is_not_called(sft, tmp_path, call, key):
    section, option = key.split(".")
    content = {"init_args": {option: call}} if section == "model" else {option: [call]}
    file = write_yaml(tmp_path / "call.yaml", {section: content})
    for flags in (
        ["--config", file],
        [f"--{key}", yaml.safe_dump(call if section == "model" else [call], default_flow_style=True)],
    ):
        answer = refusal("fit", "--config", sft, *flags)
        assert answer == f"lit-rl: {key}: {call['class_path']!r} is not a class; write the import path of a class."
        assert not (tmp_path / "called").exists()


@pytest.mark.parametrize("name", ["os.system", "subprocess.Popen"])
def test_only_optimizers_are_optimizers(sft, name):
    assert refusal("fit", "--config", sft, "--model.optimizer", name).startswith(
        f"lit-rl: model.optimizer: Expected {name!r} to be"
    )


# --- own modules -----------------------------------------------------------------------------------------------------


def test_a_module_of_the_working_directory_is_found(sft, tmp_path, capsys):
    (tmp_path / "own_algorithm.py").write_text("from lit_rl.algorithms import SFT\nclass Mine(SFT): pass\n")
    assert (
        printed(capsys, "fit", "--config", sft, "--model", "own_algorithm.Mine")["model"]["class_path"] == "own_algorithm.Mine"
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import os\nimport no_such_package\n", "line 2: ModuleNotFoundError: No module named 'no_such_package'"),
        ("x = 1\ny = z\n", "line 2: NameError: name 'z' is not defined"),
        ("x = 1\n\ny = = 2\n", "line 3: SyntaxError: invalid syntax"),
        ("raise SystemExit(3)\n", "line 1: SystemExit: 3"),
    ],
)
def test_a_module_that_fails_is_named_with_its_line(sft, tmp_path, text, reason):
    (tmp_path / "broken_module.py").write_text(text)
    overlay = write_yaml(tmp_path / "own.yaml", {"model": {"class_path": "broken_module.Mine"}})
    for flags in (["--model", "broken_module.Mine"], ["--config", overlay]):
        answer = refusal("fit", "--config", sft, *flags)
        assert answer.startswith(f"lit-rl: model: {os.path.join(tmp_path, 'broken_module.py')}, {reason}")


def test_a_module_that_does_not_exist_is_an_unknown_class(sft):
    assert "model: unknown class 'no_such_module.Mine'" in refusal("fit", "--config", sft, "--model", "no_such_module.Mine")


# --- the command -----------------------------------------------------------------------------------------------------


def test_options_may_stand_before_the_command(sft, capsys):
    behind = printed(capsys, "fit", "--config", sft, "--trainer.max_steps=7")
    assert printed(capsys, "--config", sft, "--trainer.max_steps=7", "fit") == behind
    assert behind["trainer"]["max_steps"] == 7


def test_a_debug_run_does_not_need_the_steps_of_a_schedule(tmp_path):
    falling = {"class_path": "TemperatureSchedule", "init_args": {"start_step": 500}}
    config = write_yaml(tmp_path / "grpo.yaml", tiny_config(tmp_path / "run", "GRPO", callbacks=(falling,)))
    lit_rl("fit", "--config", config, "--config", "trainer/debug")
