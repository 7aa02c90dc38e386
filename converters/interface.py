"""What an ONNX file takes and gives: names, dtypes, the range of each size that varies, states.

Our files say more than ONNX does, in three entries of their metadata, each absent where empty:

- ``edgekit.dims``: ``{name: [least, usual, most]}`` of the symbolic sizes of the inputs.
- ``edgekit.states``: ``[[input, output], ...]`` that a streaming model carries between calls.
- ``edgekit.discrete``: ``true`` of a model that computes levels (``edgekit.drift.tolerance_for``).

It is plain JSON all through, since the on-device kit reads it too.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from edgekit.errors import EdgekitError
from edgekit.model import BATCH

if TYPE_CHECKING:
    import onnx

    from edgekit.model import Graph

DIMS, STATES, DISCRETE = "edgekit.dims", "edgekit.states", "edgekit.discrete"


def metadata(graph: Graph) -> dict[str, str]:
    """What is written into the file of a graph."""
    dims = {name: [dim.least, dim.usual, dim.most] for name, dim in graph.dims.items()}
    states = [[state.name, state.output] for state in graph.states]
    said = ((DIMS, dims), (STATES, states), (DISCRETE, graph.discrete))
    return {key: json.dumps(value) for key, value in said if value}


def is_discrete(model: onnx.ModelProto) -> bool:
    """Whether a file is of a model that computes levels; one that does not say so is not."""
    return any(entry.key == DISCRETE for entry in model.metadata_props)


def interface(model: onnx.ModelProto) -> dict[str, Any]:
    """Inputs, outputs, dims and states of a file.

    Returns:
        ``inputs`` and ``outputs``, each a list of name, dtype and shape, where a size that varies
        is its name; ``dims`` and ``states`` as in the metadata. A file without metadata has the
        batches of ``edgekit.model.BATCH``.

    Raises:
        EdgekitError: an input has a size that varies, and the file does not say in what range.
    """
    stored = {entry.key: entry.value for entry in model.metadata_props}
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [_tensor(value) for value in model.graph.input if value.name not in constants]
    dims = json.loads(stored[DIMS]) if DIMS in stored else _batches(inputs)
    for spec in inputs:
        unknown = [axis for axis, n in enumerate(spec["shape"]) if _varies(n) and n not in dims]
        if unknown:
            raise EdgekitError(
                f"Input {spec['name']!r} has the size {spec['shape'][unknown[0]]!r} on axis "
                f"{unknown[0]}, of no known range.",
                f"The file's {DIMS} has {', '.join(dims) or 'no size'}.",
                "Export the model again with --input NAME:1xLEAST..USUAL..MOST, or fix the size.",
            )
    return {
        "inputs": inputs,
        "outputs": [_tensor(value) for value in model.graph.output],
        "dims": dims,
        "states": json.loads(stored.get(STATES, "[]")),
    }


def _batches(inputs: list[dict[str, Any]]) -> dict[str, list[int]]:
    """The range of the sizes that come first, in a file that does not say."""
    first = {spec["shape"][0] for spec in inputs if spec["shape"] and _varies(spec["shape"][0])}
    return {name: [BATCH.least, BATCH.usual, BATCH.most] for name in sorted(first)}


def _varies(size: int | str) -> bool:
    return isinstance(size, str)


def _tensor(value: onnx.ValueInfoProto) -> dict[str, Any]:
    """Name, dtype and shape; a size that varies is its name, "" where it has none."""
    import onnx

    kind = value.type.tensor_type
    sizes = [d.dim_value if d.HasField("dim_value") else d.dim_param for d in kind.shape.dim]
    dtype = str(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
    return {"name": value.name, "dtype": dtype, "shape": sizes}
