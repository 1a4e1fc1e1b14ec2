"""Runs that SIGKILL ends in a named phase and that are resumed: they leave what an undisturbed run leaves, to the last bit.

``python tests/kill_runs.py`` does the same for all algorithms and for random moments.
"""

import pytest
from kill_runs import config, differences, end, finish, kill


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    finish(config(folder, "GRPO"), folder.with_suffix(".log"))
    return end(folder)


@pytest.mark.parametrize(
    ("phase", "number"),
    [
        # The file of step 2 is half written, in the place of a temporary file; each step writes two files.
        pytest.param("checkpoint", 3, id="while a checkpoint is written"),
        # It is validated on the resume, and the report is written, though no step is left to take.
        pytest.param("last validation", 1, id="in the validation after the last step"),
        pytest.param("export name", 2, id="while an export takes its name", marks=pytest.mark.long),
        pytest.param("rollout", 2, id="at the end of a rollout", marks=pytest.mark.long),
    ],
)
def test_a_killed_run_goes_on_to_the_same_end(phase, number, whole, tmp_path):
    folder, log = tmp_path / "run", tmp_path / "run.log"
    file = config(folder, "GRPO")
    assert kill(file, log, phase, number, seconds=0.0)
    finish(file, log)
    assert differences(whole, end(folder)) == []
