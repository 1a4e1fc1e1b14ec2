"""Curves of a run from its logs, and the picture of them."""

from PIL import Image

from lit_rl.reports.curves import draw_curves, read_curve


def test_a_curve_takes_the_later_value_of_a_step_that_was_logged_twice(tmp_path):
    for version, rows in [(0, "0,0.1\n1,0.2\n2,0.3\n"), (1, "1,0.5\n")]:
        folder = tmp_path / "logs" / f"version_{version}"
        folder.mkdir(parents=True)
        (folder / "metrics.csv").write_text("step,reward\n" + rows)
    assert read_curve(tmp_path) == {"reward": [(0, 0.1), (1, 0.5), (2, 0.3)]}


def test_a_value_that_was_not_logged_at_a_step_is_left_out(tmp_path):
    folder = tmp_path / "logs" / "version_0"
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text("epoch,reward,step,val/accuracy\n0,0.1,0,\n0,,1,0.5\n")
    assert read_curve(tmp_path) == {"reward": [(0, 0.1)], "val/accuracy": [(1, 0.5)]}


def test_runs_with_and_without_intervals_stand_side_by_side_in_one_picture(tmp_path):
    accuracy = {"val/accuracy": [(0, 0.2), (4, 0.6)]}
    interval = {"val/accuracy_low": [(0, 0.1), (4, 0.5)], "val/accuracy_high": [(0, 0.3), (4, 0.7)]}
    curves = {"a": accuracy | interval, "b": accuracy, "c": {"reward": [(0, 0.5)]}, "d": {"loss": [(0, 1.0)]}}
    assert draw_curves(curves, tmp_path / "below" / "curve.png")
    with Image.open(tmp_path / "below" / "curve.png") as picture:
        assert picture.size == (3 * 550, 440)  # three of 5 x 4 inches at 110 dots an inch


def test_without_reward_and_accuracy_there_is_no_picture(tmp_path):
    assert not draw_curves({"sft": {"loss": [(0, 1.0)]}}, tmp_path / "curve.png")
    assert not (tmp_path / "curve.png").exists()
