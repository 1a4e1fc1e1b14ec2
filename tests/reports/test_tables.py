"""The table of next-token accuracy by entropy band."""

from lit_rl.reports.tables import band_table


def test_the_table_has_a_line_for_each_run_and_kind_of_prediction():
    names = {
        f"test/{kind}{band}{side}"
        for kind in ("accuracy", "ntp_accuracy")
        for band in ("", "_easy", "_medium", "_hard")
        for side in ("", "_low", "_high")
    }
    table = band_table({"before": dict.fromkeys(names, 0.5), "training": {"reward": 1.0}}).splitlines()
    assert table[0] == "| run | prediction | easy (> 0.5 nats) | medium (> 1.0 nats) | hard (> 1.5 nats) | all |"
    cell = "50.0 (50.0 to 50.0)"
    assert table[2:] == [
        f"| before | {kind} | {cell} | {cell} | {cell} | {cell} |" for kind in ("next token at once", "after reasoning")
    ]


def test_a_band_without_positions_is_an_empty_cell():
    values = {"val/accuracy_easy": 0.25, "val/accuracy_easy_low": 0.2, "val/accuracy_easy_high": 0.3}
    assert band_table({"run": values}, "val").splitlines()[2:] == ["| run | after reasoning | 25.0 (20.0 to 30.0) |  |  |  |"]


def test_without_bands_there_is_no_table():
    assert band_table({"run": {"val/accuracy": 0.5}}) == ""
