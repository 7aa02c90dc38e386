"""benchmarks/dual_stream.py: its table, what it resumes, and one real cell."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import dual_stream


def row(model: str, form: str = "onnx", precision: str = "fp32", **found: Any) -> dict[str, Any]:
    usual = {"ok": True, "cosine": 1.0, "max_abs": 0.0, "status": "verified", "seconds": 1.0}
    return {
        "model": model,
        "passes": "",
        "precision": precision,
        "format": form,
        **usual,
        **found,
    }


ROWS = [
    row("flux"),
    row("flux", "tensorrt", cosine=None, status="built, not run: no GPU"),
    row("sd3", precision="int8", ok=False, status="failed: cosine 0.9"),
    row("flux", passes="prune:ratio=0.5", cosine=0.99),
]


def options(**changes: Any) -> argparse.Namespace:
    asked = {"models": ["flux"], "precisions": ["fp32"], "formats": ["onnx", "tensorrt", "coreml"]}
    return argparse.Namespace(**{**asked, "passes": [], "again": False, **changes})


def test_what_has_a_row_is_not_made_again() -> None:
    assert [key["format"] for key in dual_stream.missing(options(), ROWS)] == ["coreml"]
    assert len(list(dual_stream.missing(options(again=True), ROWS))) == 3
    after = options(passes=["prune:ratio=0.5"])
    assert [key["format"] for key in dual_stream.missing(after, ROWS)] == ["tensorrt", "coreml"]


def test_the_table_goes_between_its_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{dual_stream.START}\nold\n{dual_stream.END}\nafter\n")
    dual_stream.write(ROWS, page)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| FLUX.1 | 1.00000 |  |  | built |" in text
    assert "| FLUX.1, prune:ratio=0.5 | 0.99000 |" in text
    assert "- Stable Diffusion 3, ONNX int8: failed: cosine 0.9" in text
    assert "3 of 4 pass" in text


def test_one_cell(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    asked = options(models=["sd3"], formats=["onnx"], output=tmp_path / "found.json")
    (found,) = dual_stream.run(asked)
    assert found["ok"], found["status"]
    assert found["cosine"] > 0.99999
    assert dual_stream.run(asked) == [found]
