"""The sampling temperature falls by the steps: hand-computed numbers, lists, and a restart."""

import functools

import pytest
import torch
from conftest import quiet_trainer, tiny_data, tiny_spec
from lightning.pytorch.callbacks import ModelCheckpoint
from resumed_runs import Logged, Stopped, Stopper, assert_same_end, run
from tiny_runs import refusal, tiny_config, write_yaml

from lit_rl.algorithms import GRPO, SFT
from lit_rl.callbacks import TemperatureSchedule
from lit_rl.evaluation import Evaluation
from lit_rl.hooks import RolloutCallback
from lit_rl.sampling import Sampler


class Look(RolloutCallback):
    """Keeps the temperatures that the rows of each rollout were drawn with."""

    def __init__(self):
        self.seen = []

    def on_rollout_end(self, trainer, module, rollouts):
        self.seen.append(rollouts.temperature[: rollouts.rows_per_prompt].tolist())
        return rollouts


def grpo(temperature=1.0, **options):
    adam = functools.partial(torch.optim.AdamW, lr=1e-2)
    sampler = Sampler(max_new_tokens=4, temperature=temperature)
    settings = {"group_size": 2, "evaluation": Evaluation(max_new_tokens=4), "optimizer": adam}
    return GRPO(tiny_spec(), sampler=sampler, **{**settings, **options})


def temperatures(folder, callback, module, max_steps=5, **options):
    """Those of each rollout's rows, and the logged one of each step."""
    look, metrics = Look(), Logged()
    trainer = quiet_trainer(folder, max_steps=max_steps, callbacks=[callback, look], logger=metrics, **options)
    trainer.fit(module, tiny_data())
    return look.seen, [by_name["sampling/temperature"] for _, by_name in sorted(metrics.by_step.items())]


# --- the schedule --------------------------------------------------------------------------------------------------


def test_the_temperature_falls_linearly_to_its_final_factor(tmp_path):
    # 0.8 times 1 - 0.5 * step / 4
    seen, logged = temperatures(tmp_path, TemperatureSchedule(), grpo(0.8), max_steps=4)
    assert [rows[0] for rows in seen] == pytest.approx([0.8, 0.7, 0.6, 0.5])
    assert logged == pytest.approx([0.8, 0.7, 0.6, 0.5])


def test_until_its_start_step_the_temperature_is_the_configured_one(tmp_path):
    # From step 2 to 5 it falls by 0.6 times 2 in three steps: 0.4 each.
    seen, _ = temperatures(tmp_path, TemperatureSchedule(start_step=2, final=0.4), grpo(2.0))
    assert [rows[0] for rows in seen] == pytest.approx([2.0, 2.0, 2.0, 1.6, 1.2])
    assert [rows[0] for rows in seen[:3]] == [2.0, 2.0, 2.0]


def test_the_factor_of_a_step_counted_by_hand():
    schedule = TemperatureSchedule(start_step=500, final=0.5)
    for step, factor in {0: 1.0, 500: 1.0, 501: 0.999, 750: 0.75, 1000: 0.5}.items():
        assert schedule.factor(step, 1000) == pytest.approx(factor), step


def test_each_temperature_of_a_list_falls(tmp_path):
    seen, logged = temperatures(tmp_path, TemperatureSchedule(), grpo([1.0, 0.5]), max_steps=2)
    assert seen == [pytest.approx([1.0, 0.5]), pytest.approx([0.75, 0.375])]
    assert logged == pytest.approx([0.75, 0.5625])  # their means


def test_all_steps_on_a_rollout_log_the_temperature_that_it_was_drawn_with(tmp_path):
    # Two steps a rollout, which begin at 0 and 2 of 4.
    seen, logged = temperatures(tmp_path, TemperatureSchedule(), grpo(epochs=2), max_steps=4, accumulate_grad_batches=2)
    assert seen == [pytest.approx([1.0, 1.0]), pytest.approx([0.75, 0.75])]
    assert logged == pytest.approx([1.0, 1.0, 0.75, 0.75])


def test_a_second_fit_begins_at_the_configured_temperature(tmp_path):
    module = grpo(0.8)
    for _ in range(2):
        seen, _ = temperatures(tmp_path, TemperatureSchedule(), module, max_steps=2)
        assert [rows[0] for rows in seen] == pytest.approx([0.8, 0.6])
    assert module.sampler.temperature == 0.8


# --- what is refused -----------------------------------------------------------------------------------------------


def test_steps_and_factors_out_of_range_are_refused():
    for options in ({"start_step": -1}, {"final": 0.0}, {"final": -0.5}, {"final": 1.5}):
        with pytest.raises(ValueError, match=r"^TemperatureSchedule: start_step is .* and final .*; write a step of 0 "):
            TemperatureSchedule(**options)


def test_a_run_without_an_end_after_the_start_step_is_refused(tmp_path):
    for start, steps in ((3, 3), (4, 3)):  # an endless run: on the command line below
        trainer = quiet_trainer(tmp_path, max_steps=steps, callbacks=[TemperatureSchedule(start_step=start)])
        with pytest.raises(ValueError, match=f"falls from step {start} to trainer.max_steps, which is {steps}; write"):
            trainer.fit(grpo(), tiny_data())


def test_a_run_without_an_end_gets_one_line_on_the_command_line(tmp_path):
    config = write_yaml(tmp_path / "grpo.yaml", tiny_config(tmp_path, algorithm="GRPO", max_steps=-1, max_epochs=1))
    message = refusal("fit", "--config", config, "--trainer.callbacks+=TemperatureSchedule")
    assert message.startswith("lit-rl: TemperatureSchedule falls from step 0 to trainer.max_steps, which is -1; write")


def test_an_algorithm_that_does_not_sample_is_refused(tmp_path):
    trainer = quiet_trainer(tmp_path, max_steps=1, callbacks=[TemperatureSchedule()])
    with pytest.raises(ValueError, match="TemperatureSchedule needs an algorithm that samples; SFT does not"):
        trainer.fit(SFT(tiny_spec(), evaluation=Evaluation(max_new_tokens=4)), tiny_data())


# --- resuming ------------------------------------------------------------------------------------------------------


def resumable():
    return grpo([1.0, 0.8], epochs=2, minibatches=2, group_size=4, kl_coef=0.1)


def test_stop_and_resume_with_a_falling_temperature_changes_no_bit(tmp_path):
    stop = 5  # inside a rollout

    def callback():
        return TemperatureSchedule(start_step=2, final=0.3)

    whole = run(resumable, tmp_path, 16, [callback()])
    saver = ModelCheckpoint(tmp_path, "at", every_n_train_steps=stop, save_on_train_epoch_end=False)
    with pytest.raises(Stopped):
        run(resumable, tmp_path, 16, [callback(), saver, Stopper(stop)])
    resumed = run(resumable, tmp_path, 16, [callback()], ckpt_path=tmp_path / "at.ckpt")
    assert_same_end(whole, resumed, stop)
    # Rollouts begin at steps 0, 4 and 8 of 12; means of the two temperatures: 0.9 times 1, 1 - 0.7 * 2 / 10, 1 - 0.7 * 6 / 10.
    logged = [whole[3][step]["sampling/temperature"] for step in (3, 4, 8)]
    assert logged == pytest.approx([0.9, 0.774, 0.522])
