"""Reports: reading them, and comparing two row by row."""

from __future__ import annotations

import copy
import json

import pytest

from edgekit.errors import EdgekitError
from edgekit.latency import compare, read_report
from edgekit.latency.reports import name_of


def row(value=10.0, low=9.9, high=10.1, **changes):
    return {
        "artifact": "cpu/model.onnx",
        "target": "cpu",
        "runtime": "onnxruntime",
        "threads": 1,
        "batch": 1,
        "shapes": {"x": [1, 3]},
        "phase": "",
        "streams": 1,
        "status": "measured",
        "figure": {"name": "p50_ms", "value": value, "low": low, "high": high},
        "doubts": [],
        **changes,
    }


def report(*rows, **changes):
    environment = {"cpu": "A", "load_1min": 0.1, "versions": {"onnxruntime": "1.32"}}
    return {
        "schema_version": 2,
        "subject": "bundle",
        "mode": "latency",
        "environment": environment,
        "results": list(rows),
        **changes,
    }


@pytest.mark.parametrize(
    ("value", "verdict"), [(8.0, "faster"), (12.0, "slower"), (10.1, "within noise")]
)
def test_a_difference_is_one_only_beyond_what_the_runs_themselves_vary(value, verdict):
    (found,) = compare(report(row()), report(row(value, 0.99 * value, 1.01 * value)))["rows"]
    assert found["verdict"] == verdict
    assert found["ratio"] == pytest.approx(value / 10)
    assert found["low"] < found["ratio"] < found["high"]


def test_two_loads_of_one_file_are_no_difference_however_sharp_the_runs():
    exact = row(10, 10, 10), row(10.15, 10.15, 10.15)
    (found,) = compare(report(exact[0]), report(exact[1]))["rows"]
    assert found["verdict"] == "within noise"


def test_more_samples_a_second_are_faster():
    rates = [row(figure={"name": "samples_s", "value": v, "low": v, "high": v}) for v in (100, 150)]
    before, after = (report(rate, mode="throughput") for rate in rates)
    assert compare(before, after)["rows"][0]["verdict"] == "faster"
    assert compare(after, before)["rows"][0]["verdict"] == "slower"


def test_rows_are_matched_and_the_others_named():
    before = report(row(), row(threads=2), row(runtime="openvino", status="not run: no"))
    after = report(row(threads=2), row(batch=4, shapes={"x": [4, 3]}))
    found = compare(before, after)
    assert [each["threads"] for each in found["rows"]] == [2]
    assert found["unmatched"] == {
        "before": ["cpu/model.onnx, onnxruntime, 1 thread, x 1x3"],
        "after": ["cpu/model.onnx, onnxruntime, 1 thread, x 4x3"],
    }


def test_two_artifacts_of_other_names_are_compared():
    found = compare(report(row(artifact="a.onnx")), report(row(artifact="b.onnx")))
    assert len(found["rows"]) == 1


def test_environments_that_differ_are_said_and_the_load_is_not_one():
    other = report(row())
    other["environment"] = copy.deepcopy(other["environment"])
    other["environment"] |= {"load_1min": 3.0, "power_mode": "MAXN"}
    other["environment"]["versions"]["onnxruntime"] = "1.33"
    found = compare(report(row()), other)
    assert found["environment"] == {
        "versions.onnxruntime": ["1.32", "1.33"],
        "power_mode": [None, "MAXN"],
    }
    assert "environments differ" in found["notes"][0]


def test_doubts_of_either_run_are_carried_over():
    found = compare(report(row(doubts=["slowed down: hot"])), report(row(5.0, 5.0, 5.0)))
    assert found["rows"][0]["doubts"] == ["before: slowed down: hot"]
    assert found["rows"][0]["verdict"] == "faster, in doubt"
    assert any("could not be trusted" in note for note in found["notes"])


def test_reports_that_cannot_be_compared_say_why():
    with pytest.raises(EdgekitError, match="latency mode, the other in throughput"):
        compare(report(row()), report(row(), mode="throughput"))
    with pytest.raises(EdgekitError, match="no row in common"):
        compare(report(row()), report(row(threads=3)))
    with pytest.raises(EdgekitError, match="ratios"):
        compare(report(mode="paired"), report(mode="paired"))


@pytest.mark.parametrize(
    ("text", "said"),
    [("{", "cannot be read"), ("[]", "no report"), ('{"a": 1}', "no report")],
)
def test_what_is_no_report_is_refused(tmp_path, text, said):
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(EdgekitError, match=said):
        read_report(tmp_path / "r.json")


def test_an_older_report_is_refused(tmp_path):
    with pytest.raises(EdgekitError, match="cannot be read"):
        read_report(tmp_path / "absent.json")
    (tmp_path / "r.json").write_text(json.dumps(report(schema_version=1)))
    with pytest.raises(EdgekitError, match="schema_version 1"):
        read_report(tmp_path / "r.json")


def test_a_name_has_what_tells_rows_apart():
    text = name_of(row(threads=2, phase="step", streams=4))
    assert text == "cpu/model.onnx, onnxruntime, 2 threads, x 1x3, step, 4 in flight"
    assert name_of(row(threads=None)) == "cpu/model.onnx, onnxruntime, x 1x3"
