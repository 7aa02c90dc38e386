"""Half of a diffusion transformer's blocks dropped: what should the rest start from?

    python benchmarks/amber.py                                        # a quarter of an hour
    python benchmarks/amber.py --markdown docs/compress-benchmarks.md

An MMDiT of 8 dual-stream blocks learns to draw scikit-learn's digits by flow matching
(benchmarks/amber_model.py), for each of three seeds. `drop_layers` drops the four blocks that its
outputs depend on least. The four that stay start as the mean of themselves and their dropped
neighbours (averaged), as they are (copied) or at random, and `distill` trains the whole model for
the same number of steps on the same samples. Then `merge_streams` merges the streams of the last
two blocks of the averaged model and of the copied one, and `distill` goes on.

A killed run goes on where it stopped: what is made is kept in .peers/amber.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import amber_model
import page
import torch
from rich.console import Console

from edgekit import progress
from edgekit.compress import Context, apply, measure
from edgekit.compress.batches import batches, outputs
from edgekit.compress.distill import Distill
from edgekit.compress.drop_layers import DropLayers
from edgekit.compress.merge_streams import MergeStreams
from edgekit.compress.modules.skip import Skip
from edgekit.files import write_text
from edgekit.machine import environment
from edgekit.model import Model
from edgekit.table import plain_table, show

ROOT = Path(__file__).parents[1]
ROOM = ROOT / ".peers" / "amber"
RESULT = Path(__file__).parent / "results" / "amber.json"
STARTS = ("averaged", "copied", "random")
SEEDS = (0, 1, 2)
#: Steps of training, and of distillation; the last are kept for merging.
TEACHER, STEPS = 1000, (100, 300)
KEEP_DUAL = 2
RATE = 1e-3


@dataclasses.dataclass(frozen=True)
class Study:
    """One seed: its teacher, and what students learn from and are judged on."""

    teacher: Model
    seed: int
    room: Path

    def context(self, name: str) -> Context:
        """For a pass whose state is kept under this name."""
        return Context(
            data=amber_model.data(self.teacher, "calibration")[0],
            training=amber_model.data(self.teacher, "training")[0],
            teacher=self.teacher,
            folder=self.room / f"seed_{self.seed}" / name,
            seed=self.seed,
        )

    def judged(self, model: Model) -> dict[str, float]:
        """On images that no model has seen: distance from the teacher, and the true loss."""
        data, velocity = amber_model.data(self.teacher, "evaluation")
        with torch.no_grad():
            given = torch.cat([outputs(model.module, batch)[0] for batch in batches(data, 256)])
        loss = float((given - velocity).square().mean())
        return {"error": measure.relative_error(self.teacher, model, data, 256), "loss": loss}

    def distilled(self, model: Model, name: str, steps: int) -> Model:
        """After so many steps towards the teacher's outputs."""
        step = Distill(steps=steps, batch_size=64, rate=RATE, losses=("mse",))
        return apply(step, model, self.context(f"{name}_{steps}"))


def started(start: str, teacher: Model, keep: tuple[int, ...], seed: int) -> Model:
    """The teacher's blocks ``keep`` with one of STARTS."""
    made = apply(DropLayers(keep=keep, average=start == "averaged"), teacher, Context())
    if start == "random":
        fresh = amber_model.untrained(seed + 1000).module.model.transformer_blocks
        for place, block in enumerate(made.module.model.transformer_blocks):
            if not isinstance(block, Skip):
                block.load_state_dict(fresh[place].state_dict())
    return made


def study(seed: int, steps: tuple[int, ...], teacher_steps: int, room: Path) -> dict[str, Any]:
    """All figures of one seed."""
    room.mkdir(parents=True, exist_ok=True)
    here = Study(amber_model.trained(seed, teacher_steps, room), seed, room)
    dropped = apply(DropLayers(ratio=0.5, average=False), here.teacher, here.context("drop"))
    blocks = dropped.module.model.transformer_blocks
    keep = tuple(place for place, block in enumerate(blocks) if not isinstance(block, Skip))
    found: dict[str, Any] = {
        "seed": seed,
        "kept": keep,
        "teacher": {"loss": here.judged(here.teacher)["loss"]},
        "parameters": {
            "whole": measure.parameters(here.teacher.module),
            "dropped": measure.parameters(dropped.module),
        },
        "starts": {},
        "merged": {},
    }
    for start in STARTS:
        model = started(start, here.teacher, keep, seed)
        rows = {"0": here.judged(model)}
        for count in steps:
            student = here.distilled(model, start, count)
            rows[str(count)] = here.judged(student)
        found["starts"][start] = rows
        if start != "random":
            merged = apply(MergeStreams(keep=KEEP_DUAL), student, Context())
            after = here.distilled(merged, f"{start}_merged", steps[-1])
            found["parameters"]["merged"] = measure.parameters(merged.module)
            found["merged"][start] = {
                "0": here.judged(merged),
                str(steps[-1]): here.judged(after),
            }
    return found


def claims(rows: list[dict[str, Any]], steps: tuple[int, ...]) -> list[dict[str, Any]]:
    """averaged < copied < random after so many steps: by the mean, and in how many seeds."""
    found = []
    for count in (0, *steps):
        for better, worse in (("averaged", "copied"), ("copied", "random")):
            pairs = [
                [row["starts"][start][str(count)]["error"] for start in (better, worse)]
                for row in rows
            ]
            means = [mean(column) for column in zip(*pairs, strict=True)]
            found.append(
                {
                    "claim": f"after {count} steps, {better} < {worse}",
                    "holds": means[0] < means[1],
                    "seeds": sum(first < second for first, second in pairs),
                    "of": len(pairs),
                }
            )
    return found


def lines(rows: list[dict[str, Any]], steps: tuple[int, ...]) -> list[tuple[str, ...]]:
    """The report's table: error and loss of each start after each number of steps."""

    def cells(get: Callable[[dict[str, Any]], dict[str, float]]) -> tuple[str, str]:
        judged = [get(row) for row in rows]
        return (
            page.spread([100 * each["error"] for each in judged], "{:.2f}"),
            page.spread([each["loss"] for each in judged], "{:.4f}"),
        )

    whole = page.spread([row["teacher"]["loss"] for row in rows], "{:.4f}")
    found: list[tuple[str, ...]] = [("the whole model", "", "0", whole)]
    for count in (0, *steps):
        for start in STARTS:
            made = cells(lambda row, s=start, n=count: row["starts"][s][str(n)])  # type: ignore[misc]
            found.append((f"4 of 8 blocks, {start}", str(count), *made))
    for start in STARTS[:2]:
        for count in (0, steps[-1]):
            made = cells(lambda row, s=start, n=count: row["merged"][s][str(n)])  # type: ignore[misc]
            found.append((f"{start}, then 2 of the 4 merged", f"{steps[-1]} + {count}", *made))
    return found


COLUMNS = ("model", "distillation steps", "error, % of the teacher's outputs", "loss")


def section(found: dict[str, Any]) -> str:
    """The page's part."""
    rows, steps = found["rows"], tuple(found["steps"])
    sizes = rows[0]["parameters"]
    kept = "; ".join(", ".join(map(str, row["kept"])) for row in rows)
    said = [
        f"- {each['claim']}: {'holds' if each['holds'] else 'does not hold'} "
        f"({each['seeds']} of {each['of']} seeds)"
        for each in found["claims"]
    ]
    parts = [
        "## What a model with half of its blocks should start from (`python benchmarks/amber.py`)",
        " ".join((__doc__ or "").split("\n\n")[2].split()),
        f"The whole model has {sizes['whole']:,} parameters, half of its blocks "
        f"{sizes['dropped']:,}, and with two of them merged {sizes['merged']:,}. Kept, by seed: "
        f"{kept}. Error is the squared distance from the teacher's outputs over their squares; "
        "loss is that of flow matching; both on images that no model has seen, with the mean and "
        "the range of three seeds.",
        page.table(COLUMNS, lines(rows, steps)),
        "\n".join(said),
    ]
    return "\n\n".join(parts)


def main() -> None:
    """Run, save and show."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", nargs="*", type=int, default=SEEDS)
    parser.add_argument("--steps", nargs="*", type=int, default=STEPS)
    parser.add_argument("--teacher-steps", type=int, default=TEACHER)
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--room", type=Path, default=ROOM, help="where what is made is kept")
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    progress.enable()
    steps, rows = tuple(options.steps), []
    for seed in options.seeds:
        rows.append(study(seed, steps, options.teacher_steps, options.room))
        Console(stderr=True).print_json(json.dumps(rows[-1]))
    found = {
        "schema_version": 1,
        "command": "python benchmarks/amber.py",
        "environment": environment(),
        "teacher_steps": options.teacher_steps,
        "steps": steps,
        "rows": rows,
        "claims": claims(rows, steps),
    }
    write_text(options.output, json.dumps(found, indent=1))
    show(plain_table("", COLUMNS, lines(rows, steps)))
    if options.markdown:
        page.write_section(options.markdown, "benchmarks/amber.py", section(found))


if __name__ == "__main__":
    main()
