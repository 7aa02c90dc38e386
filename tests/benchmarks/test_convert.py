"""benchmarks/convert_report.py: which claims fail, and that a section is replaced, not repeated."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def report() -> ModuleType:
    spec = importlib.util.spec_from_file_location("report", BENCHMARKS / "convert_report.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _result(pipeline: str, ratio: float, cosine: float, top1: float | None) -> dict[str, Any]:
    def flat(value: float) -> dict[str, float]:
        return {"median": value, "p10": value, "p90": value}

    entry = {"threads": 1, "ms": flat(1), "to_our_fp32": flat(1), "ours_to_it": flat(ratio)}
    return {
        "pipeline": pipeline,
        "seconds": flat(1),
        "peak_mb": flat(1),
        "size_mb": 1.0,
        "cosine": cosine,
        "top1": top1,
        "latency": [entry],
    }


def _case(report: ModuleType, ratio: float, cosine: float, top1: float | None) -> dict[str, Any]:
    """Ours at cosine 0.99 and top-1 0.9, beside a plain file with these figures."""
    case = {
        "case": "tiny",
        "model": "timm/tiny",
        "weights": "random",
        "source_top1": None,
        "calibration": {"origin": "there", "samples": 1},
        "judged": {"origin": "here", "samples": 1},
        "results": [
            _result("edgekit fp32", 0.5, 1.0, 0.9),
            _result("edgekit int8", 1.0, 0.99, None if top1 is None else 0.9),
            _result("plain fp32", 0.5, 1.0, 0.9),
            _result("plain int8 s8", ratio, cosine, top1),
        ],
    }
    case["claims"] = report.claims(case)
    return case


@pytest.mark.parametrize(
    ("ratio", "cosine", "top1", "failed"),
    [
        (0.9, 0.98, 0.9, []),
        (1.1, 0.98, 0.9, ["latency ratio, 1 threads"]),
        (0.9, 0.995, 0.9, ["cosine gain"]),
        (0.9, 0.98, 0.95, ["top1 gain"]),
        (0.9, 0.98, None, []),
    ],
)
def test_each_claim_fails_alone(
    report: ModuleType, ratio: float, cosine: float, top1: float | None, failed: list[str]
) -> None:
    case = _case(report, ratio, cosine, top1)
    assert [claim["what"] for claim in case["claims"] if not claim["holds"]] == failed
    assert [what in line for what, line in zip(failed, report.failures(case), strict=True)] == [
        True
    ] * len(failed)


def test_the_section_is_replaced_in_place(report: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Ours\n\n{report.START}\n\nstale\n\n{report.END}\n\n## After\n")
    found = {
        "command": "python it",
        "repeats": 1,
        "rounds": 2,
        "environment": {"cpu": "C", "cores": 2, "load_1min": 0.1, "versions": {"torch": "2"}},
        "cases": [_case(report, 1.1, 0.98, 0.9)],
    }
    report.write_section(page, found)
    once = page.read_text()
    report.write_section(page, found)
    assert page.read_text() == once
    assert "stale" not in once
    assert once.startswith("# Ours\n")
    assert once.endswith("## After\n")
    assert "| edgekit int8 | 1.0 |" in once
    assert "- tiny: latency ratio, 1 threads" in once
