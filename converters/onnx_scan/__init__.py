"""Recurrences and attention as ONNX writes them: what becomes of each opaque operator.

One file an operator, named as in ``edgekit/operators``: ``portable`` is its form for any runtime,
``native`` that for a runtime with a kernel of its own (``native`` in ``targets/rules.py``).

A recurrence becomes an ONNX Scan over time, or over chunks of it: the length stays dynamic, from
1 on, and the number of nodes does not depend on it. What is not recurrent is computed outside of
the Scan, for all steps at once. Recurrences run in float32, whatever dtypes they are given.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Collection, Sequence
from typing import Any

FLOAT = 1


def table(native: Collection[str]) -> dict[Any, Any]:
    """What makes ONNX operators of ours, by operator.

    Args:
        native: names of the operators that the runtime has kernels of its own for.
    """
    import torch

    found = {}
    for file in pkgutil.iter_modules(__path__):
        forms = importlib.import_module(f"{__name__}.{file.name}")
        form = getattr(forms, "native" if file.name in native else "portable", None)
        if form is not None:
            importlib.import_module(f"edgekit.operators.{file.name}")  # registers it
            found[getattr(torch.ops.edgekit, file.name).default] = form
    return found


def wide(*values: Any) -> list[Any]:
    """The values in float32."""
    from onnxscript import opset20 as op

    return [value if value.dtype == FLOAT else op.Cast(value, to=FLOAT) for value in values]


def like(result: Any, source: Any) -> Any:
    """A float32 result in the dtype of the value that it stands for."""
    from onnxscript import opset20 as op

    return result if source.dtype == FLOAT else op.Cast(result, to=int(source.dtype))


def constant(array: Any) -> Any:
    """A NumPy array, or what becomes one, as a constant of its dtype."""
    import numpy as np
    import onnx_ir as ir
    from onnxscript import opset20 as op

    return op.Constant(value=ir.tensor(np.asarray(array)))


def by_time(value: Any, batch: Any, *inner: int) -> Any:
    """(b, L, m) as rows of steps (L, b, *inner), ``inner`` being m, perhaps beside ones."""
    from onnxscript import opset20 as op

    if batch != 1:  # of one sample, the copy is saved
        value = op.Transpose(value, perm=[1, 0, 2])
    return op.Reshape(value, constant([-1, 1, *inner] if batch == 1 else [0, 0, *inner]))


def by_batch(value: Any, source: Any) -> Any:
    """Stacked steps (L, b, ..., m) in the layout and the dtype of ``source`` (b, L, m)."""
    from onnxscript import opset20 as op

    batch, _, size = source.shape
    if batch == 1:
        return like(op.Reshape(value, constant([1, -1, size])), source)
    joined = op.Reshape(value, constant([0, -1, size]))
    return like(op.Transpose(joined, perm=[1, 0, 2]), source)


def scan(
    body: Callable[..., Sequence[Any]], states: Sequence[Any], rows: Sequence[Any]
) -> Sequence[Any]:
    """An ONNX Scan along axis 0 of ``rows``.

    Args:
        body: from the states and one entry of each row to the next states and what is stacked;
            it may use values from outside.
        states: what the first step starts from, in float32.
        rows: in float32.

    Returns:
        The last states, then the stacked outputs.
    """
    import onnx_ir as ir
    from onnxscript import evaluator

    kind = ir.TensorType(ir.DataType.FLOAT)
    inputs = [ir.Value(type=kind) for _ in (*states, *rows)]
    outside = evaluator.default()
    inside = type(outside)(outside.opset, {})  # its constants are its own
    with evaluator.default_as(inside):
        results = body(*inputs)
    for result in results:
        result.type = kind
    step = ir.Graph(inputs, results, nodes=inside.nodes, name="step")
    attributes = {"body": step, "num_scan_inputs": len(rows)}
    return record("", "Scan", [*states, *rows], len(results), attributes)


def record(
    domain: str, name: str, inputs: Sequence[Any], outputs: int, attributes: dict[str, Any]
) -> Sequence[Any]:
    """A call of an operator that has no function in onnxscript, or several results."""
    import onnx_ir as ir
    from onnxscript import evaluator

    made = ir.convenience.convert_attributes(attributes)
    node = ir.Node(domain, name, inputs, made, num_outputs=outputs)
    evaluator.default().nodes.append(node)
    return node.outputs
