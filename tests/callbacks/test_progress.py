"""The progress line: steps of all steps, also after a resume."""

import pytest
from conftest import quiet_trainer, tiny_data, tiny_spec

from lit_rl.algorithms import SFT
from lit_rl.callbacks import Progress
from lit_rl.evaluation import Evaluation


def run(folder, steps, checkpoint=None, **options):
    bar = Progress(every_seconds=0)
    settings = {"callbacks": [bar], "enable_progress_bar": True, "max_steps": steps, **options}
    trainer = quiet_trainer(folder, **settings)
    trainer.fit(SFT(tiny_spec(), evaluation=Evaluation(max_new_tokens=4)), tiny_data(), ckpt_path=checkpoint)
    return trainer, bar


def steps(text: str) -> list[str]:
    """The first part of each line of progress."""
    return [line.split(",")[0] for line in text.splitlines() if line.startswith("step ")]


def test_steps_are_counted_of_all_steps_and_go_on_after_a_resume(tmp_path, capsys):
    trainer, _ = run(tmp_path, 2)
    assert steps(capsys.readouterr().out) == ["step 1 of 2", "step 2 of 2", "step 2 of 2"]
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    run(tmp_path, 4, tmp_path / "two.ckpt")
    assert steps(capsys.readouterr().out) == ["step 3 of 4", "step 4 of 4", "step 4 of 4"]


def test_the_line_has_the_time_left_and_the_loss(tmp_path, capsys):
    run(tmp_path, 1)
    last = capsys.readouterr().out.splitlines()[-1]
    assert ", 0:00:00 left, loss " in last
    assert "v_num" not in last


def test_steps_of_epochs_are_counted(tmp_path, capsys):
    run(tmp_path, -1, max_epochs=2, limit_train_batches=4, accumulate_grad_batches=2)  # 2 x 4 / 2
    assert steps(capsys.readouterr().out)[-1] == "step 4 of 4"


def test_a_run_that_only_the_clock_ends_has_no_last_step(tmp_path, capsys):
    run(tmp_path, -1, max_epochs=-1, max_time={"seconds": 0})
    assert all(" of " not in step for step in steps(capsys.readouterr().out))


def test_a_validation_shows_its_batch(tmp_path, capsys):
    run(tmp_path, 1, limit_val_batches=1, num_sanity_val_steps=1, val_check_interval=1)
    lines = capsys.readouterr().out.splitlines()
    assert "baseline, batch 1" in lines
    assert any(line.startswith("step 1 of 1, ") and line.endswith("validation, batch 1") for line in lines)


@pytest.mark.parametrize("given", [["--trainer.callbacks+=RichProgressBar"], []])
def test_a_bar_in_a_config_does_not_stop_a_run_without_bars(tmp_path, given, capsys):
    from tiny_runs import lit_rl, tiny_config, write_yaml

    config = write_yaml(tmp_path / "sft.yaml", tiny_config(tmp_path / "run", max_steps=1, limit_val_batches=0))
    lit_rl("fit", "--config", config, "--trainer.enable_progress_bar", "false", *given)
    assert not steps(capsys.readouterr().out)
