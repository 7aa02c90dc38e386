"""Groups: operators that a runtime runs as one kernel, and what each computes and moves.

Numbers are of elements, not bytes: one list of groups serves every precision and device. Those of
activations are of one call with the batch that was counted at.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

#: Classes of operators. ``conv`` is a convolution over several places; ``product`` a linear, a
#: convolution that is one (1x1, or of patches), or a product of two activations; ``depthwise`` a
#: convolution of a channel or few alone; ``scan`` a recurrence; ``reduce`` a normalisation,
#: softmax, pooling or resizing; ``pointwise`` a chain that nothing else takes in; ``move`` a copy.
KINDS = (
    "conv",
    "product",
    "depthwise",
    "attention",
    "scan",
    "reduce",
    "pointwise",
    "move",
)


@dataclass(frozen=True)
class Group:
    """One kernel's work, if the runtime fuses it.

    Attributes:
        kind: one of ``KINDS``.
        operator: what it is built around, such as ``conv2d`` or ``mamba_scan``.
        module: the path of the module in the user's code.
        site: what quantization calls it: ``linear``, ``conv``, ``attention``, or '' where it
            stays in float.
        as_product: whether a convolution is a product, which some runtimes quantize only.
        flops: twice the multiply-accumulates.
        rows, columns, depth: of the product that it comes to: results are rows x columns, each a
            sum of ``depth`` terms. Of a scan, ``depth`` is how many steps follow each other.
        reads, writes: activations from and to other groups.
        integer_reads, integer_writes: those of them that only quantized layers read.
        weights: numbers of its kernel or matrix.
        constants: other numbers that are read and not computed, such as biases.
        scores: what attention or a scan holds in between where it is not fused.
        inner: what passes between its operators, which fusion spares memory.
        steps: operators that were fused into it.
        count: how many such groups there are.
    """

    kind: str
    operator: str
    module: str = ""
    site: str = ""
    as_product: bool = False
    flops: float = 0.0
    rows: float = 0.0
    columns: float = 0.0
    depth: float = 0.0
    reads: float = 0.0
    writes: float = 0.0
    integer_reads: float = 0.0
    integer_writes: float = 0.0
    weights: float = 0.0
    constants: float = 0.0
    scores: float = 0.0
    inner: float = 0.0
    steps: int = 0
    count: int = 1


#: What grows with the batch.
SCALING = "flops rows reads writes integer_reads integer_writes scores inner".split()


def batched(group: Group, times: int) -> Group:
    """The group in a call with ``times`` as many samples."""
    return replace(group, **{name: getattr(group, name) * times for name in SCALING})


def merged(groups: Iterable[Group]) -> list[Group]:
    """Equal groups as one, whose modules are forgotten."""
    counts: dict[Group, int] = {}
    for group in groups:
        key = replace(group, module="", count=1)
        counts[key] = counts.get(key, 0) + group.count
    return [replace(group, count=count) for group, count in counts.items()]


def to_rows(groups: Sequence[Group]) -> dict[str, Any]:
    """For JSON: names of columns, and a row a group."""
    names = [field.name for field in fields(Group) if field.name != "module"]
    rows = [[_short(asdict(group)[name]) for name in names] for group in groups]
    return {"columns": names, "rows": rows}


def from_rows(stored: dict[str, Any]) -> list[Group]:
    """What ``to_rows`` gave."""
    return [Group(**dict(zip(stored["columns"], row, strict=True))) for row in stored["rows"]]


def _short(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value
