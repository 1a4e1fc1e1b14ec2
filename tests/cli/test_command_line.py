"""The command line: what it runs, what it keeps, and the one line that each mistake gets."""

import contextlib
import json
import logging
import resource
import shutil
import subprocess
import sys

import pytest
import torch
import yaml
from tiny_runs import lit_rl, refusal, tiny_config, write_yaml

from lit_rl.cli.lightning_cli import ArgumentCheck
from lit_rl.cli.main import COMMANDS

KNOWN = ", ".join(COMMANDS)
SAVE_LAST = {"class_path": "ModelCheckpoint", "init_args": {"save_last": True, "every_n_train_steps": 1}}


@pytest.fixture
def sft(tmp_path):
    """The path of a config that trains two steps."""
    return write_yaml(tmp_path / "sft.yaml", tiny_config(tmp_path / "run"))


@pytest.fixture
def grpo(tmp_path):
    return write_yaml(tmp_path / "grpo.yaml", tiny_config(tmp_path / "run", "GRPO"))


@pytest.fixture(scope="module")
def first_run(tmp_path_factory):
    """The folder of a GRPO run that has stopped after two steps and left a checkpoint."""
    folder = tmp_path_factory.mktemp("stopped")
    config = tiny_config(folder / "run", "GRPO", callbacks=(SAVE_LAST,), log_every_n_steps=1)
    config["model"]["init_args"]["optimizer"] = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.001}}
    lit_rl("fit", "--config", write_yaml(folder / "config.yaml", config))
    return folder


@pytest.fixture
def stopped(first_run, tmp_path):
    """Arguments that go on with a copy of the stopped run, in ``tmp_path / "run"``."""
    shutil.copytree(first_run / "run", tmp_path / "run")
    return ["--config", str(first_run / "config.yaml"), "--trainer.default_root_dir", str(tmp_path / "run")]


def printed_config(capsys, *args) -> dict:
    """The config that a command line comes to."""
    with pytest.raises(SystemExit) as stop:
        lit_rl(*args, "--print_config")
    assert not stop.value.code
    return yaml.safe_load(capsys.readouterr().out)


# --- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model.grup_size", "8"], "unknown option 'model.grup_size'. Did you mean 'model.group_size'?"),
        (["--model", "GRPOO"], "model: unknown class 'GRPOO'. Did you mean 'GRPO'?"),
        (["--model", "lit_rl.GRPO"], "model: unknown class 'lit_rl.GRPO'. Did you mean 'GRPO'?"),
        (["--trainer.callbacks+=SampleTabel"], "trainer.callbacks: unknown class 'SampleTabel'. Did you mean 'SampleTable'?"),
        (["--data.batch_size", "x"], "data.batch_size: expected int; got 'x'"),
        (["--model.policy.size", "big"], "model.policy.size: expected 'tiny', 'small', 'medium', 'large', null; got 'big'"),
        (["--trainer.max_steps"], "argument --trainer.max_steps: expected one argument"),
        (["--data.grammar.max_digits", "0"], "Grammar max_digits=0: write 1 or more."),
        (["--model.group_size", "1"], "model.group_size is 1; a group needs at least 2 completions to compare."),
        (["--trainer.callbacks+=EarlyStopping"], "trainer.callbacks: the following arguments are required: monitor"),
        (["--ckpt_path", "no.ckpt"], "ckpt_path: there is no checkpoint 'no.ckpt'."),
    ],
)
def test_a_wrong_flag_gets_one_line(grpo, capsys, flags, message):
    assert refusal("fit", "--config", grpo, *flags) == f"lit-rl: {message}"
    assert "Traceback" not in capsys.readouterr().err


def test_a_class_of_another_kind_gets_the_known_ones(grpo):
    message = refusal("fit", "--config", grpo, "--data", "Curriculum")
    assert message.startswith("lit-rl: data: unknown class 'Curriculum'. Known are Arithmetic")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], f"write lit-rl and one of {KNOWN}; lit-rl --help explains them."),
        (["fti"], f"unknown command 'fti'; write one of {KNOWN}. Did you mean 'fit'?"),
        (["fit"], "the following arguments are required: data, model"),
    ],
)
def test_a_command_line_without_the_needed_gets_one_line(args, message):
    assert refusal(*args) == f"lit-rl: {message}"


def test_an_unknown_config_is_answered_with_the_known_ones():
    message = refusal("fit", "--config", "sft_arithmetik")
    assert "no config 'sft_arithmetik'" in message
    assert "trainer/ddp" in message
    assert message.endswith("Did you mean 'sft_arithmetic'?")


def test_a_file_that_is_not_a_config_is_named_with_its_line(tmp_path):
    path = tmp_path / "wrong.yaml"
    for text, message in [
        ("trainer:\n  max_steps: 3\n  callbacks: [1, 2\nmodel: x\n", "wrong.yaml, line 4: this is not YAML: "),
        ("trainer:\n\tmax_steps: 3\n", "wrong.yaml, line 2: this is not YAML: "),
        ("just a text\n", "wrong.yaml: it must hold named entries such as `trainer:`, not str."),
    ]:
        path.write_text(text)
        assert message in refusal("fit", "--config", path)


def test_batch_sizes_that_do_not_divide_are_shown_with_the_nearest(grpo):
    message = refusal("fit", "--config", grpo, "--data.batch_size", 10, "--model.minibatches", 4)
    assert "data.batch_size 10 does not divide into 1 rank(s) x 4 minibatch(es)" in message
    assert message.endswith("the nearest that do: 8 and 12.")


def test_a_policy_folder_that_does_not_exist(sft):
    message = refusal("fit", "--config", sft, "--model.policy.tokenizer", "null", "--model.policy.pretrained", "runs/no/export")
    assert message.startswith("lit-rl: model.policy.pretrained: the folder 'runs/no/export' does not exist")


def test_a_checkpoint_of_another_model(stopped, tmp_path):
    config = {"config": {"model_type": "llama", "hidden_size": 48}, "size": "tiny", "tokenizer": "arithmetic"}
    overlay = write_yaml(tmp_path / "wide.yaml", {"model": {"init_args": {"policy": config}}})
    message = refusal("test", *stopped, "--config", overlay, "--ckpt_path", "last")
    assert "the checkpoint is of another model" in message
    assert "(53, 32) there and (53, 48) here" in message


def test_a_file_that_is_not_a_checkpoint(sft, tmp_path):
    (tmp_path / "cut.ckpt").write_bytes(b"PK\x03\x04 and no more")
    message = refusal("test", "--config", sft, "--ckpt_path", tmp_path / "cut.ckpt")
    assert message.endswith("cut.ckpt is not a checkpoint, or was cut off.")


def test_an_output_folder_that_cannot_be_written(sft, tmp_path):
    (tmp_path / "file").write_text("")
    message = refusal("fit", "--config", sft, "--trainer.default_root_dir", tmp_path / "file" / "run")
    assert "Not a directory" in message


@pytest.mark.parametrize("callback", ["ModelCheckpoint", "HFExport"])
def test_a_full_disk_gets_one_line(sft, callback):
    """A limit on the size of files stands for the disk: writing fails in the same place."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        message = refusal("fit", "--config", sft, f"--trainer.callbacks+={callback}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "File too large" in message


def test_debug_shows_the_traceback(sft):
    with pytest.raises(ValueError, match="unknown option"):
        lit_rl("fit", "--config", sft, "--nope", 3, "--debug")


def test_a_mistake_in_a_process_of_its_own_ends_with_a_status_and_no_traceback(tmp_path):
    command = [sys.executable, "-m", "lit_rl", "fit", "--config", "sft_arithmetic", "--model.policy.sizes", "tiny"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == "lit-rl: unknown option 'model.policy.sizes'. Did you mean 'model.policy.size'?\n"


# --- help ------------------------------------------------------------------------------------------------------------


def test_help_shows_the_docstrings(capsys):
    for args, text in [
        (["--help"], "lit-rl pipeline FILE"),
        (["fit", "--help"], "--trainer.accumulate_grad_batches"),
        (["fit", "--model.help", "GRPO"], "completions per prompt, at least 2."),
        (["fit", "--data.help", "Arithmetic"], "prompts per batch, over all ranks"),
        (["pipeline", "--help"], "A finished stage is skipped"),
    ]:
        with contextlib.suppress(SystemExit):
            lit_rl(*args)
        assert text in " ".join(capsys.readouterr().out.split()), args


# --- configs ---------------------------------------------------------------------------------------------------------


def test_a_config_goes_by_name_beside_a_folder_of_the_same_name(capsys, tmp_path, monkeypatch):
    (tmp_path / "sft_arithmetic").mkdir()
    monkeypatch.chdir(tmp_path)
    config = printed_config(capsys, "fit", "--config", "sft_arithmetic")
    assert config["model"]["class_path"] == "lit_rl.algorithms.SFT"
    assert config["trainer"]["max_steps"] > 2


def test_a_local_file_goes_before_a_name(capsys, tmp_path, monkeypatch):
    write_yaml(tmp_path / "sft_arithmetic", tiny_config(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert printed_config(capsys, "fit", "--config", "sft_arithmetic")["trainer"]["max_steps"] == 2


def test_later_configs_and_flags_change_earlier_ones(capsys, sft, tmp_path):
    first = write_yaml(tmp_path / "first.yaml", {"trainer": {"max_steps": 5, "max_epochs": 6}})
    second = write_yaml(tmp_path / "second.yaml", {"trainer": {"max_epochs": 7, "precision": "64-true"}})
    flags = ["--config", sft, f"--config={first}", "-c", second, "--trainer.precision", "bf16-mixed"]
    trainer = printed_config(capsys, "fit", *flags)["trainer"]
    assert (trainer["max_steps"], trainer["max_epochs"], trainer["precision"]) == (5, 7, "bf16-mixed")


def test_callbacks_are_appended_with_a_plus(capsys, tmp_path):
    config = write_yaml(tmp_path / "a.yaml", tiny_config(tmp_path, callbacks=("HFExport",)))
    overlay = write_yaml(tmp_path / "b.yaml", {"trainer": {"callbacks+": [{"class_path": "SampleTable"}]}})
    more = ["--config", overlay, "--trainer.callbacks+=Curriculum"]
    callbacks = printed_config(capsys, "fit", "--config", config, *more)["trainer"]["callbacks"]
    names = [f"lit_rl.callbacks.{name}" for name in ("HFExport", "SampleTable", "Curriculum")]
    assert [entry["class_path"] for entry in callbacks] == names


def test_a_printed_config_runs_the_same(capsys, grpo, tmp_path):
    printed = printed_config(capsys, "fit", "--config", grpo)
    again = write_yaml(tmp_path / "again.yaml", printed)
    assert printed_config(capsys, "fit", "--config", again) == printed


def test_options_are_taken_back_with_null(capsys):
    options = ("policy.tokenizer", "policy.config", "policy.lora", "sampler")
    flags = [text for option in options for text in (f"--model.{option}", "null")]
    model = printed_config(capsys, "fit", "--config", "grpo_arithmetic", *flags)["model"]["init_args"]
    assert model["sampler"] is None
    assert [model["policy"][name] for name in ("tokenizer", "config", "lora")] == [None, None, None]


def test_the_seed_reaches_model_and_data(sft, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["lit-rl", "fit", "--config", sft, "--seed_everything", "7"])
    config = ArgumentCheck("fit").config.fit
    assert (config.model.init_args.seed, config.data.init_args.seed) == (7, 7)


# --- runs ------------------------------------------------------------------------------------------------------------


def test_fit_keeps_its_config_and_its_metrics_in_a_new_folder_each_time(sft, tmp_path):
    logs = tmp_path / "run" / "logs"
    lit_rl("fit", "--config", sft)
    lit_rl("fit", "--config", logs / "version_0" / "config.yaml", "--trainer.max_steps", 1)  # a saved config runs again
    for version, steps in [("version_0", 2), ("version_1", 1)]:
        assert yaml.safe_load((logs / version / "config.yaml").read_text())["trainer"]["max_steps"] == steps
        assert "loss" in (logs / version / "metrics.csv").read_text()
    assert "val/accuracy" in (logs / "version_0" / "metrics.csv").read_text()


def test_evaluation_logs_the_accuracy(sft, tmp_path):
    for number, (command, stage) in enumerate([("validate", "val"), ("test", "test")]):
        lit_rl(command, "--config", sft)
        header, row = (tmp_path / "run" / "logs" / f"version_{number}" / "metrics.csv").read_text().splitlines()
        metrics = dict(zip(header.split(","), row.split(","), strict=True))
        assert metrics[f"{stage}/accuracy"] == "0.0"
        assert float(metrics[f"{stage}/accuracy_high"]) > 0.3  # 0 of 8: the Wilson interval ends at 0.324


def test_predict_writes_the_test_problems_with_completions(sft, tmp_path):
    lit_rl("predict", "--config", sft)
    rows = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    assert len(rows) == 8
    assert all(set(row) == {"prompt", "completion", "reference"} for row in rows)
    assert all(row["prompt"].endswith("<answer>") and row["reference"] for row in rows)


def test_the_csv_log_stands_beside_the_named_loggers(sft, tmp_path):
    overlay = {"trainer": {"logger": {"class_path": "TensorBoardLogger", "init_args": {"save_dir": str(tmp_path / "board")}}}}
    lit_rl("fit", "--config", sft, "--config", write_yaml(tmp_path / "board.yaml", overlay))
    assert (tmp_path / "run" / "logs" / "version_0" / "metrics.csv").is_file()
    assert list((tmp_path / "board").glob("**/events.out.tfevents.*"))


# --- resuming --------------------------------------------------------------------------------------------------------


@pytest.fixture
def infos(caplog):
    """All of Lightning's messages in one text."""
    caplog.set_level(logging.INFO, "lightning.pytorch.utilities.rank_zero")
    logging.getLogger("lightning.pytorch").addHandler(caplog.handler)
    yield lambda: caplog.text
    logging.getLogger("lightning.pytorch").removeHandler(caplog.handler)


def test_resuming_with_allowed_changes_applies_and_shows_them(stopped, tmp_path, infos):
    overlay = {
        "trainer": {"max_steps": 3},
        "model": {"init_args": {"objective": {"clip_high": 0.3}, "kl_coef": 0.1}},
        "data": {"init_args": {"num_workers": 1, "eval_batch_size": 4}},
    }
    path = next(tmp_path.glob("run/**/last.ckpt"))
    lit_rl("fit", *stopped, "--config", write_yaml(tmp_path / "more.yaml", overlay), "--ckpt_path", path)
    for line in (
        "trainer.max_steps: 2 -> 3",
        "model.init_args.objective.clip_high: 0.2 -> 0.3",
        "model.init_args.kl_coef: 0.0 -> 0.1",
        "data.init_args.num_workers: 0 -> 1",
    ):
        assert f"Resuming with {line}" in infos()
    saved = torch.load(tmp_path / "run/logs/version_0/checkpoints/last.ckpt", weights_only=True)
    assert saved["global_step"] == 3
    assert yaml.safe_load(saved["config"])["model"]["init_args"]["objective"]["clip_high"] == 0.3
    assert ",kl," in (tmp_path / "run/logs/version_0/metrics.csv").read_text()


def test_resuming_with_a_fixed_option_changed_is_refused(stopped, tmp_path):
    for flags, message in [
        (["--model.optimizer", "torch.optim.SGD"], "model.init_args.optimizer.class_path was 'torch.optim.AdamW' in the"),
        (
            ["--model.optimizer.lr", "0.1"],
            "model.init_args.optimizer.init_args.lr was 0.001 in the checkpoint's run and cannot become 0.1 on resuming",
        ),
        (["--data.batch_size", "8"], "data.init_args.batch_size was 4 in the checkpoint's run"),
        (["--seed_everything", "5"], "seed_everything was 1 in the checkpoint's run and cannot become 5"),
    ]:
        assert message in refusal("fit", *stopped, "--trainer.max_steps", 3, *flags, "--ckpt_path", "last")


def test_the_last_checkpoint_is_evaluated_with_other_options(stopped, tmp_path):
    lit_rl("test", *stopped, "--ckpt_path", "last", "--data.batch_size", 2)
    assert "test/accuracy" in (tmp_path / "run/logs/version_1/metrics.csv").read_text()


def test_evaluating_the_last_of_no_checkpoints_is_refused(sft):
    assert refusal("test", "--config", sft, "--ckpt_path", "last").endswith(
        "there is no checkpoint below trainer.default_root_dir."
    )


def test_a_debug_run_leaves_no_checkpoint_and_no_export(tmp_path):
    saver = {"class_path": "ModelCheckpoint", "init_args": {"save_last": True, "every_n_train_steps": 1}}
    file = write_yaml(tmp_path / "run.yaml", tiny_config(tmp_path / "out", callbacks=(saver, "HFExport")))
    lit_rl("fit", "--config", file, "--trainer.fast_dev_run", "true")
    assert not list((tmp_path / "out").glob("**/*.ckpt"))
    assert not (tmp_path / "out" / "export").exists()
