"""Kits of streaming models: sequences fed in pieces to the Jetson stand-in."""

import io
import json
import os
import subprocess
import sys

import numpy as np
import onnx
import pytest
from rich.console import Console

from edgekit import single, targets
from edgekit.bundle import Draft, Manifest, Row
from edgekit.converters import on_device
from edgekit.converters.interface import DIMS, STATES
from edgekit.converters.kit.stream import STEPS, pieces
from edgekit.table import bundle_table

pytest.importorskip("tensorrt_rtx")

# Twice the sum of all x so far: once by a state of fixed shape, once by a cache that grows.
RUNNING_SUM = """
<ir_version: 8, opset_import: ["" : 17]>
sums (float[batch, length, 4] x, float[batch, 1, 4] sum, float[batch, past, 4] seen)
  => (float[batch, length, 4] y, float[batch, 1, 4] sum_next, float[batch, total, 4] seen_next)
<int64[1] one = {1}, int64[1] last = {-1}, int64[1] end = {1000000}>
{
    axis = Squeeze(one)
    here = CumSum(x, axis)
    carried = Add(here, sum)
    sum_next = Slice(carried, last, end, one)
    seen_next = Concat<axis = 1>(seen, x)
    all = CumSum(seen_next, axis)
    before = Shape<start = 1, end = 2>(seen)
    cached = Slice(all, before, end, one)
    y = Add(carried, cached)
}
"""
RANGES = {"batch": [1, 1, 2], "length": [1, 6, 8], "past": [0, 6, 40]}


def make(text, folder, ranges=RANGES):
    """A kit of a model with the states ``sum`` and ``seen``, and the reference of a whole pass."""
    model = onnx.parser.parse_model(text)
    states = [["sum", "sum_next"], ["seen", "seen_next"]]
    onnx.helper.set_model_props(model, {DIMS: json.dumps(ranges), STATES: json.dumps(states)})
    onnx.save(model, folder / "sums.onnx")
    target = targets.load("jetson-orin-nano-super")
    made = on_device.convert(folder / "sums.onnx", folder / "on_device", target)
    x = np.random.default_rng(0).standard_normal((3, 29, 4)).astype(np.float32)
    np.savez(made.path / "reference.npz", **{"input/x": x, "output/y": 2 * x.cumsum(1)})
    return made


@pytest.fixture
def kit(tmp_path):
    return make(RUNNING_SUM, tmp_path)


@pytest.mark.parametrize("length", [1, 2, STEPS, 29])
def test_pieces_cover_a_sequence_with_steps_inside(length):
    found = list(pieces(length, 8))
    assert [start for start, _ in found] == [0, *(end for _, end in found[:-1])]
    assert found[-1][1] == length
    assert max(end - start for start, end in found) <= 8
    if length > 2 * STEPS:
        sizes = [end - start for start, end in found]
        assert 1 in sizes[1:-1]
        assert sizes[0] > 1
        assert sizes[-1] > 1


def test_a_stream_is_checked_in_pieces_and_timed_by_kind_of_call(kit, jetson, run_kit):
    assert "--minShapes=x:1x1x4,sum:1x1x4,seen:1x0x4 " in kit.details["trtexec"]
    assert "--optShapes=x:1x6x4,sum:1x1x4,seen:1x6x4 " in kit.details["trtexec"]
    done = run_kit(kit.path, "--iterations", "3", "--warmup", "1", **jetson)
    assert done.returncode == 0, done.stderr
    kits = {"jetson-orin-nano-super": kit.details["model_sha256"]}
    result = on_device.read_result(kit.path / "result.json", kits)
    assert list(result.drift) == ["y"]
    assert result.drift["y"]["max_abs"] < 1e-4
    assert list(result.timing) == ["prefill", "step"]
    assert {figures["batch"] for figures in result.timing.values()} == {1}
    assert result.build["dims"] == RANGES
    profile = json.loads((kit.path / "engine.plan").read_bytes())["profile"]
    assert profile["x"] == [[1, 1, 4], [1, 6, 4], [2, 8, 4]]
    assert profile["seen"] == [[1, 0, 4], [1, 6, 4], [2, 40, 4]]


def test_a_bundle_gets_a_latency_for_each_kind_of_call(kit, jetson, run_kit, tmp_path):
    assert run_kit(kit.path, "--iterations", "3", "--profile", **jetson).returncode == 0
    about = {"sha256": None, "size": None, "status": "built", "ok": True}
    row = Row(
        target="jetson-orin-nano-super",
        format="on_device",
        path="kit",
        details=dict(kit.details),
        **about,
    )
    empty = ("data", "targets", "versions", "environment", "steps")
    told = {"status": "ok", "request": "r", "created": "now", "baseline": [], "rows": [row]}
    told |= {"recipe": {"model": "sums", "precision": "fp32"}, "model": {"top1": None}}
    with Draft(tmp_path / "bundle") as draft:
        draft.finish(Manifest(**{name: {} for name in empty}, **told), set())
    bundle = single.read_back(tmp_path / "bundle", kit.path / "result.json")
    (row,) = bundle.manifest.rows
    assert row.status == "verified on the device"
    assert [entry["phase"] for entry in row.latency] == ["prefill", "step"]
    assert all(entry["latency_ms"]["p50"] > 0 for entry in row.latency)
    assert all(entry["device_ms"]["compute"] > 0 for entry in row.latency)
    assert all(set(entry["energy"]) >= {"meter"} for entry in row.latency)
    first, second = row.latency
    assert first["cold"]["load_ms"] > 0
    assert "cold" not in second
    assert sum(share["share"] for share in first["profile"]["by_class"]) == pytest.approx(1)
    table = io.StringIO()
    Console(file=table, width=300).print(bundle_table(bundle))
    assert "prefill: " in table.getvalue()
    assert "ms of it the GPU computes" in table.getvalue()


def test_an_engine_that_forgets_between_calls_fails(tmp_path, jetson, run_kit):
    forgetful = RUNNING_SUM.replace("sum_next = Slice(carried", "sum_next = Slice(here")
    kit = make(forgetful, tmp_path)
    done = run_kit(kit.path, "--iterations", "1", **jetson)
    assert done.returncode == 1, done.stderr
    assert json.loads((kit.path / "result.json").read_text())["status"] == "failed"


def test_a_reference_longer_than_the_caches_is_named(kit, jetson, run_kit):
    x = np.ones((1, 60, 4), np.float32)
    np.savez(kit.path / "reference.npz", **{"input/x": x, "output/y": 2 * x.cumsum(1)})
    done = run_kit(kit.path, **jetson)
    assert done.returncode == 2
    assert "Input 'seen' has size" in done.stderr
    assert "on axis 1; the engine takes 0 to 40." in done.stderr


def run_code(code, plan, environment):
    done = subprocess.run(
        [sys.executable, "-c", code, str(plan)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done


SIZES = """
import sys
from pathlib import Path
from edgekit.targets.runtimes import tensorrt

with tensorrt.open(Path(sys.argv[1])) as engine:
    sys.stdout.write(" ".join(dim.name for dim in engine.dims))
"""
RUNTIME = """
import ctypes, sys
from pathlib import Path
import numpy as np
from edgekit.errors import EdgekitError
from edgekit.targets.runtimes import tensorrt

def refused(**inputs):
    try:
        engine.infer(inputs)
    except EdgekitError as error:
        return error.what
    sys.exit("taken: " + str(inputs))

driver = ctypes.CDLL("libcuda.so.1")
allocations = ctypes.c_int.in_dll(driver, "allocations")
with tensorrt.open(Path(sys.argv[1])) as engine:
    (x,) = engine.inputs
    assert [str(size) for size in x.shape] == ["1..1..2", "1..6..8", "4"], x
    assert [size.name for size in x.dims] == ["batch", "length"]
    assert [size.name for size in engine.dims] == ["batch", "length", "past"]
    total, seen = engine.states
    assert (total.name, seen.name, total.shape[1]) == ("sum", "seen", 1)
    assert [str(size) for size in seen.shape[:2]] == ["1..1..2", "0..6..40"]
    for batch in (1, 2, 3):
        states = {state.name: state.start(batch) for state in engine.states}
        y = engine.infer({"x": np.ones((batch, 8, 4), np.float32), **states})["y"]
        assert np.array_equal(y, np.broadcast_to(2 * np.arange(1, 9)[:, None], (batch, 8, 4)))
    states = {state.name: state.start(1) for state in engine.states}
    before = allocations.value
    for _ in range(32):
        out = engine.infer({"x": np.ones((1, 1, 4), np.float32), **states})
        states = {"sum": out["sum_next"], "seen": out["seen_next"]}
    assert out["y"][0, 0, 0] == 64 and out["seen_next"].shape == (1, 32, 4)
    assert allocations.value - before < 16, "two tensors grew in each of 32 steps"
    one = np.ones((1, 1, 4), np.float32)
    sys.stdout.write("\\n".join([
        refused(x=np.ones((1, 9, 4), np.float32), **states),
        refused(x=np.ones((1, 0, 4), np.float32), **states),
        refused(x=one, sum=states["sum"], seen=np.ones((1, 41, 4), np.float32)),
        refused(x=one, sum=np.ones((1, 2, 4), np.float32), seen=states["seen"]),
        refused(x=one, sum=np.ones((1, 4), np.float32), seen=states["seen"]),
        refused(x=one, sum=np.ones((2, 1, 4), np.float32), seen=states["seen"]),
        refused(x=one, seen=states["seen"]),
    ]))
"""


def test_a_cache_that_is_usually_full_is_a_window(tmp_path, jetson, run_kit):
    kit = make(RUNNING_SUM, tmp_path, {**RANGES, "past": [0, 40, 40]})
    assert run_kit(kit.path, "--iterations", "1", **jetson).returncode == 0
    done = run_code(SIZES, kit.path / "engine.plan", jetson)
    assert done.stdout.split() == ["batch", "length", "window_40"]


def test_the_runtime_takes_any_sizes_in_range_and_names_others(kit, jetson, run_kit):
    assert run_kit(kit.path, "--iterations", "1", **jetson).returncode == 0
    done = run_code(RUNTIME, kit.path / "engine.plan", jetson)
    assert done.stdout.splitlines() == [
        f"{kit.path}/engine.plan: {told}"
        for told in (
            "Input 'x' has size 9 on axis 1; the engine takes 1 to 8.",
            "Input 'x' has size 0 on axis 1; the engine takes 1 to 8.",
            "Input 'seen' has size 41 on axis 1; the engine takes 0 to 40.",
            "Input 'sum' has size 2 on axis 1; the engine takes 1.",
            "Input 'sum' has shape (1, 4); the engine takes 3 axes.",
            "The inputs do not have equally many samples, at least one: x 1, sum 2, seen 1.",
            "Input 'sum' is missing.",
        )
    ]
