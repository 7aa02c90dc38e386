"""Plan: what a model of any size would need, found on the meta device.

No weight is read and none is made: a model of 20 billion parameters is planned in seconds, in
the memory of a small one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekit import families, targets
from edgekit.model import Input
from edgekit.recipe import Recipe
from edgekit.targets import Target

if TYPE_CHECKING:
    import torch

#: Bytes of a weight that is a matrix, and of any other, by the dtype of the matrices. Biases and
#: norms stay in half precision, and so do embeddings, which are looked up and not multiplied.
BYTES = {"fp32": (4.0, 4), "fp16": (2.0, 2), "int8": (1.0, 2), "int4": (0.5, 2)}
#: Values that share a 16-bit scale in int4; in int8, which has a 32-bit one for each row, the
#: scales are not worth counting.
GROUP = 128
NOTE = (
    "Weights only: activations, the runtime's workspace and what else is on the device come on "
    "top, and were not estimated."
)


@dataclass(frozen=True)
class Plan:
    """What ``inspect --plan`` says of a model.

    Attributes:
        parameters: how many numbers are learned.
        operations: multiply-accumulates of a call's products and convolutions, at the sizes of
            ``inputs``. Of routed experts all are counted, as all are computed in what is exported.
        weights_gb: the size of all weights by the dtype of the matrices among them, in 10**9 bytes.
        fits: target -> the dtypes that it runs in whose weights are smaller than its memory.
        inputs, outputs: as the model takes and gives them.
        note: what is not counted.
    """

    source: str
    parameters: int
    operations: int
    weights_gb: dict[str, float]
    fits: dict[str, str]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    note: str = NOTE


def plan(recipe: Recipe) -> Plan:
    """Count a model's parameters and operations, and compare its weights with devices.

    Args:
        recipe: of which only the model and its making are looked at, and the targets: none is all.

    Raises:
        EdgekitError: no such model or target, or the model cannot be made without values.
    """
    from edgekit.compress import measure

    devices = [targets.load(name) for name in recipe.targets or targets.names()]
    inputs = tuple(Input.parse(text) for text in recipe.inputs)
    options = families.Options(inputs=inputs, arguments=recipe.arguments)
    model = families.outline(recipe.model, options).with_batch(recipe.batch)
    size = weights_gb(model.module)
    return Plan(
        source=model.source,
        parameters=sum(p.numel() for p in model.module.parameters()),
        operations=measure.operations(model),
        weights_gb={dtype: round(gigabytes, 3) for dtype, gigabytes in size.items()},
        fits={target.name: fits(target, size) for target in devices if target.memory_gb},
        inputs=tuple(str(spec) for spec in model.inputs),
        outputs=model.outputs,
    )


def weights_gb(module: torch.nn.Module) -> dict[str, float]:
    """The size of a module's parameters by the dtype of its matrices, in 10**9 bytes."""
    matrices, others = _count(module)
    found = {
        dtype: (matrices * inner + others * outer) / 1e9 for dtype, (inner, outer) in BYTES.items()
    }
    found["int4"] += 2 * matrices / GROUP / 1e9
    return found


def _count(module: torch.nn.Module) -> tuple[int, int]:
    """Elements of the matrices and kernels that are multiplied with, and of the rest."""
    import torch

    embeddings = (m for m in module.modules() if isinstance(m, torch.nn.Embedding))
    tables = {id(m.weight) for m in embeddings}
    parameters = list(module.parameters())
    matrices = sum(p.numel() for p in parameters if p.dim() > 1 and id(p) not in tables)
    return matrices, sum(p.numel() for p in parameters) - matrices


def fits(target: Target, size: dict[str, float]) -> str:
    """``fp16, int8 (of 24 GB)``, or that none does."""
    memory = target.memory_gb or 0.0
    able = _names(dtype for dtype, gb in size.items() if dtype in target.dtypes and gb < memory)
    return f"{able or 'none'} (of {memory:g} GB)"


def _names(dtypes: Iterable[str]) -> str:
    return ", ".join(dtypes)
