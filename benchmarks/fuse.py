"""Two separately trained digits ViTs made one: averaged, fused, and fine-tuned from there.

    python benchmarks/fuse.py --markdown docs/compress-benchmarks.md        # half an hour
    python benchmarks/fuse.py --room /tmp/trained                           # with trained models

Three ViTs of examples/train_digits.py (seeds 0, 1, 2) make three pairs. What is fine-tuned learns
the labels of the training images, each warped four times, for the same steps at the same rate.
Each figure is kept in the room as it is found: a stopped run goes on where it was.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from edgekit import data, families
from edgekit.compress import Context, apply, describe
from edgekit.compress.distill import Distill
from edgekit.compress.fuse import Fuse
from edgekit.files import write_text
from edgekit.machine import environment
from edgekit.progress import enable, say
from edgekit.table import plain_table, show

sys.path.insert(0, str(Path(__file__).parent))

import digits_models
import page

if TYPE_CHECKING:
    from edgekit.data import Dataset
    from edgekit.model import Model

SCRIPT = "benchmarks/fuse.py"
RESULT = Path(__file__).parent / "results" / "fuse.json"
ROOM = Path(__file__).parents[1] / ".peers" / "fuse"
#: (other, student), by seed.
PAIRS = ((0, 1), (1, 2), (2, 0))
STEPS, BATCH, RATE = 100, 32, 5e-4
#: Ways of making one of two, by the name of the row; the others are the parents and their mean.
FUSED: dict[str, dict[str, Any]] = {
    "fused, unit to unit, exact": {"basis": "units"},
    "fused, unit to unit, Sinkhorn": {"basis": "units", "solver": "sinkhorn"},
    "fused, rotated, Sinkhorn": {"solver": "sinkhorn"},
    "fused, rotated, exact (the default)": {},
}
PARENT, OTHER, MEAN, DEFAULT = "the model", "the other", "plain mean", list(FUSED)[-1]
TUNED = (PARENT, MEAN, "fused, unit to unit, exact", DEFAULT)


class Bench:
    """The models and data of all pairs, and the figures found so far."""

    def __init__(self, room: Path, steps: int) -> None:
        self.room, self.steps = room, steps
        self.path = room / f"fuse_{steps}.json"
        self.found: dict[str, float] = (
            json.loads(self.path.read_text()) if self.path.exists() else {}
        )

    def pair(self, other: int, student: int) -> dict[str, Any]:
        """Accuracies of one pair by row, before and after fine-tuning."""
        row: dict[str, Any] = {"other": other, "model": student, "before": {}, "after": {}}
        names = (PARENT, OTHER, MEAN, *FUSED)
        for name in names:
            row["before"][name] = self.figure(name, other, student, 0)
        for name in TUNED:
            row["after"][name] = self.figure(name, other, student, self.steps)
        return row

    def figure(self, name: str, other: int, student: int, steps: int) -> float:
        """Share of correct labels on the evaluation images."""
        key = f"{name} {other} {student} {steps}"
        if key not in self.found:
            say(key)
            model = self.start(name, other, student)
            if steps:
                model = apply(tuning(steps), model, self.context(model))
            self.found[key] = accuracy(model)
            write_text(self.path, json.dumps(self.found, indent=1))
        return self.found[key]

    def start(self, name: str, other: int, student: int) -> Model:
        """A parent, or one model made of two."""
        model = self.load(other if name == OTHER else student)
        if name in FUSED:
            source = digits_models.trained("vit", other, self.room)
            return apply(Fuse(other=source, **FUSED[name]), model, self.context(model))
        return mean(self.load(other), model) if name == MEAN else model

    def load(self, seed: int) -> Model:
        """The trained model of a seed."""
        return families.load(digits_models.trained("vit", seed, self.room), families.Options())

    def context(self, model: Model) -> Context:
        """The training images to compare activations on, and warped ones to learn from."""
        path = digits_models.training(self.room, 4)
        opened: Dataset = data.open_data(path, model.inputs, model.preprocess)
        pixels, labels = digits_models.load_images()
        training = digits_models.splits(labels)[0]
        arrays = {"x": digits_models.prepared(pixels[training]).numpy()}
        return Context(data=data.open_data(arrays, model.inputs, None), training=opened)


def tuning(steps: int) -> Distill:
    """Plain training, the same for all."""
    return Distill(steps=steps, batch_size=BATCH, rate=RATE, losses=("labels",))


def mean(first: Model, second: Model) -> Model:
    """Each weight the mean of the two at its place."""
    made = copy.deepcopy(second.module)
    state = first.module.state_dict()
    with torch.no_grad():
        for name, value in made.state_dict().items():
            value.copy_((value + state[name]) / 2)
    return dataclasses.replace(second, module=made)


def accuracy(model: Model) -> float:
    """On the evaluation images, which no model has seen."""
    pixels, labels = digits_models.load_images()
    chosen = digits_models.splits(labels)[2]
    with torch.inference_mode():
        scores = model.module.eval()(digits_models.prepared(pixels[chosen]))
    return float((scores.argmax(1).numpy() == labels[chosen]).mean())


def claims(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """That fusing is better than the plain mean, before and after fine-tuning."""
    found = []
    for when in ("before", "after"):
        for row in rows:
            mine, plain = row[when][DEFAULT], row[when][MEAN]
            text = f"{row['other']} into {row['model']}, {when} fine-tuning: fused {mine:.2%}, "
            found.append({"claim": f"{text}plain mean {plain:.2%}", "holds": mine > plain})
    return found


def table(rows: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """Accuracy in percent by row: the mean over the pairs, the least and the most."""
    lines = []
    for name in rows[0]["before"]:
        cells = (
            page.spread([100 * row[when][name] for row in rows]) if name in rows[0][when] else ""
            for when in ("before", "after")
        )
        lines.append((name, *cells))
    return [(name, before, after) for name, before, after in lines]


def section(found: dict[str, Any]) -> str:
    """The results as Markdown."""
    columns = ("", "top-1 %, at once", f"top-1 %, after {found['steps']} steps")
    failed = [claim["claim"] for claim in found["claims"] if not claim["holds"]]
    verdict = "Fused is better than the plain mean in every pair, before and after fine-tuning."
    if failed:
        verdict = "Not better than the plain mean: " + "; ".join(failed) + "."
    pairs = ", ".join(f"{row['other']} into {row['model']}" for row in found["rows"])
    return "\n\n".join(
        [
            f"## Two ViTs fused into one (`python {SCRIPT}`)",
            f"Pairs of seeds: {pairs}; mean, least and most over the "
            f"pairs. Fine-tuning: `{found['tuning']}`.",
            page.table(columns, table(found["rows"])),
            verdict,
        ]
    )


def main() -> None:
    """Measure, save and show."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--room", type=Path, default=ROOM, help="where models and figures are kept")
    parser.add_argument("--steps", type=int, default=STEPS, help="of fine-tuning")
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    enable()
    torch.set_num_threads(1)
    options.room.mkdir(parents=True, exist_ok=True)
    bench = Bench(options.room, options.steps)
    rows = [bench.pair(*pair) for pair in PAIRS]
    found = {
        "schema_version": 1,
        "command": f"python {SCRIPT}",
        "environment": environment(),
        "steps": options.steps,
        "tuning": describe(tuning(options.steps)),
        "rows": rows,
        "claims": claims(rows),
    }
    write_text(options.output, json.dumps(found, indent=1))
    show(plain_table("", ("", "at once", "after fine-tuning"), table(rows)))
    if options.markdown:
        page.write_section(options.markdown, SCRIPT, section(found))


if __name__ == "__main__":
    main()
