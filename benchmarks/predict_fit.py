"""The fit behind ``edgekit predict``: parameters from points, and what leaving devices out shows.

The residual of a point is log(predicted / published), its loss Huber's; devices weigh alike by the
square root of how many points they have; parameters are held near what they were thought to be
before (``roofline.PRIOR``) as if that were one more measurement each.
"""

from __future__ import annotations

import csv
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from predict_workloads import PREDICTION, place
from scipy.optimize import least_squares

from edgekit import targets
from edgekit.targets import Target
from edgekit.targets.prediction import roofline
from edgekit.targets.prediction.groups import Group, from_rows
from edgekit.targets.prediction.machine import (
    RUNTIMES,
    Machine,
    Numbers,
    machine_of,
    multiplies_tf32,
)
from edgekit.targets.prediction.roofline import DEVIATION, DEVIATIONS, EXPECTED, PRIOR, Array, Load
from edgekit.targets.rules import RULES

#: Where the loss turns from squares to absolute values, in logarithms.
TURN = 0.2
#: How far a point is off on its own: what a prior of one standard deviation weighs against.
NOISE = 0.15


@dataclass(frozen=True)
class Point:
    """One published or measured latency."""

    device: str
    runtime: str
    model: str
    precision: str
    batch: int
    threads: int
    milliseconds: float
    pipeline: bool


@dataclass(frozen=True)
class Case:
    """A point and what it asks of its machine."""

    point: Point
    machine: Machine
    load: Load


def read(path: Path | None = None) -> list[Point]:
    """The points that are used."""
    paths = [path] if path else sorted((PREDICTION / "points").glob("*.csv"))
    rows: list[dict[str, str]] = []
    for each in paths:
        with each.open(newline="", encoding="utf-8") as lines:
            rows += csv.DictReader(lines)
    return [
        Point(
            device=row["device"],
            runtime=row["runtime"],
            model=row["model"],
            precision=row["precision"],
            batch=int(row["batch"]),
            threads=int(row.get("threads") or 1),
            milliseconds=float(row["milliseconds"]),
            pipeline=row["scope"] == "pipeline",
        )
        for row in rows
        if not row["left_out"]
    ]


@cache
def device(name: str) -> Target:
    """A target, or a device that only points are of."""
    if name in targets.names():
        return targets.load(name)
    others = tomllib.loads((PREDICTION / "devices.toml").read_text(encoding="utf-8"))
    facts = others[name]
    return Target(name=name, **{**facts, "sources": {"dtypes": "devices.toml", **facts["sources"]}})


@cache
def workload(model: str) -> tuple[Group, ...]:
    """What a model computes for one sample."""
    import json

    return tuple(from_rows(json.loads(place(model).read_text(encoding="utf-8"))))


@cache
def measured_machine(name: str, threads: int) -> Machine:
    """A processor whose peaks were measured beside its points."""
    stored = tomllib.loads((PREDICTION / "points" / f"{name}.toml").read_text(encoding="utf-8"))
    found = stored[f"threads_{threads}"]
    return Machine(name, found["rates"], found["bandwidth"], floor=found["floor"])


def case(point: Point) -> Case:
    """What a point asks of its machine."""
    measured = (PREDICTION / "points" / f"{point.device}.toml").exists()
    if measured:
        machine, float_dtype, tf32 = measured_machine(point.device, point.threads), "fp32", False
    else:
        target = device(point.device)
        machine, float_dtype = machine_of(target), target.float_dtype
        tf32 = multiplies_tf32(target)
    load = roofline.load_of(
        workload(point.model),
        machine,
        RUNTIMES[point.runtime],
        Numbers.of(point.precision, float_dtype),
        RULES.get(point.runtime, RULES["tensorrt"]),
        point.device,
        tf32,
        point.batch,
    )
    return Case(point, machine, load)


def names_of(cases: Sequence[Case]) -> list[str]:
    """The parameters: those of all runtimes, and deviations of those that points are of."""
    runtimes = sorted({RUNTIMES[c.point.runtime].name for c in cases} - {"tensorrt"})
    return [*PRIOR, *(f"{runtime}.{name}" for runtime in runtimes for name in DEVIATIONS)]


class Sheet:
    """Many cases as one load, to be evaluated together."""

    def __init__(self, cases: Sequence[Case]) -> None:
        self.runtimes = sorted({RUNTIMES[c.point.runtime].name for c in cases})
        rows = [self.runtimes.index(RUNTIMES[c.point.runtime].name) for c in cases]
        self.load = roofline.joined([c.load for c in cases], rows)
        sizes = np.cumsum([0, *(len(c.load.count) for c in cases)])
        self.starts = sizes[:-1]
        self.known = np.array([c.point.milliseconds for c in cases])
        self.pipeline = np.array([c.point.pipeline for c in cases], float)

    def milliseconds(self, parameters: Mapping[str, float]) -> Array:
        """What is predicted for each case."""
        table = np.stack([roofline.values(parameters, name) for name in self.runtimes])
        seconds = roofline.total(*roofline.times(self.load, table)) * self.load.count
        whole = np.add.reduceat(seconds, self.starts) * 1e3
        return whole + self.pipeline * parameters["pipeline.ms"]

    def residuals(self, parameters: Mapping[str, float]) -> Array:
        """Logarithms of predicted over published."""
        return np.log(self.milliseconds(parameters) / self.known)


def residuals(cases: Sequence[Case], parameters: Mapping[str, float]) -> Array:
    """Logarithms of predicted over published."""
    return Sheet(cases).residuals(parameters)


def fit(cases: Sequence[Case], start: Mapping[str, float] | None = None) -> dict[str, float]:
    """The parameters that fit the points best.

    Args:
        start: where to begin; what is thought before any point, if not given.
    """
    names = names_of(cases)
    before = np.log([PRIOR[n][0] if n in PRIOR else EXPECTED.get(n, 1.0) for n in names])
    width = np.array([PRIOR[name][1] if name in PRIOR else DEVIATION for name in names])
    counts: dict[str, int] = {}
    for each in cases:
        counts[each.point.device] = counts.get(each.point.device, 0) + 1
    weights = np.array([1 / np.sqrt(counts[c.point.device]) for c in cases])
    weights /= np.sqrt((weights**2).mean())

    sheet = Sheet(cases)

    def cost(x: Array) -> Array:
        off = sheet.residuals(dict(zip(names, np.exp(x), strict=True)))
        size = np.abs(off)
        # The root of Huber's loss, so that the prior's squares stay squares.
        huber = np.where(size <= TURN, size, np.sqrt(np.maximum(2 * TURN * size - TURN**2, 0)))
        return np.concatenate((weights * np.sign(off) * huber / NOISE, (x - before) / width))

    first = before if start is None else np.log([start.get(name, 1.0) for name in names])
    most = np.array([0.0 if name.startswith(("share.", "stream.")) else np.inf for name in names])
    first = np.minimum(first, most - 1e-3)
    found = least_squares(cost, first, bounds=(-np.inf, most), x_scale=width, xtol=1e-5, ftol=1e-6)
    return dict(zip(names, (float(v) for v in np.exp(found.x)), strict=True))
