"""Files are written whole or not at all, for everybody who may read the folder."""

from pathlib import Path

import pytest

from utils.files import sha256, shown, write_atomically
from utils.paths import ROOT


def test_what_is_written_is_whole_and_readable_as_any_other_file(tmp_path):
    path, other = tmp_path / "new" / "file.txt", tmp_path / "other.txt"
    write_atomically(path, "first")
    write_atomically(path, "zweite Fassung, größer".encode())
    other.write_text("")
    assert path.read_text(encoding="utf-8") == "zweite Fassung, größer"
    assert path.stat().st_mode == other.stat().st_mode
    assert [entry.name for entry in path.parent.iterdir()] == ["file.txt"]


def test_a_failure_leaves_the_old_file_and_nothing_beside_it(tmp_path, monkeypatch):
    path = tmp_path / "file.txt"
    write_atomically(path, "old")

    def full(self, target):
        raise OSError("no space left")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="no space"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.txt"]


def test_names_for_people_and_checksums(tmp_path):
    assert shown(ROOT / "utils" / "files.py") == "utils/files.py"
    assert shown(tmp_path) == str(tmp_path)
    (tmp_path / "empty").touch()
    assert sha256(tmp_path / "empty").startswith("e3b0c44298fc1c14")
