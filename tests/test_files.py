"""Files and folders take their names whole, or the old ones stay."""

from pathlib import Path

import pytest

from lit_rl.files import new_folder, write_text


def filled(folder: Path, text: str) -> Path:
    folder.mkdir()
    (folder / "a.txt").write_text(text)
    return folder


def test_a_finished_folder_takes_the_place_of_the_old_one(tmp_path):
    folder = filled(tmp_path / "export", "old")
    with new_folder(folder) as new:
        (new / "b.txt").write_text("new")
    assert [path.name for path in folder.iterdir()] == ["b.txt"]
    assert list(tmp_path.iterdir()) == [folder]


def test_a_folder_that_could_not_be_filled_leaves_the_old_one(tmp_path):
    folder = filled(tmp_path / "export", "old")
    with pytest.raises(OSError, match="full"), new_folder(folder):
        raise OSError("full")
    assert (folder / "a.txt").read_text() == "old"
    assert list(tmp_path.iterdir()) == [folder]


def test_the_old_folder_comes_back_if_the_new_one_cannot_take_its_name(tmp_path):
    folder = filled(tmp_path / "export", "old")
    with pytest.raises(OSError), new_folder(folder) as new:  # noqa: PT011  (the system's own words)
        new.rmdir()
    assert (folder / "a.txt").read_text() == "old"
    assert list(tmp_path.iterdir()) == [folder]


def test_a_text_that_cannot_be_encoded_leaves_the_old_file(tmp_path):
    write_text(tmp_path / "report", "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "report", "\ud800")
    assert (tmp_path / "report").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["report"]
