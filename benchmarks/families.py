"""Every causal family of transformers, whole and streaming, on every backend: what passes.

    python benchmarks/families.py --markdown docs/sequences.md      # a quarter of an hour

The models are tiny ones with seeded random weights (tests/families/causal/tiny.py), so this is
parity, not accuracy. A cell is ``ok`` where the artifact is in its precision's tolerance of
transformers' own model (``built`` for engines, which need their GPU to run); else its reason.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from edgekit import targets
from edgekit.errors import EdgekitError
from edgekit.files import write_text
from edgekit.machine import environment
from edgekit.progress import say
from edgekit.recipe import Recipe
from edgekit.table import plain_table, show
from edgekit.work import Work

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "families" / "causal"))

import tiny  # noqa: E402

RESULT = Path(__file__).parent / "results" / "families.json"
START, END = "<!-- benchmarks/families.py -->", "<!-- end of benchmarks/families.py -->"
#: (heading, target, format, precision)
COLUMNS = (
    ("ONNX fp32", "cpu", "onnx", "fp32"),
    ("RTX SM 8.6 fp16", "rtx-3090", "tensorrt", "fp16"),
    ("RTX SM 8.9 fp16", "rtx-4090", "tensorrt", "fp16"),
    ("RTX SM 12.0 fp16", "rtx-5090", "tensorrt", "fp16"),
    ("Core ML fp16", "iphone-15-pro", "coreml", "fp16"),
)
NAMES = {"onnx": "model.onnx", "tensorrt": "engine.plan", "coreml": "model.mlpackage"}
#: Tokens of a call, short enough for Core ML.
LENGTH = "1..16..64"


def row(name: str, mode: str, folder: Path) -> dict[str, str]:
    """The state of every column for a model in a mode."""
    model = tiny.save(name, folder)
    data = folder / "words.npz"
    words = np.random.default_rng(0).integers(2, tiny.VOCABULARY, (16, 24))
    np.savez(data, input_ids=words)
    found = {}
    works: dict[str, Work] = {}
    for heading, target, form, precision in COLUMNS:
        say(f"{name} {mode}: {heading}")
        if precision not in works:
            works[precision] = _work(model, mode, precision, data)
        try:
            out = folder / NAMES[form]
            _, status, drift = works[precision].single(targets.load(target), form, out)
            figure = f" {drift.max_abs:.0e}" if drift else ""
            found[heading] = ("ok" if status == "verified" else "built") + figure
        except EdgekitError as error:
            found[heading] = " ".join(f"{error.what} {error.why}".split())[:120]
    return found


def _work(model: Path, mode: str, precision: str, data: Path) -> Work:
    fields = {
        "model": f"transformers/{model}",
        "mode": mode,
        "precision": precision,
        "inputs": [f"input_ids:1x{LENGTH}:int64"],
        "evaluation": data,
        "evaluation_samples": 2,
    }
    return Work(Recipe.check(fields, "families"))


def write(rows: list[dict[str, Any]], document: Path) -> None:
    """Put the table in place of the document's old one, or at its end."""
    heads = ("family", "mode", *(column[0] for column in COLUMNS))
    lines = [
        START,
        "## Sequence models of transformers (`python benchmarks/families.py`)",
        "",
        (__doc__ or "").split("\n\n")[2].replace("\n", " "),
        "The number is the largest difference of a score; scores are up to about 7. Of the lengths",
        f"{LENGTH}, 24, 13 and 1 are checked.",
        "",
        f"| {' | '.join(heads)} |",
        f"| {' | '.join('---' for _ in heads)} |",
    ]
    lines += [f"| {' | '.join(str(each[head]) for head in heads)} |" for each in rows]
    section, text = "\n".join([*lines, END]), document.read_text(encoding="utf-8")
    if START in text:
        before, _, rest = text.partition(START)
        text = before + section + rest.partition(END)[2]
    else:
        text = f"{text.rstrip()}\n\n{section}\n"
    write_text(document, text)


def main() -> None:
    """Build everything, save and show."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--families", nargs="*", default=sorted(tiny.TINY))
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name in options.families:
        for mode in ("whole", "stream"):
            with tempfile.TemporaryDirectory() as folder:
                rows.append({"family": name, "mode": mode, **row(name, mode, Path(folder))})
            report = {"schema_version": 1, "environment": environment(), "rows": rows}
            write_text(options.output, json.dumps(report, indent=1))
    heads = ("family", "mode", *(column[0] for column in COLUMNS))
    show(plain_table("", heads, [tuple(str(each[h]) for h in heads) for each in rows]))
    if options.markdown:
        write(rows, options.markdown)


if __name__ == "__main__":
    main()
