"""Lock of a folder: it keeps a second process out, and ends with the process that has it."""

import os
import signal
import subprocess
import sys

import pytest
from tiny_runs import refusal, tiny_config, write_yaml

from lit_rl.cli.lock import locked

HOLDER = """
import sys, time
from pathlib import Path
from lit_rl.cli.lock import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that has the lock of ``tmp_path / "run"``."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_fit_in_a_folder_is_refused_with_the_number_of_the_first(holder, tmp_path):
    config = write_yaml(tmp_path / "sft.yaml", tiny_config(tmp_path / "run"))
    message = refusal("fit", "--config", config)
    assert f"run is in use by process {holder.pid} on " in message
    assert message.endswith("; wait for its end, or choose another folder.")


def test_a_second_pipeline_in_a_folder_is_refused(holder, tmp_path):
    stages = {"a": {"run": "fit", "config": write_yaml(tmp_path / "sft.yaml", tiny_config(tmp_path))}}
    file = write_yaml(tmp_path / "p.yaml", {"folder": str(tmp_path / "run"), "stages": stages})
    assert f"run is in use by process {holder.pid}" in refusal("pipeline", file)


def test_a_killed_process_leaves_no_lock(holder, tmp_path):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert (tmp_path / "run" / ".lock").exists()
    with locked(tmp_path / "run"):
        assert f"process {os.getpid()} on" in (tmp_path / "run" / ".lock").read_text()


def test_nothing_is_left_of_a_lock(tmp_path):
    with locked(tmp_path / "new" / "run"):
        assert (tmp_path / "new" / "run" / ".lock").exists()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_was_filled_stays(tmp_path):
    with locked(tmp_path / "run"):
        (tmp_path / "run" / "file").write_text("x")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["file"]
