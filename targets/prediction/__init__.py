"""Prediction: latency and memory on a device that is not here, with an error bar.

A model is counted once (``counting``), as the groups that runtimes fuse it to; a roofline with few
fitted parameters says what each takes on a device (``roofline``); and how far such predictions
were off on devices that they were not fitted on is the error bar (``fitted``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekit.errors import EdgekitError
from edgekit.targets import Target
from edgekit.targets.prediction.basis import (
    Basis,
    basis_of,
    class_names,
    device_of,
    strangeness,
)
from edgekit.targets.prediction.fitted import fitted
from edgekit.targets.prediction.machine import (
    AS,
    RUNTIMES,
    Machine,
    Numbers,
    Runtime,
    machine_of,
    multiplies_tf32,
)
from edgekit.targets.prediction.roofline import (
    BOUNDS,
    DTYPES,
    Array,
    Bound,
    Load,
    bounds,
    load_of,
    times,
    total,
    values,
)
from edgekit.targets.rules import rules_for

if TYPE_CHECKING:
    from edgekit.model import Model
    from edgekit.targets.prediction.counting import Counted
    from edgekit.targets.prediction.memory import Memory

#: TensorRT fuses attention since this version.
FUSED_ATTENTION = (8, 6)


@dataclass(frozen=True)
class GroupTime:
    """One group of operators on the device.

    Attributes:
        kind, operator, module: what and where it is in the model.
        dtype: that it computes in.
        flops, bytes: that it computes and moves.
        bound: what it waits for: ``compute``, ``memory`` or ``launch``.
        milliseconds: of it, and of each of the three, which add up to it.
    """

    kind: str
    operator: str
    module: str
    dtype: str
    flops: float
    bytes: float
    bound: Bound
    milliseconds: float
    parts: dict[Bound, float]


@dataclass(frozen=True)
class Prediction:
    """A predicted latency; nothing here was measured.

    Attributes:
        source: the model.
        target, precision: of the device and the artifact.
        batch: samples a call.
        milliseconds: of a call on the device, copies to and from it not counted.
        low, high: nine in ten predictions of this sort would be within.
        memory: what it needs, by part, in megabytes.
        groups: what the time goes on, in the order in which it runs.
        basis: what it rests on.
    """

    source: str
    target: str
    precision: str
    batch: int
    milliseconds: float
    low: float
    high: float
    memory: Memory
    groups: tuple[GroupTime, ...]
    basis: Basis

    @property
    def memory_mb(self) -> float:
        """All memory that is known to be needed, in 10**6 bytes."""
        return self.memory.total

    @property
    def shares(self) -> dict[Bound, float]:
        """The share of the time that waits for each bound."""
        return {
            bound: sum(group.parts[bound] for group in self.groups) / self.milliseconds
            for bound in BOUNDS
        }


def predict(
    model: Model,
    target: Target,
    precision: str,
    batch: int | None = None,
    exclude: Sequence[str] = (),
    threads: int = 1,
) -> Prediction:
    """The latency and memory of a model on a device.

    Args:
        model: on torch's meta device it needs no memory.
        precision: of the artifact; nothing is calibrated.
        batch: samples a call; None is the model's own, 1 where it varies.
        exclude: globs over module paths that stay in float.
        threads: of a CPU.

    Raises:
        EdgekitError: the device does not run the precision or lacks a fact that is needed, or
            the model streams or cannot be exported.
    """
    from edgekit.targets.prediction.counting import count
    from edgekit.targets.prediction.shapes import exported

    target.require(precision)
    return forecast(
        count(exported(model, batch), model.source, exclude), target, precision, threads
    )


def forecast(counted: Counted, target: Target, precision: str, threads: int = 1) -> Prediction:
    """As ``predict``, of a model that has been counted.

    Raises:
        EdgekitError: the device does not run the precision, or lacks a fact that is needed.
    """
    from edgekit.targets.prediction.memory import memory_of

    target.require(precision)
    known, runtime, machine = fitted(), runtime_of(target), machine_for(target, threads)
    numbers, rules = Numbers.of(precision, target.float_dtype), rules_for(target)
    how = (machine, runtime, numbers, rules, target.title, multiplies_tf32(target))
    load = load_of(counted.groups, *how)
    parts = times(load, values(known.parameters, runtime.name)[None])
    device = device_of(known, target, runtime, threads)
    ms = total(*parts) * 1e3 * (device.factor if device else 1.0)
    names = class_names(load, numbers)
    strange = strangeness(known, runtime.name, names, ms)
    basis, factor = basis_of(known, target, runtime, strange, threads)
    whole = float(ms.sum())
    base = known.memory.get(runtime.name, (None, 0.0))[0]  # megabytes
    return Prediction(
        source=counted.source,
        target=target.name,
        precision=precision,
        batch=counted.batch,
        milliseconds=whole,
        low=whole / factor,
        high=whole * factor,
        memory=memory_of(counted, runtime, numbers, rules, base),
        groups=_groups(counted, load, machine, parts, ms),
        basis=basis,
    )


def machine_for(target: Target, threads: int = 1) -> Machine:
    """The target's facts, or this machine's where the target is whatever runs it.

    Raises:
        EdgekitError: a fact that is needed is not stated.
    """
    if not target.peak and target.runtime in ("onnxruntime", "openvino"):
        from edgekit.targets.prediction import this_cpu

        return this_cpu.machine(target.name, threads)
    return machine_of(target)


def runtime_of(target: Target) -> Runtime:
    """How the target's runtime is predicted.

    Raises:
        EdgekitError: it is not.
    """
    name = AS.get(target.runtime, target.runtime)
    if target.runtime == "tensorrt":
        version = tuple(int(part) for part in target.runtime_version.split(".")[:2])
        name = "tensorrt" if version >= FUSED_ATTENTION or not version else "tensorrt_8"
    if name not in RUNTIMES:
        raise EdgekitError(
            f"{target.title}: no latency is predicted.",
            f"{target.name} names no device, whose time the spikes of a call decide.",
            "edgekit inspect --spikes counts them.",
        )
    return RUNTIMES[name]


def _groups(
    counted: Counted,
    load: Load,
    machine: Machine,
    parts: tuple[Array, Array, Array],
    ms: Array,
) -> tuple[GroupTime, ...]:
    bound, scale = bounds(*parts), ms / total(*parts)
    each = [
        dict(zip(BOUNDS, row, strict=True))
        for row in (np.stack(parts, 1) * scale[:, None]).tolist()
    ]
    return tuple(
        GroupTime(
            kind=group.kind,
            operator=group.operator,
            module=group.module,
            dtype=DTYPES[load.dtypes[place]].replace("simt", "fp32").removeprefix("measured "),
            flops=group.flops,
            bytes=float(load.moved[place] * machine.bandwidth),
            bound=bound[place],
            milliseconds=float(ms[place]),
            parts=each[place],
        )
        for place, group in enumerate(counted.groups)
    )
