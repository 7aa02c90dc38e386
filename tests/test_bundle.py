"""Bundle and Draft: opened, damaged, and made step by step."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal

import pytest

from edgekit.bundle import Bundle, Draft, Manifest
from edgekit.errors import EdgekitError
from edgekit.interrupt import _note


@pytest.fixture
def copied(cpu_bundle, tmp_path):
    shutil.copytree(cpu_bundle, tmp_path / "bundle")
    return tmp_path / "bundle"


def manifest():
    empty = ("recipe", "model", "data", "targets", "versions", "environment", "steps")
    given = {"status": "ok", "request": "r", "created": "now", "baseline": [], "rows": []}
    return Manifest(**{name: {} for name in empty}, **given)


def write(text, log=None):
    def run(room):
        if log is not None:
            log.append(text)
        room.write_text(text)
        return {"length": len(text)}

    return run


def test_what_is_no_bundle_is_refused(tmp_path):
    with pytest.raises(EdgekitError, match="is not a bundle"):
        Bundle.open(tmp_path)


def test_a_newer_or_broken_manifest_is_refused(copied):
    path = copied / "manifest.json"
    content = json.loads(path.read_text())
    for broken in (json.dumps({**content, "schema_version": 2}), path.read_text()[:-20]):
        path.write_text(broken)
        with pytest.raises(EdgekitError, match=r"manifest\.json is malformed"):
            Bundle.open(copied)


@pytest.mark.parametrize("name", ["cpu/model.onnx", "scales.json", "reference.npz"])
def test_every_file_that_was_built_is_watched(copied, name):
    assert Bundle.open(copied).damaged() == []
    content = bytearray((copied / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copied / name).write_bytes(content)
    assert Bundle.open(copied).damaged() == [name]
    (copied / name).unlink()
    assert Bundle.open(copied).damaged() == [name]


def test_weights_beside_a_file_are_watched_too(tmp_path):
    def run(room):
        room.write_text("graph")
        room.with_name("m.onnx.data").write_text("weights")
        return {}

    with Draft(tmp_path / "b") as draft:
        draft.step("make", {}, run, "cpu/m.onnx")
        made = draft.finish(manifest(), {"make"})
    (made.path / "cpu" / "m.onnx.data").write_text("other")
    assert made.damaged() == ["cpu/m.onnx.data"]


def test_a_row_read_back_is_kept_on_disk(copied):
    bundle = Bundle.open(copied)
    (row,) = bundle.manifest.rows
    failed = row.model_copy(update={"ok": False, "status": "drift: much"})
    assert bundle.with_row(failed).manifest.status == "failed"
    again = Bundle.open(copied)
    assert again.manifest.rows == [failed]
    assert again.with_row(row).manifest.status == "ok"


def test_a_step_is_done_once_for_equal_inputs(tmp_path):
    log = []
    with Draft(tmp_path / "b") as draft:
        first = draft.step("one", {"x": 1}, write("text", log), "folder/one.txt")
        assert draft.step("one", {"x": 1}, write("text", log), "folder/one.txt") == first
        draft.step("one", {"x": 2}, write("other", log), "folder/one.txt")
    assert log == ["text", "other"]


def interrupt(draft, error):
    with draft:
        draft.step("one", {}, write("text"), "one.txt")
        raise error


@pytest.mark.parametrize(
    ("error", "kept"),
    [(KeyboardInterrupt(), True), (RuntimeError("a bug"), True), (EdgekitError("no"), False)],
)
def test_work_survives_an_interruption_but_not_bad_input(tmp_path, error, kept):
    out = tmp_path / "new" / "b"
    with pytest.raises(type(error)):
        interrupt(Draft(out), error)
    assert (tmp_path / "new" / ".b.building" / "one.txt").exists() == kept
    assert (tmp_path / "new").exists() == kept
    log = []
    with Draft(out) as draft:
        draft.step("one", {}, write("text", log), "one.txt")
    assert (log == []) == kept


def test_a_file_damaged_since_its_step_is_made_again(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        interrupt(Draft(tmp_path / "b"), KeyboardInterrupt())
    (tmp_path / ".b.building" / "one.txt").write_text("half")
    log = []
    with Draft(tmp_path / "b") as draft:
        draft.step("one", {}, write("text", log), "one.txt")
    assert log == ["text"]


def test_what_no_step_of_this_build_wrote_is_left_out(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        interrupt(Draft(tmp_path / "b"), KeyboardInterrupt())
    with Draft(tmp_path / "b") as draft:
        draft.step("two", {}, write("text"), "folder/two.txt")
        made = draft.finish(manifest(), {"two"})
    found = {p.relative_to(made.path).as_posix() for p in made.path.rglob("*") if p.is_file()}
    assert found == {"manifest.json", "folder/two.txt"}
    assert [p.name for p in tmp_path.iterdir()] == ["b"]
    assert set(Bundle.open(made.path).manifest.steps) == {"two"}


def test_an_interrupt_that_python_swallowed_ends_the_next_step(tmp_path, monkeypatch):
    monkeypatch.setattr("edgekit.interrupt._asked", False)
    with Draft(tmp_path / "out") as draft:
        draft.step("first", {}, lambda _: {})
        with contextlib.suppress(KeyboardInterrupt):
            _note(signal.SIGINT, None)
        with pytest.raises(KeyboardInterrupt):
            draft.step("second", {}, lambda _: {})
