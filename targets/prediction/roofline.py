"""Roofline: what a group of operators takes on a machine.

    t = compute + memory + launch

    compute = flops / (rate[dtype] share[kind] fill)
    fill    = waves / (waves + w) depth / (depth + k) columns / (columns + c)
    memory  = bytes / (bandwidth stream[kind] (1 + boost cache / (cache + bytes)))
    launch  = kernels cycles / clock

``waves`` is how many times the results, in tiles of 128 x 64, cover all multiprocessors. Shares,
the three half-sizes and the cycles are fitted (``fitted.toml``), each with what it was thought to
be before; a runtime other than TensorRT has deviations from them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from math import ceil, log2
from typing import Any, Literal

import numpy as np

from edgekit.targets.prediction.groups import KINDS, SCALING, Group
from edgekit.targets.prediction.machine import BYTES, Machine, Numbers, Runtime
from edgekit.targets.rules import Rules

Array = np.ndarray[Any, np.dtype[np.float64]]
Bound = Literal["compute", "memory", "launch"]
BOUNDS: tuple[Bound, Bound, Bound] = ("compute", "memory", "launch")

TILE = 128.0 * 64.0
#: What multiplies and adds so much that arithmetic may be what it waits for.
COMPUTING = ("conv", "product", "depthwise", "attention", "scan")
#: What has weights.
WEIGHTED = ("conv", "product", "depthwise")
#: Parameter -> (what it is thought to be before any point is seen, by what factor that may be
#: wrong), the factor as one standard deviation of a logarithm.
PRIOR: dict[str, tuple[float, float]] = {
    "share.conv": (0.6, 0.5),
    "share.product": (0.6, 0.5),
    "share.depthwise": (0.1, 0.7),
    "share.attention": (0.3, 0.7),
    "share.scan": (0.1, 0.7),
    "dtype.simt": (1.3, 0.4),
    "dtype.tf32": (1.0, 0.4),
    "dtype.int8": (0.8, 0.4),
    "half.waves": (0.3, 0.7),
    "half.depth": (64.0, 0.7),
    "half.columns": (32.0, 0.7),
    "stream.conv": (0.75, 0.4),
    "stream.product": (0.75, 0.4),
    "stream.depthwise": (0.5, 0.5),
    "stream.attention": (0.75, 0.5),
    "stream.scan": (0.5, 0.5),
    "stream.reduce": (0.75, 0.4),
    "stream.pointwise": (0.75, 0.4),
    "stream.move": (0.75, 0.5),
    "cache.boost": (1.5, 0.7),
    "launch.cycles": (4000.0, 0.7),
    "pipeline.ms": (0.3, 0.7),
}
#: By what factor these may differ in another runtime than TensorRT.
DEVIATIONS = (
    "share.conv",
    "share.product",
    "share.depthwise",
    "share.attention",
    "share.scan",
    "dtype.int8",
    "stream",
    "launch",
)
DEVIATION = 0.5
#: What a deviation is thought to be, if not 1: where the peaks themselves were measured, by the
#: runtime's own product of matrices, nearly all of them is reached.
EXPECTED = {
    f"{runtime}.share.{kind}": 1 / 0.6
    for runtime in ("onnxruntime", "openvino")
    for kind in ("conv", "product")
}


@dataclass(frozen=True)
class Load:
    """Groups on a machine in a precision, as arrays: one entry a group.

    Attributes:
        kinds, dtypes: places in ``KINDS`` and ``DTYPES``.
        runtime: the row of the table of parameters that holds for it.
        ideal, moved: seconds of its arithmetic and of its bytes at the machine's peaks.
        cached: the share of the bytes that the last cache would hold.
        waves, depth, columns: as above.
        floors: seconds that its kernels cost at ``PRIOR``'s cycles.
        count: how many there are of it.
    """

    kinds: np.ndarray[Any, np.dtype[np.int64]]
    dtypes: np.ndarray[Any, np.dtype[np.int64]]
    runtime: np.ndarray[Any, np.dtype[np.int64]]
    ideal: Array
    moved: Array
    cached: Array
    waves: Array
    depth: Array
    columns: Array
    floors: Array
    count: Array


#: fp8 is taken to be multiplied as well as int8. Rates that were measured need no factor.
DTYPES = ("fp16", "simt", "tf32", "int8", "fp8", "measured fp32", "measured int8")


def quantized(group: Group, rules: Rules) -> bool:
    """Whether a runtime with these rules quantizes a group that can be."""
    if group.as_product and group.site == "conv":
        return rules.takes("conv") or "conv_as_linear" in rules.quantized_rewrites
    return bool(group.site) and rules.takes(group.site)


def load_of(
    groups: Sequence[Group],
    machine: Machine,
    runtime: Runtime,
    numbers: Numbers,
    rules: Rules,
    title: str,
    tf32: bool,
    batch: float = 1.0,
) -> Load:
    """What groups ask of a machine.

    Args:
        title: of the device, for errors.
        tf32: whether it multiplies fp32 as TF32.
        batch: how many times more samples than were counted.

    Raises:
        EdgekitError: a rate that is needed is not known.
    """
    n = {name: _column(groups, name, batch) for name in _COLUMNS}
    kinds = np.array([KINDS.index(group.kind) for group in groups])
    scheme = numbers.weight != numbers.float
    chosen = np.array([scheme and quantized(group, rules) for group in groups], bool)
    dtype = {numbers.float, numbers.compute if chosen.any() else numbers.float}
    rates = {name: machine.rate(name, title) for name in dtype}
    rate = np.where(chosen, rates.get(numbers.compute, np.nan), rates[numbers.float])
    computes = np.array([group.kind in COMPUTING for group in groups])
    names = {"fp32": "tf32" if tf32 else "simt", "fp16": "fp16", "int8": "int8", "fp8": "fp8"}
    if machine.floor is not None:
        names |= {"fp32": "measured fp32", "int8": "measured int8"}
    codes = {key: DTYPES.index(value) for key, value in names.items()}
    whole = BYTES[numbers.float]
    waves = n["rows"] * n["columns"] / TILE / (machine.cores or 1)
    moved = _moved(groups, n, runtime, numbers, chosen)
    kernels = np.array([_kernels(group, runtime, numbers) for group in groups])
    floor = PRIOR["launch.cycles"][0] / machine.clock if machine.floor is None else machine.floor
    return Load(
        kinds=kinds,
        dtypes=np.where(chosen, codes[numbers.compute], codes[numbers.float]),
        ideal=np.where(computes, n["flops"] / rate, 0.0),
        runtime=np.zeros(len(groups), np.int64),
        moved=moved / machine.bandwidth,
        cached=machine.cache / (machine.cache + moved + 1.0),
        waves=waves if machine.cores else np.full_like(waves, np.inf),
        # A tile's rows are so many bytes: of narrower numbers, more terms fill them.
        depth=np.maximum(n["depth"], 1.0) * np.where(chosen, BYTES[numbers.compute], whole) / 2,
        columns=np.maximum(n["columns"], 1.0),
        floors=kernels * floor,
        count=n["count"],
    )


_COLUMNS = (*SCALING, "depth", "columns", "weights", "constants", "count")


def _column(groups: Sequence[Group], name: str, batch: float) -> Array:
    values = np.array([getattr(group, name) for group in groups], float)
    return values * batch if name in SCALING else values


def _moved(
    groups: Sequence[Group],
    n: Mapping[str, Array],
    runtime: Runtime,
    numbers: Numbers,
    chosen: np.ndarray[Any, np.dtype[np.bool_]],
) -> Array:
    """Bytes from and to memory."""
    whole = BYTES[numbers.float]
    passed = BYTES[numbers.activation] if runtime.integers else whole
    moved = (n["reads"] - n["integer_reads"] + n["writes"] - n["integer_writes"]) * whole
    moved += (n["integer_reads"] + n["integer_writes"]) * passed
    moved += n["weights"] * np.where(chosen, BYTES[numbers.weight], whole)
    moved += n["constants"] * whole
    if not runtime.fuses:
        moved += n["inner"] * whole
    attention = np.array([group.kind == "attention" for group in groups])
    if numbers.float not in runtime.attention:
        moved += np.where(attention, 4 * n["scores"] * whole, 0.0)
    scans = np.array([group.kind == "scan" for group in groups])
    steps = np.ceil(np.log2(np.maximum(n["depth"], 2)))
    passes = 2.0 if runtime.loops else 2.0 + steps
    return moved + np.where(scans, passes * n["scores"] * 4.0, 0.0)


def _kernels(group: Group, runtime: Runtime, numbers: Numbers) -> float:
    if group.kind == "attention" and numbers.float not in runtime.attention:
        return 3.0
    if group.kind == "scan":
        return _loops(group) if runtime.loops else 6.0 * ceil(log2(max(group.depth, 2)))
    return 1.0 if runtime.fuses else 1.0 + group.steps


def _loops(group: Group) -> float:
    """Kernels of a recurrence that is a loop; those with a kernel of their own are one."""
    one = {"ssd": 1.0, "gated_delta": 1.0, "lmu": group.depth / 8}
    return one.get(group.operator, 6.0 * group.depth)


def values(parameters: Mapping[str, float], runtime: str) -> Array:
    """A runtime's parameters in ``PRIOR``'s order: TensorRT's, times its deviations."""
    found = []
    for name in PRIOR:
        keys = (f"{runtime}.{name}", f"{runtime}.{name.partition('.')[0]}")
        deviation = parameters.get(keys[0], 1.0) * parameters.get(keys[1], 1.0)
        found.append(parameters[name] * deviation)
    return np.array(found)


def times(load: Load, table: Array) -> tuple[Array, Array, Array]:
    """Seconds of each group's compute, memory and launch, one of each kind.

    Args:
        table: a row of ``values`` for each of ``load.runtime``.
    """
    p = np.concatenate((table, np.ones((len(table), 1))), 1)  # the last stands for none
    row = load.runtime
    fill = 1.0 / (1.0 + p[row, _AT["half.waves"]] / load.waves)
    dense = np.isin(load.kinds, _DENSE)
    fill *= np.where(dense, load.depth / (load.depth + p[row, _AT["half.depth"]]), 1.0)
    fill *= np.where(dense, load.columns / (load.columns + p[row, _AT["half.columns"]]), 1.0)
    compute = load.ideal / (p[row, _SHARE[load.kinds]] * p[row, _DTYPE[load.dtypes]] * fill)
    boost = 1.0 + p[row, _AT["cache.boost"]] * load.cached
    memory = load.moved / (p[row, _STREAM[load.kinds]] * boost)
    launch = load.floors * p[row, _AT["launch.cycles"]] / PRIOR["launch.cycles"][0]
    return compute, memory, launch


def joined(loads: Sequence[Load], runtimes: Sequence[int]) -> Load:
    """Several loads as one, each with its row of the table."""
    parts = [replace(x, runtime=x.runtime + r) for x, r in zip(loads, runtimes, strict=True)]
    names = [field.name for field in fields(Load)]
    return Load(**{name: np.concatenate([getattr(x, name) for x in parts]) for name in names})


_DENSE = [KINDS.index("conv"), KINDS.index("product")]
_AT = {name: place for place, name in enumerate(PRIOR)}
_SHARE = np.array([_AT.get(f"share.{kind}", len(PRIOR)) for kind in KINDS])
_STREAM = np.array([_AT[f"stream.{kind}"] for kind in KINDS])
_DTYPE = np.array([_AT.get(f"dtype.{name}", len(PRIOR)) for name in DTYPES])
_DTYPE[DTYPES.index("fp8")] = _AT["dtype.int8"]


def total(compute: Array, memory: Array, launch: Array) -> Array:
    """Seconds of each group. That nothing overlaps fits better than that all does."""
    return compute + memory + launch


def bounds(compute: Array, memory: Array, launch: Array) -> list[Bound]:
    """Which of the three is the longest."""
    return [BOUNDS[int(i)] for i in np.argmax(np.stack((compute, memory, launch)), 0)]
