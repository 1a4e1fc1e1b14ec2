"""Files and folders take their names whole, or the old ones stay; what lit-rl has not written is never replaced."""

import os
import subprocess
import time
from pathlib import Path

import pytest

from lit_rl.files import MARKER, new_folder, write_text


def filled(folder: Path, text: str) -> Path:
    """A folder that lit-rl has written."""
    with new_folder(folder) as new:
        (new / "a.txt").write_text(text)
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def dead_process() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_a_finished_folder_takes_the_place_of_the_old_one(tmp_path):
    folder = filled(tmp_path / "export", "old")
    with new_folder(folder) as new:
        (new / "b.txt").write_text("new")
    assert names(folder) == ["b.txt", MARKER]
    assert names(tmp_path) == ["export"]


def test_a_folder_that_could_not_be_filled_leaves_the_old_one(tmp_path):
    folder = filled(tmp_path / "export", "old")
    with pytest.raises(OSError, match="full"), new_folder(folder):
        raise OSError("full")
    assert (folder / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["export"]


def test_the_old_folder_comes_back_if_the_new_one_cannot_take_its_name(tmp_path):
    folder = filled(tmp_path / "export", "old")
    with pytest.raises(OSError), new_folder(folder) as new:  # noqa: PT011  (the system's own words)
        new.rename(tmp_path / "gone")
    assert (folder / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["export", "gone"]


def test_a_folder_that_another_program_filled_is_not_replaced(tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.txt").write_text("ten years")
    with pytest.raises(ValueError, match="lit-rl has not written it"), new_folder(tmp_path / "work"):
        pass
    assert (tmp_path / "work" / "thesis.txt").read_text() == "ten years"
    assert names(tmp_path) == ["work"]


def test_a_folder_that_another_program_fills_meanwhile_is_not_replaced(tmp_path):
    def written_to_meanwhile():
        with new_folder(tmp_path / "work"):
            (tmp_path / "work").mkdir()
            (tmp_path / "work" / "thesis.txt").write_text("ten years")

    with pytest.raises(ValueError, match="lit-rl has not written it"):
        written_to_meanwhile()
    assert names(tmp_path / "work") == ["thesis.txt"]


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "export").mkdir()
    assert names(filled(tmp_path / "export", "new")) == ["a.txt", MARKER]


def test_a_folder_to_keep_stays_whoever_wrote_it(tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "a.txt").write_text("old")
    with new_folder(tmp_path / "cache", keep_existing=True) as new:
        (new / "a.txt").write_text("new")
    assert (tmp_path / "cache" / "a.txt").read_text() == "old"


def test_a_link_is_followed(tmp_path):
    place = filled(tmp_path / "disk", "old")
    (tmp_path / "export").symlink_to(place)
    filled(tmp_path / "export", "new")
    assert (tmp_path / "export").is_symlink()
    assert (place / "a.txt").read_text() == "new"
    assert names(tmp_path) == ["disk", "export"]


def test_leftovers_of_a_dead_process_are_removed(tmp_path):
    number = dead_process()
    for name in (f"export.new-{number}", f"export.old-{number}", f"export.new-{os.uname().nodename}-{number}"):
        (tmp_path / name).mkdir()
    filled(tmp_path / "export", "old")
    (tmp_path / f"report.new-{number}").write_text("half")
    write_text(tmp_path / "report", "whole")
    assert names(tmp_path) == ["export", "report"]


def test_files_of_a_live_process_stay(tmp_path):
    name = f"export.new-{os.getppid()}"
    (tmp_path / name).mkdir()
    filled(tmp_path / "export", "old")
    assert names(tmp_path) == ["export", name]


def test_files_of_another_host_stay_for_a_day(tmp_path):
    for name, age in (("export.new-node7-12", 3600), ("export.new-node8-12", 25 * 3600)):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    filled(tmp_path / "export", "old")
    assert names(tmp_path) == ["export", "export.new-node7-12"]


def test_a_folder_that_lost_its_name_in_a_crash_gets_it_back(tmp_path):
    filled(tmp_path / "export", "old").rename(tmp_path / f"export.old-{dead_process()}")
    with pytest.raises(OSError, match="full"), new_folder(tmp_path / "export"):
        raise OSError("full")
    assert (tmp_path / "export" / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["export"]


def test_a_text_that_cannot_be_encoded_leaves_the_old_file(tmp_path):
    write_text(tmp_path / "report", "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "report", "\ud800")
    assert (tmp_path / "report").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["report"]
