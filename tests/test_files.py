"""Files: complete or absent, and known by their contents."""

from __future__ import annotations

import errno
import os

import pytest

from edgekit import files
from edgekit.errors import EdgekitError


def test_a_written_file_takes_its_neighbours_along(tmp_path):
    with files.atomic(tmp_path / "a" / "m.onnx") as room:
        room.write_text("graph")
        room.with_name("m.onnx.data").write_text("weights")
        assert not (tmp_path / "a" / "m.onnx").exists()
    assert {p.name for p in (tmp_path / "a").iterdir()} == {"m.onnx", "m.onnx.data"}
    assert files.size(tmp_path / "a" / "m.onnx") == len("graph") + len("weights")


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_nothing_and_keeps_the_old(tmp_path, error):
    (tmp_path / "old").write_text("old")

    def spoil(path):
        with files.atomic(path) as room:
            room.write_text("half")
            raise error

    for path in (tmp_path / "old", tmp_path / "b" / "c" / "new"):
        with pytest.raises(error):
            spoil(path)
    assert [p.name for p in tmp_path.iterdir()] == ["old"]
    assert (tmp_path / "old").read_text() == "old"


def test_a_folder_replaces_a_folder(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "stale").touch()
    with files.atomic(tmp_path / "x") as room:
        room.mkdir()
        (room / "fresh").touch()
    assert [p.name for p in (tmp_path / "x").iterdir()] == ["fresh"]


def fail(path, number):
    with files.atomic(path):
        raise OSError(number, os.strerror(number))


def test_a_full_disk_is_said_and_other_errors_are_not_hidden(tmp_path):
    with pytest.raises(files.NoSpace, match="no space left to write") as caught:
        fail(tmp_path / "a" / "x", errno.ENOSPC)
    assert "MB are free" in caught.value.why
    assert caught.value.exit_code == 2
    with pytest.raises(EdgekitError, match="cannot be written"):
        fail(tmp_path / "a" / "x", errno.EACCES)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(EdgekitError, match="file/x cannot be made"):
        files.make_folder(tmp_path / "file" / "x")


def test_only_empty_folders_are_removed(tmp_path):
    made = files.make_folder(tmp_path / "a" / "b" / "c")
    assert made == [tmp_path / "a" / "b" / "c", tmp_path / "a" / "b", tmp_path / "a"]
    (tmp_path / "a" / "theirs").touch()
    files.remove_empty(made)
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["theirs"]


def test_fingerprints_follow_contents_names_and_dates(tmp_path):
    folder = tmp_path / "f"
    folder.mkdir()
    (folder / "a").write_text("1")
    first, whole = files.fingerprint(folder), files.sha256(folder)
    assert files.fingerprint(folder) == first
    os.utime(folder / "a", (0, 0))
    assert files.fingerprint(folder) != first
    assert files.sha256(folder) == whole
    (folder / "a").rename(folder / "b")
    assert files.sha256(folder) != whole
    with pytest.raises(EdgekitError, match="nowhere does not exist"):
        files.fingerprint(tmp_path / "nowhere")


def test_digest_ignores_the_order_of_keys_alone():
    assert files.digest({"a": 1, "b": [1, 2]}) == files.digest({"b": [1, 2], "a": 1})
    assert files.digest({"b": [1, 2]}) != files.digest({"b": [2, 1]})
