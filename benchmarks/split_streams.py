"""A model split by streams against the same model whole, in ONNX Runtime on this machine.

    python benchmarks/split_streams.py                 # a few minutes; prints a table
    python benchmarks/split_streams.py --markdown docs/dual-stream.md

Both take turns, in the same precision, on one thread: what the cuts cost where nothing is gained
by them. What two processors would gain at most is the critical path, the sum over steps of the
longest segment's time; it is computed from the segments' times here and leaves transfers out.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import page

from edgekit import targets
from edgekit.drift import compare
from edgekit.files import write_text
from edgekit.latency import Settings, paired
from edgekit.machine import environment
from edgekit.pipeline import Pipeline, load
from edgekit.progress import say
from edgekit.recipe import Recipe
from edgekit.table import plain_table, show
from edgekit.work import Work

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "families" / "diffusion"))

import small  # noqa: E402

RESULT = Path(__file__).parent / "results" / "split_streams.json"
SCRIPT = "benchmarks/split_streams.py"
COLUMNS = (
    "model", "precision", "segments", "steps", "sent KB", "repeated KB", "whole ms", "split ms",
    "split / whole", "critical path ms", "largest difference",
)  # fmt: skip
#: LTX-2 with 4 blocks a quarter as wide as its own, on a short clip.
LTX2: dict[str, Any] = {
    "num_layers": 4, "num_attention_heads": 8, "attention_head_dim": 64,
    "cross_attention_dim": 512, "audio_num_attention_heads": 8, "audio_attention_head_dim": 32,
    "audio_cross_attention_dim": 256, "in_channels": 128, "out_channels": 128,
    "num_frames": 4, "height": 8, "width": 8, "audio_num_frames": 64, "text_tokens": 64,
}  # fmt: skip
PRECISIONS = ("fp32", "int8")
#: Rounds of the comparison go on for so long, in seconds.
SECONDS = 30.0


def models(folder: Path) -> dict[str, tuple[str, dict[str, Any]]]:
    """name -> the model and its arguments."""
    ltx2, _ = small.write("ltx2", folder)
    return {
        "two_tower": ("reference/two_tower", {}),
        "crossvit_9_240": ("timm/crossvit_9_240", {}),
        "ltx2, 4 blocks": (f"diffusers/{ltx2}", LTX2),
    }


def row(model: str, arguments: dict[str, Any], precision: str, folder: Path) -> dict[str, Any]:
    """Build both, compare outputs, and let them take turns."""
    fields = {
        "model": model,
        "arguments": arguments,
        "precision": precision,
        "effort": "quick",
        "samples": 4,
        "random_weights": True,
        "random_calibration": True,
    }
    made = {}
    target, table = targets.load("cpu"), None
    for split in (False, True):
        work = Work(Recipe.check({**fields, "split_streams": split}, "the benchmark"))
        if work.recipe.scheme and table is None:
            table = work.quantize()
        place = folder / f"{precision}{split}"
        place.mkdir()
        made[split] = work.artifact(target, "onnx", place, table)
    inputs = work.batches[0]
    settings = Settings(inputs, iterations=10_000, seconds=SECONDS)
    ratio = paired(made[True], made[False], "onnxruntime", settings, 1)
    with load("onnxruntime", made[False], 1) as whole, load("onnxruntime", made[True], 1) as parts:
        if not isinstance(parts, Pipeline):
            raise TypeError(parts)
        largest = compare([whole.infer(inputs)], [parts.infer(inputs)]).max_abs
        for _ in range(20):
            parts.infer(inputs)
        times, plan = parts.parts(), parts.plan
    steps = {part.step for part in plan.parts}
    path = sum(max(times[p.name] for p in plan.parts if p.step == step) for step in steps)
    return {
        "segments": len(plan.parts),
        "steps": len(steps),
        "sent_bytes": plan.sent_bytes,
        "repeated_bytes": plan.repeated_bytes,
        "ratio": ratio.as_dict(),
        "parts_ms": times,
        "critical_path_ms": path,
        "max_abs": largest,
    }


def cells(name: str, precision: str, found: dict[str, Any]) -> tuple[str, ...]:
    """A row of the table."""
    ratio = found["ratio"]
    return (
        name,
        precision,
        str(found["segments"]),
        str(found["steps"]),
        f"{found['sent_bytes'] / 1e3:.0f}",
        f"{found['repeated_bytes'] / 1e3:.0f}",
        f"{ratio['second_ms']:.2f}",
        f"{ratio['first_ms']:.2f}",
        f"{ratio['ratio']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]",
        f"{found['critical_path_ms']:.2f}",
        f"{found['max_abs']:.1e}",
    )


def main() -> None:
    """All models and precisions."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--markdown", type=Path, help="a page whose marked part is replaced")
    document = parser.parse_args().markdown
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, (model, arguments) in models(Path(scratch)).items():
            for precision in PRECISIONS:
                say(f"{name} in {precision}")
                folder = Path(scratch) / f"made {name}"
                folder.mkdir(exist_ok=True)
                results.setdefault(name, {})[precision] = row(model, arguments, precision, folder)
    rows = [cells(n, p, found) for n, each in results.items() for p, found in each.items()]
    show(plain_table("Split by streams, one thread", COLUMNS, rows))
    report = {"environment": environment(), "results": results}
    write_text(RESULT, json.dumps(report, indent=1) + "\n")
    if document is not None:
        page.write_section(document, SCRIPT, page.table(COLUMNS, rows))


if __name__ == "__main__":
    main()
