"""benchmarks/quantize.py: one small run of it, which claims fail, and what a table leaves blank."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture(scope="module")
def report() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield importlib.import_module("quantize_report")


def _row(name: str, **fields: Any) -> dict[str, Any]:
    latency = {"1": [2.0, 2.0, 2.0], "2": [1.0, 1.0, 1.0]}
    return {
        "name": name,
        "peer": "ours" if name.startswith("edgekit") else "ort",
        "scheme": "W8A8",
        "runtime": "onnxruntime",
        "status": "",
        "seconds": 1.0,
        "peak_mb": 10.0,
        "size_mb": 1.0,
        "sqnr_db": 30.0,
        "top1": 0.98,
        "latency": latency,
        **fields,
    }


def _case(rows: list[dict[str, Any]], family: str | None = None) -> dict[str, Any]:
    return {
        "case": "tiny",
        "family": family,
        "model": "timm/tiny",
        "weights": "random",
        "calibration": 2,
        "judged": 3,
        "onnx_s": 1.0,
        "source_top1": 0.98 if family else None,
        "results": rows,
    }


@pytest.mark.parametrize(
    ("peer", "failed"),
    [
        ({}, []),
        ({"latency": {"1": [1.0, 3.0, 1.0], "2": [1.0, 1.0, 1.0]}}, ["1 threads"]),
        ({"seconds": 0.5}, ["we convert in 1.0 s"]),
        ({"status": "stopped after 300 s", "seconds": 0.5}, []),
    ],
)
def test_each_claim_of_speed_fails_alone(
    report: ModuleType, peer: dict[str, Any], failed: list[str]
) -> None:
    case = _case([_row("edgekit W8A8"), _row("ORT", **peer)])
    found = report.failures(report.claims([case]))
    assert len(found) == len(failed)
    assert all(text in line for text, line in zip(failed, found, strict=True))


@pytest.mark.parametrize(
    ("mine", "peer", "failed"),
    [
        (0.98, 0.98, []),
        (0.975, 0.97, ["within 0.2% of fp32"]),
        (0.979, 0.98, ["no worse than ORT"]),
    ],
)
def test_accuracy_is_judged_by_the_mean_of_the_seeds(
    report: ModuleType, mine: float, peer: float, failed: list[str]
) -> None:
    cases = [
        _case([_row("edgekit W8A8", top1=mine + seed), _row("ORT", top1=peer)], "vit")
        for seed in (-0.01, 0.01)
    ]
    found = report.failures(report.claims(cases))
    assert len(found) == len(failed)
    assert all(text in line for text, line in zip(failed, found, strict=True))


def test_the_memory_claim_is_of_the_large_calibration(report: ModuleType) -> None:
    case = {**_case([_row("edgekit W8A8", peak_mb=3000.0)]), "case": "vit_base_256"}
    assert "3000 MB is under 2 GB" in report.failures(report.claims([case]))[0]


def test_a_refusal_is_told_once_and_leaves_its_place_blank(report: ModuleType) -> None:
    refused = _row("NNCF w4", status="ValueError: no", scheme="W4A8")
    cases = [_case([_row("edgekit W8A8"), refused], family) for family in ("vit", "mamba")]
    assert report.refusals(cases) == ["NNCF w4: ValueError: no (tiny, tiny)"]
    _, rows = report.accuracy(cases)
    assert [row[1] for row in rows] == ["the source", "edgekit W8A8"]


def test_the_section_is_replaced_in_place(report: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Ours\n\n{report.START}\n\nstale\n\n{report.END}\n\n## After\n")
    cases = [_case([_row("edgekit W8A8"), _row("ORT", seconds=0.5)])]
    found = {
        "command": "python it",
        "environment": {"cpu": "C", "cores": 2, "load_1min": 0.1, "versions": {"torch": "2"}},
        "pins": {"ort": {"onnxruntime": "1.0"}},
        "cases": cases,
        "claims": report.claims(cases),
    }
    report.write_section(page, found)
    once = page.read_text()
    report.write_section(page, found)
    assert page.read_text() == once
    assert "stale" not in once
    assert once.endswith("## After\n")
    assert "ort with onnxruntime 1.0" in once
    assert "| edgekit W8A8 | onnxruntime | 1.0 | 10 | 1.00 | 30.0 | 2.00 / 1.00 |" in once
    assert "- does not hold: tiny: we convert in 1.0 s, ORT in 0.5 s" in once


def test_every_peer_is_pinned_and_has_its_module(report: ModuleType) -> None:
    cases, install = (importlib.import_module(n) for n in ("quantize_cases", "peers.install"))
    for pipeline in cases.PIPELINES:
        assert (BENCHMARKS / "peers" / f"{pipeline.peer}.py").is_file()
        if pipeline.peer != "ours":
            assert install.versions(pipeline.peer)
    for torch in (install.versions(p.peer).get("torch", "2.13.0") for p in cases.PIPELINES):
        assert torch == "2.13.0"


def test_a_small_run(tmp_path: Path) -> None:
    """The shipped model against onnxruntime as it is installed here."""
    for name in ("examples", "benchmarks"):
        (tmp_path / name).symlink_to(ROOT / name)
    output = tmp_path / "found.json"
    command = [sys.executable, "benchmarks/quantize.py", "--quick", "--output", str(output)]
    subprocess.run([sys.executable, "examples/digits.py"], cwd=ROOT, check=True)
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 1), done.stderr[-2000:]
    (case,) = json.loads(output.read_text())["cases"]
    rows = {row["name"]: row for row in case["results"]}
    assert set(rows) == {"edgekit W8A8", "ORT u8 linears"}
    assert not any(row["status"] for row in rows.values())
    assert case["calibration"] == 32
    for row in rows.values():
        assert row["top1"] > case["source_top1"] - 0.02
        assert row["size_mb"] < 1
        assert row["seconds"] > 0
