"""Reading an ONNX file: checked, its functions inlined, and what edgekit cannot run refused."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx.inliner
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from edgekit.errors import EdgekitError
from edgekit.families.onnx_graph.table import Known, operators

#: The note of torch's exporter on the modules that a node belongs to.
MODULE_PATH = "pkg.torch.onnx.name_scopes"
#: Before it, broadcasting was an attribute.
LEAST_OPSET = 7
QUANTIZED = {
    "QuantizeLinear",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "MatMulInteger",
    "ConvInteger",
    "QLinearConv",
    "QLinearMatMul",
}
CONTROL = {"If", "Loop", "Scan", "SequenceMap"}
#: domain -> the operators of it that are read like ONNX's own.
DOMAINS = {"": None, "ai.onnx": None, "com.microsoft": {"Gelu"}}
_DTYPES: dict[int, str] = {
    TensorProto.FLOAT: "float32",
    TensorProto.FLOAT16: "float16",
    TensorProto.INT64: "int64",
    TensorProto.INT32: "int32",
    TensorProto.BOOL: "bool",
}
_CONSTANTS = {*_DTYPES, TensorProto.DOUBLE, TensorProto.UINT8, TensorProto.INT8, TensorProto.INT16}


@dataclass(frozen=True)
class Node:
    """One operator's call.

    Attributes:
        kind: the operator's name.
        inputs, outputs: names of values; an absent one is ''.
        attributes: by ONNX name, as Python values.
        scopes: the modules of the user's code around it, outermost first, where noted.
    """

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]
    scopes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.kind} {self.name or self.outputs[0]!r}"


@dataclass(frozen=True)
class Interface:
    """One input as the file declares it; a dynamic dimension is its name, or ''."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str


@dataclass(frozen=True)
class File:
    """What a file holds.

    Attributes:
        constants: the initializers by name.
        outputs: names of values.
    """

    path: Path
    opset: int
    inputs: tuple[Interface, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    constants: dict[str, Known]


def read(path: Path) -> File:
    """The file at ``path``, with its external data.

    Raises:
        EdgekitError: it is missing, damaged or invalid, is quantized already, or holds control
            flow, other domains or operators that edgekit does not know; each is named.
    """
    model = _load(path)
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    opset = next((i.version for i in model.opset_import if i.domain in ("", "ai.onnx")), 0)
    if opset < LEAST_OPSET:
        raise EdgekitError(
            f"{path} is of ONNX opset {opset}.",
            f"edgekit reads opset {LEAST_OPSET} and later.",
            "Convert it with onnx.version_converter.convert_version(model, 17).",
        )
    _refuse(path, model.graph.node)
    if model.graph.sparse_initializer:
        raise EdgekitError(f"{path} holds sparse weights, which edgekit does not read.")
    constants = {t.name: _array(path, t) for t in model.graph.initializer}
    return File(
        path=path,
        opset=opset,
        inputs=tuple(_interface(path, v) for v in model.graph.input if v.name not in constants),
        outputs=tuple(value.name for value in model.graph.output),
        nodes=tuple(_node(path, node) for node in model.graph.node),
        constants=constants,
    )


def _load(path: Path) -> onnx.ModelProto:
    if not path.is_file():
        raise EdgekitError(f"{path} does not exist.", "", f"Check the path; this is {Path.cwd()}.")
    try:
        onnx.checker.check_model(str(path))
        return onnx.load(str(path))
    except (DecodeError, onnx.checker.ValidationError, OSError, ValueError) as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise EdgekitError(
            f"{path} is not a valid ONNX model.",
            " ".join(lines[:2]),
            "Export it again; weights in files of their own must lie beside it.",
        ) from error


def _refuse(path: Path, nodes: Iterable[onnx.NodeProto]) -> None:
    """Raise if any node cannot be run, naming the first of each such operator."""
    foreign: dict[str, str] = {}
    unknown: dict[str, str] = {}
    for node in nodes:
        where = node.name or ", ".join(node.output)
        if node.op_type in QUANTIZED or node.op_type.startswith("QLinear"):
            raise EdgekitError(
                f"{path} is quantized already: it holds {node.op_type} ({where}).",
                "edgekit sets scales from the original weights.",
                "Give the model in floating point, from before it was quantized.",
            )
        if node.op_type in CONTROL:
            raise EdgekitError(
                f"{path} holds control flow: {node.op_type} ({where}).",
                "edgekit converts graphs without branches and loops.",
                "Export with torch.onnx.export(dynamo=True), which unrolls them, or fold the "
                "constant ones with onnxslim.",
            )
        taken = DOMAINS.get(node.domain, set())
        if taken is not None and node.op_type not in taken:
            foreign.setdefault(f"{node.domain}.{node.op_type}", where)
        elif node.op_type not in operators() and node.op_type != "Constant":
            unknown.setdefault(node.op_type, where)
    for found, why in (
        (foreign, "They are no part of ONNX; often an optimiser of one runtime put them there."),
        (unknown, f"It knows {len(operators())} operators."),
    ):
        if found:
            shown = ", ".join(f"{kind} ({where})" for kind, where in found.items())
            raise EdgekitError(
                f"{path} holds operators that edgekit does not read: {shown}.",
                why,
                "Export the model without them, or give its PyTorch source.",
            )


def _interface(path: Path, value: onnx.ValueInfoProto) -> Interface:
    kind = value.type.tensor_type
    dtype = _DTYPES.get(kind.elem_type)
    if not value.type.HasField("tensor_type") or not kind.HasField("shape") or dtype is None:
        shown = TensorProto.DataType.Name(kind.elem_type)
        raise EdgekitError(
            f"Input {value.name} of {path} is of a kind that edgekit does not take.",
            f"Its type is {shown}; edgekit takes tensors of {', '.join(_DTYPES.values())} "
            "with a known number of dimensions.",
            "Export the model with such inputs.",
        )
    dims = (d.dim_value if d.HasField("dim_value") else d.dim_param for d in kind.shape.dim)
    return Interface(value.name, tuple(dims), dtype)


def _node(path: Path, node: onnx.NodeProto) -> Node:
    # Only here: names.py names a Node's type.
    from edgekit.families.onnx_graph.names import scopes

    notes = {note.key: note.value for note in node.metadata_props}
    return Node(
        kind=node.op_type,
        name=node.name,
        inputs=tuple(node.input),
        outputs=tuple(node.output),
        attributes=dict(_attributes(path, node)),
        scopes=scopes(notes.get(MODULE_PATH, "")),
    )


def _attributes(path: Path, node: onnx.NodeProto) -> Iterator[tuple[str, Any]]:
    for attribute in node.attribute:
        value = helper.get_attribute_value(attribute)
        if attribute.type == AttributeProto.TENSOR:
            yield attribute.name, _array(path, value)
        elif attribute.type == AttributeProto.STRING:
            yield attribute.name, value.decode()
        elif attribute.type in (AttributeProto.INTS, AttributeProto.FLOATS):
            yield attribute.name, tuple(value)
        else:
            yield attribute.name, value


def _array(path: Path, stored: TensorProto) -> Known:
    if stored.data_type not in _CONSTANTS:
        shown = TensorProto.DataType.Name(stored.data_type)
        raise EdgekitError(
            f"{path} holds a constant of {shown}: {stored.name or 'in a node'}.",
            "edgekit reads weights in float32 or float16, and plain integers.",
            "Export the model in float32.",
        )
    value: Known = np.asarray(numpy_helper.to_array(stored))
    return value
