"""``edgekit bench`` from end to end, on real artifacts."""

from __future__ import annotations

import csv
import io
import itertools
import json
import subprocess
import sys

import pytest

import edgekit as package
from edgekit.errors import EdgekitError
from edgekit.latency import Plan
from edgekit.latency.benchmark import threads_for
from edgekit.latency.plan import Limits
from edgekit.latency.reports import KEY
from edgekit.latency.subjects import Candidate

QUICK = ("--warmup", "0", "--iterations", "10", "--seconds", "0.05")


@pytest.fixture(scope="module")
def dynamic(tmp_path_factory, edgekit, digits_model):
    """A small ViT in fp32 that takes any number of samples."""
    out = tmp_path_factory.mktemp("dynamic") / "model.onnx"
    flags = ("--random-calibration", "--samples", "8", "--batch", "dynamic", "-t", "cpu")
    made = edgekit("convert", f"timm/{digits_model}", *flags, "-o", out)
    assert made.code == 0, made.err
    return out


def rows_of(result):
    assert result.code == 0, result.err
    return json.loads(result.out)["results"]


def test_a_row_says_all_that_was_measured(edgekit, cpu_bundle):
    result = edgekit("bench", cpu_bundle, *QUICK, "--json")
    (row,) = rows_of(result)
    report = json.loads(result.out)
    assert (report["schema_version"], report["mode"]) == (2, "latency")
    assert {"cpu", "governor", "versions", "load_1min"} <= set(report["environment"])
    assert report["inputs"].endswith("reference.npz")
    assert set(KEY) <= set(row)
    assert (row["status"], row["runtime"], row["threads"]) == ("measured", "onnxruntime", 1)
    assert row["shapes"] == {"x": [1, 1, 32, 32]}
    assert row["cold"]["load_ms"] > 0 < row["cold"]["first_ms"]
    figures = row["latency_ms"]
    assert set(figures) == {"avg", "p50", "p90", "p95", "p99", "min", "max", "std"}
    assert row["figure"]["low"] <= figures["p50"] == row["figure"]["value"] <= row["figure"]["high"]
    assert (row["iterations"], row["warmup"]) == (10, 0)
    assert row["spread"] == pytest.approx(figures["std"] / figures["avg"])
    assert row["device_ms"] is None
    assert row["energy"]["meter"] is not None or row["energy"]["why"]
    assert {"clocks_mhz", "throttled", "other_load"} <= set(row["watch"])
    assert isinstance(row["doubts"], list)


def test_a_person_sees_a_table(edgekit, cpu_bundle):
    result = edgekit("bench", cpu_bundle, *QUICK)
    assert result.code == 0, result.err
    for text in ("cpu/model.onnx", "p50 [95%]", "load", "first", "samples/s", "peak MB", "On "):
        assert text in result.out


def test_batches_are_swept(edgekit, dynamic):
    rows = rows_of(edgekit("bench", dynamic, "--batch", "1,4", *QUICK, "--json"))
    assert [(row["batch"], row["shapes"]["x"][0]) for row in rows] == [(1, 1), (4, 4)]
    for row in rows:
        per_call = row["latency_ms"]["avg"] / 1e3
        assert row["throughput"] == pytest.approx(row["batch"] / per_call)


def test_shapes_are_swept(edgekit, dynamic):
    flags = ("--shape", "x:2x1x32x32", "--shape", "x:3x1x32x32")
    rows = rows_of(edgekit("bench", dynamic, *flags, *QUICK, "--json"))
    assert [row["batch"] for row in rows] == [2, 3]


def test_fixed_sizes_refuse_others_before_anything_is_measured(edgekit, cpu_bundle):
    result = edgekit("bench", cpu_bundle, "--batch", "1,4", *QUICK)
    assert result.code == 2
    assert "takes 1 sample a call, not 4" in result.err
    assert "--batch dynamic" in result.err


def test_runtimes_and_the_source_stand_side_by_side(edgekit, cpu_bundle):
    pytest.importorskip("openvino")
    names = ("onnxruntime", "openvino", "torch")
    flags = [flag for name in names for flag in ("--runtime", name)]
    rows = rows_of(edgekit("bench", cpu_bundle, *flags, *QUICK, "--threads", "1", "--json"))
    assert [row["runtime"] for row in rows] == list(names)
    assert [row["artifact"] for row in rows] == ["cpu/model.onnx"] * 2 + ["source"]
    assert rows[2]["cold"]["load_ms"] is None
    assert rows[2]["peak_memory_mb"] is None or rows[2]["peak_memory_mb"] > 0


def test_a_profile_is_by_class_and_by_module(edgekit, cpu_bundle):
    result = edgekit("bench", cpu_bundle, "--profile", *QUICK, "--json")
    (row,) = rows_of(result)
    modules = {group["name"] for group in row["profile"]["by_module"]}
    assert {"blocks.0", "blocks.1"} <= modules
    assert sum(group["share"] for group in row["profile"]["by_class"]) == pytest.approx(1)
    shown = edgekit("bench", cpu_bundle, "--profile", *QUICK).out
    assert "spends its time" in shown
    assert "blocks.1" in shown


def test_single_stream_is_of_varied_samples_and_p90(edgekit, cpu_bundle):
    flags = ("--mode", "single-stream", "--iterations", "30", "--seconds", "0.01")
    (row,) = rows_of(edgekit("bench", cpu_bundle, *flags, "--warmup", "0", "--json"))
    assert row["iterations"] >= 30
    assert row["samples"] > 1
    assert row["figure"]["name"] == "p90_ms"
    assert row["figure"]["value"] == pytest.approx(row["latency_ms"]["p90"])
    assert row["p90_at_most_ms"] >= row["latency_ms"]["p90"]


def test_throughput_grows_the_batch_while_it_pays(edgekit, dynamic):
    flags = ("--mode", "throughput", "--streams", "1,2", "--seconds", "0.05", "--warmup", "1")
    rows = rows_of(edgekit("bench", dynamic, *flags, "--json"))
    for streams in (1, 2):
        batches = [row["batch"] for row in rows if row["streams"] == streams]
        assert batches == [2**n for n in range(len(batches))]
        assert len(batches) >= 2
        rates = [row["throughput"] for row in rows if row["streams"] == streams]
        assert all(b >= 1.03 * a for a, b in itertools.pairwise(rates[:-1]))
    best = [row for row in rows if row["best"]]
    assert len(best) == 1
    assert best[0]["throughput"] == max(row["throughput"] for row in rows)


def test_a_fixed_batch_is_measured_as_it_is_in_throughput_mode(edgekit, cpu_bundle):
    flags = ("--mode", "throughput", "--streams", "1", "--seconds", "0.05")
    (row,) = rows_of(edgekit("bench", cpu_bundle, *flags, "--json"))
    assert (row["batch"], row["streams"], row["best"]) == (1, 1, True)


def test_two_artifacts_are_compared_in_turns(edgekit, cpu_bundle, dynamic):
    flags = ("--paired", dynamic, "--seconds", "0.2", "--threads", "1")
    result = edgekit("bench", cpu_bundle, *flags, "--json")
    (row,) = rows_of(result)
    found = row["paired"]
    assert found["loads"] >= 6
    assert found["confidence"] >= 0.95
    assert found["low"] <= found["ratio"] <= found["high"]
    assert json.loads(result.out)["mode"] == "paired"
    assert "verdict" in edgekit("bench", cpu_bundle, *flags).out


def test_a_report_is_written_in_every_form_and_compared(edgekit, cpu_bundle, tmp_path):
    out, sheet = tmp_path / "r.json", tmp_path / "r.csv"
    result = edgekit("bench", cpu_bundle, *QUICK, "-o", out, "--csv", sheet)
    assert result.code == 0, result.err
    (line,) = csv.DictReader(io.StringIO(sheet.read_text()))
    (row,) = json.loads(out.read_text())["results"]
    assert float(line["p50_ms"]) == row["latency_ms"]["p50"]
    assert (line["artifact"], line["ratio"]) == ("cpu/model.onnx", "")
    compared = edgekit("bench", "--compare", out, out)
    assert compared.code == 0, compared.err
    assert "within noise" in compared.out
    assert json.loads(edgekit("bench", "--compare", out, out, "--json").out)["environment"] == {}


def test_pytest_benchmark_reads_it(edgekit, cpu_bundle, tmp_path):
    pytest.importorskip("pytest_benchmark")
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    for file in files:
        assert edgekit("bench", cpu_bundle, *QUICK, "--pytest-benchmark", file).code == 0
    code = "import sys; from pytest_benchmark.cli import main; main()"
    ran = subprocess.run(
        [sys.executable, "-c", code, "compare", *map(str, files)],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("cpu/model.onnx, onnxruntime, 1 thread") == 2
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ((), "nothing to measure"),
        (("BUNDLE", "--batch", "a"), "Write 1,4,8"),
        (("BUNDLE", "--threads", "0"), "Write 1,4,8"),
        (("BUNDLE", "--runtime", "onnx"), "onnxruntime"),
        (("BUNDLE", "--runtime", "tensorrt"), "runs nothing of"),
        (("BUNDLE", "--target", "cpus"), "cpu"),
        (("BUNDLE", "--shape", "x:1x3x32x32"), "fixed: 1"),
        (("BUNDLE", "--streams", "2"), "--mode throughput"),
        (("BUNDLE", "--paired", "BUNDLE", "--mode", "throughput"), "no meaning"),
        (("BUNDLE", "--compare", "a", "b"), "no meaning"),
        (("BUNDLE/cpu/model.onnx", "--runtime", "torch"), "Give the bundle"),
        (("BUNDLE/cpu/model.onnx", "--target", "cpu"), "no bundle"),
        (("absent.onnx",), "does not exist"),
        (("--compare", "absent.json", "absent.json"), "cannot be read"),
    ],
)
def test_bad_input_is_named(edgekit, cpu_bundle, flags, said):
    result = edgekit("bench", *(flag.replace("BUNDLE", str(cpu_bundle)) for flag in flags))
    assert result.code == 2, result.out
    assert said in result.err


def test_what_cannot_run_here_hides_no_other(edgekit, whole_bundle):
    rows = rows_of(edgekit("bench", whole_bundle[0], *QUICK, "--json"))
    statuses = {(row["target"], row["artifact"].rpartition("/")[2]): row["status"] for row in rows}
    assert statuses["cpu", "model.onnx"] == "measured"
    assert statuses["jetson-orin-nano-super", "on_device"] == "not run: on the device"
    only = rows_of(edgekit("bench", whole_bundle[0], "-t", "cpu", *QUICK, "--json"))
    assert {row["target"] for row in only} == {"cpu"}


def test_from_python(cpu_bundle):
    plan = Plan(threads=(1,), limits=Limits(0, 10, 0.05))
    (row,) = package.bench(cpu_bundle, plan)["results"]
    assert row["threads"] == 1
    (row,) = package.bench(cpu_bundle, plan, against=cpu_bundle)["results"]
    assert row["paired"]["loads"] >= 6


def test_threads_are_for_runtimes_that_compute_on_the_cpu():
    device = Candidate("e.plan", None, "tensorrt", "", None, None, None)
    assert threads_for(device, Plan()) == [None]
    with pytest.raises(EdgekitError, match="cannot be given threads"):
        threads_for(device, Plan(threads=(1,)))


def test_an_artifact_alone_is_fed_random_numbers_and_says_so(edgekit, cpu_bundle):
    path = cpu_bundle / "cpu" / "model.onnx"
    assert json.loads(edgekit("bench", path, *QUICK, "--json").out)["inputs"] == "random numbers"
    given = edgekit("bench", path, "--reference", cpu_bundle / "reference.npz", *QUICK, "--json")
    assert json.loads(given.out)["inputs"].endswith("reference.npz")
