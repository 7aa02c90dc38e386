"""benchmarks/gpu.py, on the part of it that needs no GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


def test_a_bundle_is_judged_and_timed_and_what_is_missing_is_said(cpu_bundle, tmp_path):
    out = tmp_path / "found.json"
    command = [sys.executable, SCRIPT, cpu_bundle, "--device", "cpu", "--output", out]
    subprocess.run([*map(str, command)], check=True, capture_output=True)
    rows = {row["way"]: row for row in json.loads(out.read_text())["rows"]}
    assert rows["torch eager float32"]["cosine"] > 0.999999
    assert rows["onnxruntime cpu/model.onnx"]["cosine"] > 0.98
    assert all(
        row["status"] == "measured" or row["status"][:7] == "not run" for row in rows.values()
    )
