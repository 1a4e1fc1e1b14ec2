"""The MLflow overlay writes a run's options and figures into a store of files, from where MLflow reads them."""

from tiny_runs import lit_rl, tiny_config, write_yaml


def test_a_run_is_in_a_file_store(tmp_path, monkeypatch):
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    config = write_yaml(tmp_path / "run.yaml", tiny_config(tmp_path, "GRPO", log_every_n_steps=1))
    store = ["--trainer.logger.init_args.save_dir", tmp_path / "store"]
    lit_rl("fit", "--config", config, "--config", "logger/mlflow", *store)

    client = MlflowClient(str(tmp_path / "store"))
    experiment = client.get_experiment_by_name("lit-rl")
    (run,) = client.search_runs([experiment.experiment_id])
    assert [entry.step for entry in client.get_metric_history(run.info.run_id, "reward")] == [0, 1]
    assert {"loss", "entropy", "rewards/correct/mean", "val/accuracy"} <= set(run.data.metrics)
    assert run.info.status == "FINISHED"
