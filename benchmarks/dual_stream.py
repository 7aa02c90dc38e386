"""Dual-stream transformers on every backend, in every precision: what passes.

    python benchmarks/dual_stream.py --markdown docs/dual-stream.md         # a quarter of an hour
    python benchmarks/dual_stream.py --models flux sd3 --precisions int8    # a part of it
    python benchmarks/dual_stream.py --models flux --pass prune:ratio=0.5   # after a pass

The models are small ones with seeded random weights (`tests/families/diffusion/small.py`, and
timm's CrossViT), on normal latents and texts and timesteps from the models' own range. So this is
parity with the source model, not accuracy.

A row is one artifact; it is saved before the next one is begun, and what has a row is not made
again, unless `--again` is given.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit import targets
from edgekit.errors import EdgekitError
from edgekit.files import write_text
from edgekit.machine import environment
from edgekit.progress import say
from edgekit.recipe import Recipe
from edgekit.table import plain_table, show

if TYPE_CHECKING:
    from edgekit.model import Input
    from edgekit.work import Work

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "families" / "diffusion"))

import small  # noqa: E402

RESULT = Path(__file__).parent / "results" / "dual_stream.json"
START, END = "<!-- benchmarks/dual_stream.py -->", "<!-- end of benchmarks/dual_stream.py -->"
CROSSVIT = "crossvit"
TITLES = {
    "qwen_image": "Qwen-Image",
    "flux": "FLUX.1",
    "sd3": "Stable Diffusion 3",
    "ltx2": "LTX-2",
    "hidream": "HiDream-I1",
    CROSSVIT: "CrossViT (timm)",
}
PRECISIONS = ("fp32", "fp16", "int8")
#: format -> (heading, target, the artifact's name)
FORMATS = {
    "onnx": ("ONNX", "cpu", "model.onnx"),
    "tensorrt": ("TensorRT-RTX", "rtx-4090", "engine.plan"),
    "coreml": ("Core ML", "iphone-15-pro", "model.mlpackage"),
}
#: What makes a row another one.
KEY = ("model", "passes", "precision", "format")
SAMPLES = 8
#: The largest timestep of the models whose timestep does not end at 1.
LAST_STEP = {"sd3": 1000.0, "ltx2": 1000.0, "hidream": 1000.0}


def write_data(name: str, inputs: tuple[Input, ...], path: Path, seed: int) -> None:
    """Samples as the model would meet them, as far as noise can."""
    generator = np.random.default_rng(seed)
    arrays = {}
    for spec in inputs:
        shape = (SAMPLES, *spec.concrete()[1:])
        if "timestep" in spec.name:
            arrays[spec.name] = generator.uniform(0, LAST_STEP.get(name, 1.0), shape)
        else:
            arrays[spec.name] = generator.standard_normal(shape)
    np.savez(path, **{key: value.astype(np.float32) for key, value in arrays.items()})


def fields_of(name: str, folder: Path) -> dict[str, Any]:
    """The recipe of a model, but for its data and precision."""
    if name == CROSSVIT:
        return {"model": "timm/crossvit_tiny_240", "random_weights": True}
    home, sizes = small.write(name, folder)
    return {"model": f"diffusers/{home}", "arguments": sizes, "random_weights": True}


def work_of(name: str, passes: list[str], folder: Path) -> Work:
    """The model with its data, to be made into anything."""
    from edgekit.source import load_model
    from edgekit.work import Work

    fields = fields_of(name, folder)
    inputs = load_model(Recipe.check(fields, "dual_stream")).inputs
    for seed, use in enumerate(("calibration", "evaluation")):  # judged on what it never saw
        fields[use] = folder / f"{use}.npz"
        write_data(name, inputs, fields[use], seed)
    if passes:
        fields["passes"] = passes
    return Work(Recipe.check(fields, "dual_stream"))


def in_precision(work: Work, precision: str) -> Work:
    """The same for another precision: model, graph and expected outputs are shared."""
    other = copy.copy(work)
    other.recipe = work.recipe.model_copy(update={"precision": precision})
    return other


def made(work: Work, form: str, folder: Path) -> dict[str, Any]:
    """One artifact's row: whether it is right, and how far from the source."""
    _, target, file = FORMATS[form]
    out = folder / work.recipe.precision / file
    out.parent.mkdir(exist_ok=True)
    begin, found = time.perf_counter(), {"ok": True, "cosine": None, "max_abs": None}
    try:
        _, status, drift = work.single(targets.load(target), form, out)
        found["status"] = status
        if drift is not None:
            found |= {"cosine": drift.cosine, "max_abs": drift.max_abs}
    except EdgekitError as error:
        reason = " ".join(f"{error.what} {error.why}".split())
        found |= {"ok": False, "status": f"failed: {reason[:300]}"}
    return {**found, "seconds": round(time.perf_counter() - begin, 1)}


def missing(options: argparse.Namespace, rows: list[dict[str, Any]]) -> Iterator[dict[str, str]]:
    """The keys that are asked for and have no row, models outermost."""
    have = set() if options.again else {tuple(row[name] for name in KEY) for row in rows}
    for model in options.models:
        for precision in options.precisions:
            for form in options.formats:
                key = (model, " ".join(options.passes), precision, form)
                if key not in have:
                    yield dict(zip(KEY, key, strict=True))


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Make what is missing; every row, those of earlier runs too."""
    rows: list[dict[str, Any]] = read(options.output)
    wanted = list(missing(options, rows))
    for model in dict.fromkeys(key["model"] for key in wanted):
        with tempfile.TemporaryDirectory() as scratch:
            work = work_of(model, options.passes, Path(scratch))
            with contextlib.suppress(EdgekitError):  # which every row will meet again
                work.graph, work.expected  # noqa: B018 - made once, for all precisions
            works = {p: in_precision(work, p) for p in PRECISIONS}
            for key in (key for key in wanted if key["model"] == model):
                say(f"{model} {key['passes']}: {key['precision']} {key['format']}")
                row = made(works[key["precision"]], key["format"], Path(scratch))
                rows = [r for r in rows if any(r[name] != key[name] for name in KEY)]
                rows.append({**key, **row})
                save(rows, options.output)
    return rows


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of earlier runs."""
    if not path.is_file():
        return []
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return rows


def save(rows: list[dict[str, Any]], path: Path) -> None:
    """Write all rows, in the table's order."""
    order = {name: place for place, name in enumerate((*TITLES, *PRECISIONS, *FORMATS))}
    rows.sort(key=lambda row: (row["passes"], *(order[row[n]] for n in KEY if n != "passes")))
    report = {"schema_version": 1, "environment": environment(), "rows": rows}
    write_text(path, json.dumps(report, indent=1) + "\n")


def grid(rows: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """The head of the table, and a line for each model and list of passes."""
    columns = [(form, precision) for form in FORMATS for precision in PRECISIONS]
    lines = [("model", *(f"{FORMATS[form][0]} {precision}" for form, precision in columns))]
    for model, passes in dict.fromkeys((row["model"], row["passes"]) for row in rows):
        cells = {
            (row["format"], row["precision"]): _cell(row)
            for row in rows
            if (row["model"], row["passes"]) == (model, passes)
        }
        title = f"{TITLES[model]}, {passes}" if passes else TITLES[model]
        lines.append((title, *(cells.get(column, "") for column in columns)))
    return lines


def _cell(row: dict[str, Any]) -> str:
    if not row["ok"]:
        return "fail"
    return "built" if row["cosine"] is None else f"{row['cosine']:.5f}"


def section(rows: list[dict[str, Any]]) -> str:
    """The part of the page that this script writes."""
    head, *lines = grid(rows)
    table = [head, ("---",) * len(head), *lines]
    failed = [
        f"- {TITLES[row['model']]}, {FORMATS[row['format']][0]} {row['precision']}: {row['status']}"
        for row in rows
        if not row["ok"]
    ]
    passed = sum(row["ok"] for row in rows)
    return "\n".join(
        [
            START,
            *(f"| {' | '.join(line)} |" for line in table),
            "",
            f"{passed} of {len(rows)} pass (`python benchmarks/dual_stream.py`).",
            *failed,
            END,
        ]
    )


def write(rows: list[dict[str, Any]], document: Path) -> None:
    """Put the table in place of the document's old one."""
    before, _, rest = document.read_text(encoding="utf-8").partition(START)
    write_text(document, before + section(rows) + rest.partition(END)[2])


def main() -> None:
    """Make what is asked for, save and show it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", nargs="*", default=list(TITLES), choices=list(TITLES))
    parser.add_argument("--precisions", nargs="*", default=list(PRECISIONS), choices=PRECISIONS)
    parser.add_argument("--formats", nargs="*", default=list(FORMATS), choices=list(FORMATS))
    parser.add_argument("--pass", dest="passes", action="append", default=[], help="in order")
    parser.add_argument("--again", action="store_true", help="make anew what has a row")
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--markdown", type=Path, help="put the table into this document")
    options = parser.parse_args()
    rows = run(options)
    head, *lines = grid(rows)
    show(plain_table("Cosine with the source", head, lines))
    if options.markdown:
        write(rows, options.markdown)


if __name__ == "__main__":
    main()
