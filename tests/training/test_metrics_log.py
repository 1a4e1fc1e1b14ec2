"""The CSV log of a resumed run: rows of the first part stay, rows after the checkpoint go."""

from lit_rl.training.metrics_log import MetricsLog


def test_a_log_goes_on_in_its_file_after_the_rows_of_the_checkpoint(tmp_path):
    first = MetricsLog(tmp_path, name="logs")
    first.log_metrics({"loss": 3.0}, 0)
    assert first.rows() == 1
    first.log_metrics({"loss": 2.0, "val/accuracy": 0.5}, 1)
    first.save()
    second = MetricsLog(tmp_path, name="logs", version=0)
    second.cut(1)
    second.log_metrics({"loss": 1.0, "other": 7.0}, 1)
    second.save()
    assert (tmp_path / "logs/version_0/metrics.csv").read_text().split() == [
        "loss,other,step,val/accuracy",
        "3.0,,0,",
        "1.0,7.0,1,",
    ]


def test_a_file_of_which_only_half_the_header_was_written_begins_anew(tmp_path):
    log = MetricsLog(tmp_path, name="logs")
    folder = tmp_path / "logs" / "version_0"
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text("loss,st")
    log = MetricsLog(tmp_path, name="logs", version=0)
    log.log_metrics({"loss": 1.0}, 0)
    log.save()
    assert (folder / "metrics.csv").read_text().split() == ["loss,step", "1.0,0"]
