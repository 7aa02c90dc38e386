"""How far ``edgekit predict`` is off on devices that it was not fitted on, and its fit.

    python benchmarks/predict_error.py [--check]

Fits the parameters on all points (``targets/prediction/points``) and writes them to
``targets/prediction/fitted.toml``; leaves each device out in turn, each family of devices, and each
tenth of the models, and writes what that shows to ``benchmarks/results/predict_error.json`` and
``docs/predict.md``. ``--check`` writes nothing and prints the table only.
"""

from __future__ import annotations

import argparse
import json
import sys
import tomllib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import page
import predict_fit as fitting
import predict_report as report
from predict_fit import Case, Point
from predict_workloads import PREDICTION

from edgekit import files
from edgekit.progress import say
from edgekit.targets.prediction import roofline
from edgekit.targets.prediction.basis import class_names
from edgekit.targets.prediction.fitted import FILE
from edgekit.targets.prediction.machine import RUNTIMES, Numbers

ROOT = Path(__file__).parent.parent
RESULT = Path(__file__).with_name("results") / "predict_error.json"
COMMAND = "python benchmarks/predict_error.py"
#: The share of predictions that an interval is to hold.
HELD = 0.9
#: A device's own factor is held towards 1 as by so many more points without one.
SHRINK = 3
FOLDS = 10
#: A class of operators is known where a point spends this share of its time on it.
KNOWN = 0.02
#: Devices of one make: the chip of one is nearly that of the others.
FAMILIES = {
    "Orin": ("jetson-orin-nano-super", "jetson-orin-nx-16gb", "jetson-agx-orin-64gb"),
    "Turing": ("t4", "rtx-2060"),
    "Ampere": ("rtx-3060", "rtx-3080-12gb", "rtx-3090", "a100-40gb"),
    "Ada and Blackwell": ("rtx-4090", "rtx-5090", "dgx-spark"),
    "Apple": ("iphone-12-pro", "iphone-14-pro", "m3-max"),
    "CPU": ("cpu",),
}


@dataclass(frozen=True)
class Held:
    """A point that a fit had not seen, and the logarithm of predicted over published."""

    point: Point
    off: float

    @property
    def error(self) -> float:
        """|predicted / published - 1|."""
        return float(abs(np.expm1(self.off)))


def leaving(
    cases: Sequence[Case], start: dict[str, float], groups: Iterable[Callable[[Point], bool]]
) -> list[Held]:
    """Each group of points, predicted by a fit on all others."""
    found = []
    for is_out in groups:
        out = [case for case in cases if is_out(case.point)]
        rest = [case for case in cases if not is_out(case.point)]
        if not out:
            continue
        parameters = complete(fitting.fit(rest, start), start)
        pairs = zip(out, fitting.residuals(out, parameters), strict=True)
        found += [Held(case.point, float(off)) for case, off in pairs]
    return found


def complete(parameters: dict[str, float], names: Iterable[str]) -> dict[str, float]:
    """With what was thought of a runtime's deviations where no point of it is left."""
    return {**{name: roofline.EXPECTED.get(name, 1.0) for name in names}, **parameters}


def by_device(cases: Sequence[Case], start: dict[str, float]) -> list[Held]:
    """Every point, predicted without its device."""
    devices = dict.fromkeys(case.point.device for case in cases)
    return leaving(cases, start, [lambda p, d=d: p.device == d for d in devices])  # type: ignore[misc]


def by_family(cases: Sequence[Case], start: dict[str, float]) -> list[Held]:
    """Every point, predicted without any device of its family."""
    groups = [lambda p, f=f: p.device in f for f in FAMILIES.values()]  # type: ignore[misc]
    return leaving(cases, start, groups)


def by_model(cases: Sequence[Case], start: dict[str, float]) -> list[Held]:
    """Every point, predicted without its model, its device being known by other models."""
    models = sorted({case.point.model for case in cases})
    found = []
    for fold in range(FOLDS):
        out = set(models[fold::FOLDS])
        rest = [case for case in cases if case.point.model not in out]
        parameters = complete(fitting.fit(rest, start), start)
        factors = device_offsets(rest, fitting.residuals(rest, parameters))
        left = [case for case in cases if case.point.model in out]
        for case, off in zip(left, fitting.residuals(left, parameters), strict=True):
            key = device_key(case.point)
            if key in factors:
                found.append(Held(case.point, float(off) + factors[key]))
    return found


def device_key(point: Point) -> str:
    """``DEVICE/RUNTIME``."""
    return f"{point.device}/{RUNTIMES[point.runtime].name}"


def device_offsets(cases: Sequence[Case], off: Sequence[float]) -> dict[str, float]:
    """By how much each device is slower than the formula, as a logarithm held towards 0."""
    seen: dict[str, list[float]] = {}
    for case, value in zip(cases, off, strict=True):
        seen.setdefault(device_key(case.point), []).append(value)
    return {
        key: -float(np.median(values)) * len(values) / (len(values) + SHRINK)
        for key, values in seen.items()
    }


def quantile(held: Sequence[Held]) -> float:
    """The |logarithm| that nine in ten are within, each device weighing alike.

    As the next device is none of these, half of one more is counted as out.
    """
    counts: dict[str, int] = {}
    for each in held:
        counts[each.point.device] = counts.get(each.point.device, 0) + 1
    ordered = sorted(held, key=lambda each: abs(each.off))
    weights = np.cumsum([1 / counts[each.point.device] for each in ordered])
    place = int(np.searchsorted(weights, HELD * (len(counts) + 0.5) - 1e-9))
    return abs(ordered[min(place, len(ordered) - 1)].off)


def runtime_name(held: Held) -> str:
    """The runtime whose spread a point counts for."""
    return RUNTIMES[held.point.runtime].name


def has_others(held: Sequence[Held], one: Held) -> bool:
    """Whether another device's points are of the same runtime."""
    name = runtime_name(one)
    return any(runtime_name(h) == name and h.point.device != one.point.device for h in held)


def half_width(held: Sequence[Held], runtime: str) -> float:
    """As an interval is made: of the runtime's own points, or of all where it has one device."""
    own = [each for each in held if runtime_name(each) == runtime]
    several = len({each.point.device for each in own}) > 1
    return quantile(own if several else [each for each in held if has_others(held, each)])


def coverage(held: Sequence[Held]) -> list[bool]:
    """Whether each point is in an interval made of the errors on all other devices."""
    return [
        abs(each.off)
        <= half_width(
            [other for other in held if other.point.device != each.point.device],
            runtime_name(each),
        )
        for each in held
    ]


def spread(held: Sequence[Held], inside: Sequence[bool], factor: float) -> dict[str, Any]:
    """For ``fitted.toml`` and the results."""
    return {
        "devices": len({each.point.device for each in held}),
        "points": len(held),
        "median_error": round(float(np.median([each.error for each in held])), 4),
        "factor": round(float(np.exp(factor)), 4),
        "coverage": round(float(np.mean(inside)), 4),
    }


def rows_by(held: Sequence[Held], inside: Sequence[bool], name: str) -> list[dict[str, Any]]:
    """One row a device, precision or runtime."""
    found: dict[str, list[int]] = {}
    for place, each in enumerate(held):
        found.setdefault(str(getattr(each.point, name)), []).append(place)
    return [
        {
            name: key,
            "points": len(places),
            "median_error": round(float(np.median([held[i].error for i in places])), 4),
            "bias": round(float(np.exp(np.median([held[i].off for i in places]))), 4),
            "coverage": round(float(np.mean([inside[i] for i in places])), 4),
        }
        for key, places in sorted(found.items())
    ]


def known_classes(cases: Sequence[Case], parameters: dict[str, float]) -> dict[str, list[str]]:
    """The classes of operators that each runtime's points spend time on."""
    found: dict[str, set[str]] = {}
    for case in cases:
        runtime = RUNTIMES[case.point.runtime].name
        table = roofline.values(parameters, runtime)[None]
        seconds = roofline.total(*roofline.times(case.load, table)) * case.load.count
        names = class_names(case.load, Numbers.of(case.point.precision, "fp32"))
        for name in set(names):
            chosen = [name == other for other in names]
            if seconds[chosen].sum() > KNOWN * seconds.sum():
                found.setdefault(runtime, set()).add(name)
    return {runtime: sorted(names) for runtime, names in sorted(found.items())}


def analyse(cases: Sequence[Case]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What goes into ``fitted.toml``, and into the results."""
    parameters = fitting.fit(cases)
    say(f"Fitted {len(parameters)} parameters on {len(cases)} points.")
    held = by_device(cases, parameters)
    inside = coverage(held)
    models = by_model(cases, parameters)
    families = by_family(cases, parameters)
    model_width = quantile(models)
    model_inside = [abs(each.off) <= quantile_without(models, each) for each in models]
    # Without its only device nothing is known of a runtime: that is no measure of the others.
    several = [i for i, each in enumerate(held) if has_others(held, each)]
    known = [held[i] for i in several]
    unseen = {"all": spread(known, [inside[i] for i in several], quantile(known))}
    for runtime in sorted({runtime_name(each) for each in held}):
        places = [i for i, each in enumerate(held) if runtime_name(each) == runtime]
        own, own_inside = [held[i] for i in places], [inside[i] for i in places]
        unseen[runtime] = spread(own, own_inside, half_width(held, runtime))
    offsets = device_offsets(cases, fitting.residuals(cases, parameters))
    counts = {key: sum(device_key(c.point) == key for c in cases) for key in offsets}
    fitted = {
        "command": COMMAND,
        "points": len(cases),
        "cpu": cpu_name(),
        "parameters": {name: float(f"{value:.5g}") for name, value in parameters.items()},
        "devices": {
            key: {
                "points": counts[key],
                "runtime": key.partition("/")[2],
                "factor": float(f"{np.exp(value):.4g}"),
            }
            for key, value in sorted(offsets.items())
        },
        "unseen": unseen,
        "seen": spread(models, model_inside, model_width),
        "known": known_classes(cases, parameters),
        "memory": memory_base(),
    }
    results = {
        "script": "benchmarks/predict_error.py",
        "overall": unseen["all"],
        "seen_device": fitted["seen"],
        "runtimes": unseen,
        "by_device": rows_by(held, inside, "device"),
        "by_precision": rows_by(held, inside, "precision"),
        "families": rows_of_families(families),
        "in_sample_median_error": round(
            float(np.median(np.abs(np.expm1(fitting.residuals(cases, parameters))))), 4
        ),
        "left_out_points": [
            {**vars(each.point), "predicted_over_measured": round(float(np.exp(each.off)), 3)}
            for each in held
        ],
    }
    return fitted, results


def quantile_without(held: Sequence[Held], one: Held) -> float:
    """The half-width made without a point's device."""
    return quantile([other for other in held if other.point.device != one.point.device])


def rows_of_families(held: Sequence[Held]) -> list[dict[str, Any]]:
    """One row a family that was left out whole."""
    found = []
    for family, devices in FAMILIES.items():
        own = [each for each in held if each.point.device in devices]
        if own:
            errors, offs = [each.error for each in own], [each.off for each in own]
            found.append(
                {
                    "family": family,
                    "points": len(own),
                    "median_error": round(float(np.median(errors)), 4),
                    "bias": round(float(np.exp(np.median(offs))), 4),
                }
            )
    return found


def memory_base() -> dict[str, list[float]]:
    """What a runtime takes beside a model's own memory, in MB, and the error of all with it.

    Of TensorRT, from ``predict_memory.py``; nothing tells it of the others.
    """
    path = RESULT.with_name("predict_memory.json")
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    more = [row["activation_mb"] - row["predicted_activation_mb"] for row in rows]
    base = round(float(np.median(more)), 1)
    errors = [
        (row["weights_mb"] + row["predicted_activation_mb"] + base)
        / (row["engine_mb"] + row["activation_mb"])
        - 1
        for row in rows
    ]
    return {"tensorrt": [base, round(float(np.median(np.abs(errors))), 3)]}


def cpu_name() -> str:
    """The CPU whose points are there, or ''."""
    path = PREDICTION / "points" / "cpu.toml"
    if not path.exists():
        return ""
    return str(tomllib.loads(path.read_text(encoding="utf-8"))["cpu"])


def main() -> None:
    """Fit, leave out, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    asked = parser.parse_args()
    fitted, results = analyse([fitting.case(point) for point in fitting.read()])
    fitted["sources"] = (
        "published latencies (points/published.csv names each source) and this CPU, measured"
    )
    sys.stdout.write(report.section(results, COMMAND) + "\n")
    if not asked.check:
        files.write_text(FILE, report.as_toml(fitted, COMMAND))
        files.write_text(RESULT, json.dumps(results, indent=1) + "\n")
        page.write_section(
            ROOT / "docs" / "predict.md", results["script"], report.section(results, COMMAND)
        )


if __name__ == "__main__":
    main()
