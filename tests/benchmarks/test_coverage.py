"""benchmarks/coverage.py: what it counts, and that one failure hides nothing else."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def page() -> ModuleType:
    spec = importlib.util.spec_from_file_location("page", BENCHMARKS / "coverage_page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _row(reason: str = "", **figures: Any) -> dict[str, Any]:
    return {"ok": not reason, "reason": reason, "seconds": 2.0, **figures}


MODELS = {
    "timm/good": {
        "checks": {
            "onnx fp32 rtx-4090": _row(cosine=1.0),
            "onnx fp16 rtx-4090": _row(cosine=1.0),
            "int8 int8 cpu": _row(cosine=0.98765),
        }
    },
    "timm/bad": {
        "checks": {
            "onnx fp32 rtx-4090": _row(cosine=1.0),
            "onnx fp16 rtx-4090": _row("cosine 0.9 is under 0.9999"),
        }
    },
}


def test_a_backend_passes_only_if_all_its_checks_do(page: ModuleType) -> None:
    assert page.verdict(MODELS["timm/good"], "onnx") == (True, "")
    assert page.verdict(MODELS["timm/bad"], "onnx") == (False, "cosine 0.9 is under 0.9999")
    assert page.verdict(MODELS["timm/good"], "coreml") is None


def test_totals_count_what_was_tried(page: ModuleType) -> None:
    assert page.totals(MODELS) == {
        "onnx": (1, 2),
        "tensorrt": (0, 0),
        "coreml": (0, 0),
        "int8": (1, 1),
    }


def test_the_page_lists_every_failure_with_its_reason(page: ModuleType) -> None:
    text = page.markdown({"models": MODELS, "environment": {"versions": {"torch": "2.13.0"}}})
    assert "| timm/good | pass |  |  | pass, cosine 0.9877 | 6 |" in text
    assert "| timm/bad | fail |" in text
    assert "- `timm/bad`, ONNX: cosine 0.9 is under 0.9999" in text
    assert "1 of 2 (50.0%)" in text
    assert "torch 2.13.0" in text


def _one(model: str) -> list[dict[str, Any]]:
    command = [sys.executable, str(BENCHMARKS / "coverage.py"), "--one", model, "--only", "onnx"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_one_model_is_judged_in_every_precision() -> None:
    export, fp32, fp16 = _one("timm/test_vit")
    assert export["ok"]
    assert (fp32["check"], fp32["ok"]) == ("onnx fp32 rtx-4090", True)
    assert (fp16["check"], fp16["ok"]) == ("onnx fp16 rtx-4090", True)
    assert fp32["max_abs"] < fp16["max_abs"]


def test_a_model_that_cannot_be_made_says_why() -> None:
    (export,) = _one("timm/no_such_model")
    assert not export["ok"]
    assert "no_such_model" in export["reason"]
