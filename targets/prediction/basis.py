"""Basis: what a prediction rests on, and how wide its error bar is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log

from edgekit.targets import Target
from edgekit.targets.prediction.fitted import Device, Fitted, Spread
from edgekit.targets.prediction.groups import KINDS
from edgekit.targets.prediction.machine import AS, Numbers, Runtime
from edgekit.targets.prediction.roofline import COMPUTING, DTYPES, WEIGHTED, Array, Load


@dataclass(frozen=True)
class Basis:
    """What a prediction rests on.

    Attributes:
        text: a sentence: what was fitted on, and what the error bar is of.
        spread: how far predictions of this sort were off where they were held out.
        near: whether points are of this very device and runtime.
        notes: what makes this one less certain than that.
    """

    text: str
    spread: Spread
    near: bool
    notes: tuple[str, ...]


def device_of(known: Fitted, target: Target, runtime: Runtime, threads: int) -> Device | None:
    """What is known of this very device in its runtime, if points are of it."""
    if target.peak:
        return known.devices.get(f"{target.name}/{runtime.name}")
    from edgekit.machine import environment

    # Whatever machine runs this is known if it is the one whose points there are.
    here = str(environment().get("cpu")) == known.cpu
    return known.devices.get(f"cpu/{runtime.name}") if here and threads == 1 else None


def basis_of(
    known: Fitted,
    target: Target,
    runtime: Runtime,
    strange: float,
    threads: int,
) -> tuple[Basis, float]:
    """What a prediction rests on, and the factor of its interval."""
    near = device_of(known, target, runtime, threads) is not None
    spread = known.seen if near else known.unseen.get(runtime.name, known.unseen["all"])
    notes = []
    if not target.peak:
        notes.append(f"this CPU's peaks were measured here, on {threads} thread(s)")
    if not near:
        notes.append(f"no point is of this device in {runtime.name}: a wider bar")
    alone = runtime.name in known.unseen and known.unseen[runtime.name].devices == 1
    if alone and not near:
        spread = known.unseen["all"]
        notes.append(
            f"points of {runtime.name} are of one CPU alone, on one thread: how far off others are "
            "is not known, and the bar is that of other runtimes"
        )
    if target.runtime in AS:
        notes.append(f"points are of TensorRT 8.6 to 10; {target.runtime} is taken to be as quick")
    if strange > 0.05:
        notes.append(
            f"{strange:.0%} of the time goes to operators in dtypes that no point of "
            f"{runtime.name} has: a wider bar"
        )
    overall = known.unseen["all"]
    devices = len({key.partition("/")[0] for key in known.devices})
    text = (
        f"predicted, not measured: fitted on {known.points} points of {devices} devices; "
        f"median error {overall.median_error:.0%} leaving the device out"
    )
    if near:
        text += f", {known.seen.median_error:.0%} on a device that points are of, as here"
    elif runtime.name in known.unseen and not alone:
        text += f", {spread.median_error:.0%} in {runtime.name}"
    return Basis(text, spread, near, tuple(notes)), exp(log(spread.factor) * (1 + strange))


def strangeness(known: Fitted, runtime: str, names: Sequence[str], ms: Array) -> float:
    """The share of the time in classes of operators that no point of the runtime has."""
    seen = set(known.known.get(runtime, ()))
    return float(sum(t for name, t in zip(names, ms, strict=True) if name not in seen) / ms.sum())


def class_names(load: Load, numbers: Numbers) -> list[str]:
    """``conv int8`` for each group; what does not multiply has no dtype of its own."""
    narrow = numbers.weight not in (numbers.float, numbers.compute)
    found = []
    for kind, dtype in zip(load.kinds, load.dtypes, strict=True):
        name = KINDS[int(kind)]
        if name in COMPUTING:
            name += f" {DTYPES[int(dtype)]}"
        found.append(
            f"{name} by {numbers.weight}" if narrow and name.split()[0] in WEIGHTED else name
        )
    return found
