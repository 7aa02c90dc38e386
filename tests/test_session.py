"""Session: prompts and tokens through an artifact with states."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnx.parser
import pytest

from edgekit import Session
from edgekit.errors import EdgekitError
from edgekit.pipeline import load
from edgekit.whole import opened

#: Running sums: a state of fixed shape, and one that grows with what was seen.
SUMS = """
<ir_version: 9, opset_import: ["" : 20]>
sums (float[batch, length] x, float[batch, 1] sum_0, float[batch, past] seen_0)
  => (float[batch, length] y, float[batch, 1] sum_0_next, float[batch, all] seen_0_next) {
  axis = Constant <value_int = 1> ()
  start = Constant <value_ints = [-1]> ()
  end = Constant <value_ints = [9223372036854775807]> ()
  axes = Constant <value_ints = [1]> ()
  within = CumSum (x, axis)
  y = Add (within, sum_0)
  sum_0_next = Slice (y, start, end, axes)
  seen_0_next = Concat <axis = 1> (seen_0, x)
}
"""
ROOM = 12
VALUES = np.arange(20, dtype=np.float32).reshape(2, 10)


@pytest.fixture
def sums(tmp_path):
    model = onnx.parser.parse_model(SUMS)
    dims = {"batch": [1, 1, 8], "length": [1, 3, 4], "past": [0, 4, ROOM]}
    model.metadata_props.add(key="edgekit.dims", value=json.dumps(dims))
    onnx.save(model, tmp_path / "sums.onnx")
    return tmp_path / "sums.onnx"


def test_a_prompt_and_steps_equal_one_pass(sums):
    with Session(sums) as session:
        prompt = session.prefill(VALUES[:, :7])
        steps = [session.step(VALUES[:, i]) for i in range(7, 10)]
        assert session.seen == 10
    whole = VALUES.cumsum(1)
    np.testing.assert_array_equal(prompt, whole[:, 6])
    np.testing.assert_array_equal(np.stack(steps, 1), whole[:, 7:])


def test_a_prompt_is_fed_in_pieces_of_the_engine_and_of_the_user(sums):
    with Session(sums) as session, Session(sums, piece=2) as small:
        assert [o["y"].shape[1] for o in session.feed(VALUES)] == [4, 4, 2]
        assert [o["y"].shape[1] for o in small.feed(VALUES)] == [2] * 5
        np.testing.assert_array_equal(session.state["sum_0"], small.state["sum_0"])


def test_reset_forgets(sums):
    with Session(sums) as session:
        first = session.prefill(VALUES)
        session.reset()
        assert session.seen == 0
        np.testing.assert_array_equal(session.prefill(VALUES), first)


def test_a_saved_state_goes_on_elsewhere(sums, tmp_path):
    with Session(sums) as one, Session(sums) as two:
        one.prefill(VALUES[:, :6])
        one.save(tmp_path / "state.npz")
        two.load(tmp_path / "state.npz")
        assert two.seen == 6
        np.testing.assert_array_equal(two.step(VALUES[:, 6]), one.step(VALUES[:, 6]))


def test_a_single_sequence_needs_no_batch(sums):
    with Session(sums) as session:
        np.testing.assert_array_equal(session.prefill(VALUES[0, :3]), [3.0])
        np.testing.assert_array_equal(session.step(4), [7.0])


def test_a_step_before_a_prefill_is_refused(sums):
    with Session(sums) as session, pytest.raises(EdgekitError, match="before a prefill"):
        session.step(1)


def test_a_full_cache_is_said(sums):
    with Session(sums) as session:
        session.prefill(VALUES)
        session.prefill(VALUES[:, : ROOM - 10])
        with pytest.raises(EdgekitError, match=f"has seen {ROOM}, and its caches hold {ROOM}"):
            session.step(VALUES[:, 0])


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (np.zeros((2, 0), np.float32), "wrong shape"),
        (np.zeros((2, 3, 1), np.float32), "wrong shape"),
        ({"ids": VALUES}, "takes x, which was not given"),
        (VALUES[:1], "1 sequences were given to a stream of 2"),
    ],
)
def test_a_bad_prompt_is_refused(sums, tokens, message):
    with Session(sums) as session:
        session.prefill(VALUES[:, :2])
        with pytest.raises(EdgekitError, match=message):
            session.prefill(tokens)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sum_0": np.zeros((2, 3), np.float32)}, r"sum_0 does not fit(?s:.*)2x3 float32"),
        ({"sum_0": np.zeros((2, 1), np.float64)}, r"sum_0 does not fit(?s:.*)float64"),
        ({"other": np.zeros(1)}, "holds no state"),
    ],
)
def test_a_state_of_another_model_is_refused(sums, tmp_path, change, message):
    good = {"sum_0": np.zeros((2, 1), np.float32), "seen_0": np.zeros((2, 4), np.float32)}
    np.savez(tmp_path / "state.npz", **{**good, **change, "seen": np.array(4)})
    with Session(sums) as session, pytest.raises(EdgekitError, match=message):
        session.load(tmp_path / "state.npz")


def test_a_file_that_is_no_state_is_refused(sums, tmp_path):
    (tmp_path / "state.npz").write_text("no")
    with Session(sums) as session, pytest.raises(EdgekitError, match="cannot be read as a state"):
        session.load(tmp_path / "state.npz")


def test_an_artifact_without_states_is_no_stream(tmp_path):
    text = '<ir_version: 9, opset_import: ["" : 20]> g (float[1, 2] x) => (float[1, 2] y) {'
    onnx.save(onnx.parser.parse_model(text + "y = Abs (x) }"), tmp_path / "abs.onnx")
    with pytest.raises(EdgekitError, match="--mode stream"):
        Session(tmp_path / "abs.onnx")


#: Running sums of frames (batch, length, 2).
FRAMES = """
<ir_version: 9, opset_import: ["" : 20]>
frames (float[LENGTHS, 2] x, float[BATCH, 1, 2] sum_0) => (float[LENGTHS, 2] y,
  float[BATCH, 1, 2] sum_0_next) {
  axis = Constant <value_int = 1> ()
  start = Constant <value_ints = [-1]> ()
  end = Constant <value_ints = [9223372036854775807]> ()
  axes = Constant <value_ints = [1]> ()
  within = CumSum (x, axis)
  y = Add (within, sum_0)
  sum_0_next = Slice (y, start, end, axes)
}
"""
MOVES = np.arange(40, dtype=np.float32).reshape(2, 10, 2)


def of_frames(path, batch="batch", length="length"):
    text = FRAMES.replace("LENGTHS", f"{batch}, {length}").replace("BATCH", str(batch))
    model = onnx.parser.parse_model(text)
    dims = {"batch": [1, 1, 8], "length": [1, 3, 4]}
    model.metadata_props.add(key="edgekit.dims", value=json.dumps(dims))
    onnx.save(model, path)
    return path


def test_frames_are_taken_many_at_a_time_and_one_by_one(tmp_path):
    with Session(of_frames(tmp_path / "frames.onnx")) as session:
        first = session.prefill(MOVES[:, :7])
        steps = [session.step(MOVES[:, 7]), session.step(MOVES[:, 8:9]), session.step(MOVES[:, 9])]
        assert session.seen == 10
        pieces = [each["y"].shape for each in session.feed(MOVES)]
    whole = MOVES.cumsum(1)
    np.testing.assert_array_equal(first, whole[:, 6])
    np.testing.assert_array_equal(np.stack(steps, 1), whole[:, 7:])
    assert pieces == [(2, 4, 2), (2, 4, 2), (2, 2, 2)]


def test_a_stream_of_frames_may_begin_with_a_step(tmp_path):
    path = of_frames(tmp_path / "frames.onnx")
    with Session(path) as one, Session(path) as both:
        np.testing.assert_array_equal(one.step([1.0, 2.0]), [[1.0, 2.0]])
        np.testing.assert_array_equal(one.step([1.0, 2.0]), [[2.0, 4.0]])
        np.testing.assert_array_equal(both.step(MOVES[:, 0]), MOVES[:, 0])
        assert (one.batch, both.batch, both.seen) == (1, 2, 1)


def test_what_a_session_holds_does_not_grow_with_what_it_has_seen(tmp_path):
    with Session(of_frames(tmp_path / "frames.onnx")) as session:
        session.step(MOVES[:, 0])
        before = {name: value.nbytes for name, value in session.state.items()}
        for _ in range(5):
            session.prefill(MOVES)
        assert session.seen == 51
        assert {name: value.nbytes for name, value in session.state.items()} == before


@pytest.mark.parametrize(
    ("call", "given", "expected"),
    [
        ("prefill", np.zeros((2, 3, 5), np.float32), r"\(2, 3, 5\); expected \(2, length, 2\)"),
        ("prefill", np.zeros((2, 0, 2), np.float32), r"\(2, 0, 2\); expected \(2, length, 2\)"),
        ("step", np.zeros((2, 5), np.float32), r"\(2, 5\); expected \(2, 1, 2\)"),
        ("step", np.zeros((3, 2), np.float32), r"\(3, 2\); expected \(2, 1, 2\)"),
        ("step", np.zeros(2, np.float32), r"\(2,\); expected \(2, 1, 2\)"),
        ("step", 1.0, r"\(\); expected \(2, 1, 2\)"),
    ],
)
def test_frames_of_another_size_are_refused(tmp_path, call, given, expected):
    with Session(of_frames(tmp_path / "frames.onnx")) as session:
        session.step(MOVES[:, 0])
        with pytest.raises(EdgekitError, match=expected):
            getattr(session, call)(given)
        np.testing.assert_array_equal(session.state["sum_0"][:, 0], MOVES[:, 0])


def test_calls_have_the_length_that_an_artifact_is_built_for(tmp_path):
    with Session(of_frames(tmp_path / "one.onnx", 2, 1)) as session:
        assert [each["y"].shape[1] for each in session.feed(MOVES[:, :3])] == [1, 1, 1]
        np.testing.assert_array_equal(session.step(MOVES[:, 3]), MOVES[:, :4].sum(1))
    with Session(of_frames(tmp_path / "four.onnx", 2, 4)) as session:
        np.testing.assert_array_equal(session.prefill(MOVES[:, :8]), MOVES[:, :8].sum(1))
        for call in (lambda: session.prefill(MOVES[:, :6]), lambda: session.step(MOVES[:, 8])):
            with pytest.raises(EdgekitError, match="built for calls of 4"):
                call()


def test_a_runtime_names_the_state_that_does_not_fit(tmp_path):
    with load("onnxruntime", of_frames(tmp_path / "frames.onnx")) as runtime:
        wrong = {"x": MOVES, "sum_0": np.zeros((2, 1, 3), np.float32)}
        with pytest.raises(EdgekitError, match=r"sum_0(?s:.*)3(?s:.*)2"):
            runtime.infer(wrong)


@pytest.mark.parametrize("length", [1, 2, 5, 6, 10])
def test_whole_sequences_are_streamed_when_checked(sums, length):
    with opened("onnxruntime", sums) as session:
        found = session.infer({"x": VALUES[:, :length]})
        again = session.infer({"x": VALUES[:, :length]})
    np.testing.assert_array_equal(found["y"], VALUES[:, :length].cumsum(1))
    np.testing.assert_array_equal(again["y"], found["y"])
