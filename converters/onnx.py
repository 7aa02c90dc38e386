"""onnx: one exported program to one ONNX file, through ``torch.onnx.export(dynamo=True)``.

The file has the graph's own names of inputs, outputs and sizes that vary, what
``converters/interface.py`` says of them, inferred shapes, and external data above 2 GB
(protobuf's limit). It is checked by ``onnx.checker`` before it takes its final name.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import files
from edgekit.converters import Artifact
from edgekit.converters.interface import interface, metadata
from edgekit.errors import EdgekitError
from edgekit.model import Dim, Input
from edgekit.targets import Target
from edgekit.targets.rules import rules_for

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.onnx import ONNXProgram

    from edgekit.model import Graph

NAME = "model.onnx"
RUNTIME = "onnxruntime"
ACCEPTS = "graph"
REQUIRES = {"onnx": "onnx", "onnxscript": "onnxscript"}
#: Opset 23 keeps attention whole, and TensorRT for RTX does not build that in fp32.
DEFAULT_OPSET = 20
#: What torch exports at the least; older runtimes get a converted file.
LEAST_OPSET = 18
#: What first has 4-bit weights, and scales by block.
BLOCKS_OPSET = 21
#: The note on a node that names the user's modules which it belongs to, outermost first.
MODULE_PATH = "pkg.torch.onnx.name_scopes"
_EXTERNAL_ABOVE = 2 * 1024**3 - 64 * 1024**2


def convert(source: Graph, out: Path, target: Target) -> Artifact:
    """Write ``out`` at the highest opset that both we and the target take.

    Raises:
        EdgekitError: torch cannot express the graph in ONNX, or the result is invalid.
    """
    opset = _opset(source, target)
    program = _export(source, max(opset, LEAST_OPSET), rules_for(target).native)
    with files.atomic(out) as room:
        _save(program, room)
        if opset < LEAST_OPSET:
            _lower_opset(room, opset)
        model = _check(room, source)
    nodes = Counter(node.op_type for node in model.graph.node)
    return Artifact("onnx", out, {"opset": opset, "nodes": dict(nodes.most_common())})


def _opset(source: Graph, target: Target) -> int:
    """The default, unless the target knows less, or the graph needs more."""
    from edgekit.edit import Editor
    from edgekit.quantize.place import DEQUANTIZE_GROUPS, INT4

    names = source.exported.state_dict
    grouped = next(Editor(source).calls(str(DEQUANTIZE_GROUPS)), None) is not None
    least = BLOCKS_OPSET if grouped or any(name.endswith(INT4) for name in names) else LEAST_OPSET
    ceiling = target.opset or DEFAULT_OPSET
    if least == BLOCKS_OPSET and ceiling < least:
        raise EdgekitError(
            f"{target.title} cannot read {source.precision} weights.",
            f"They need ONNX opset {least}; its runtime takes {ceiling} at most.",
            "Choose --precision int8 or w8a16 with --granularity channel.",
        )
    return max(min(DEFAULT_OPSET, ceiling), least if least == BLOCKS_OPSET else 0)


def _export(source: Graph, opset: int, native: frozenset[str]) -> ONNXProgram:
    import torch

    from edgekit.converters import onnx_ops

    try:
        with _quiet():
            program = torch.onnx.export(
                source.exported,
                (),
                dynamo=True,
                opset_version=opset,
                input_names=[spec.name for spec in source.inputs],
                output_names=list(source.outputs),
                dynamic_shapes=[_sizes(spec) for spec in source.inputs],
                custom_translation_table=onnx_ops.table(native),
                verbose=False,
            )
    except Exception as error:
        raise EdgekitError(
            "The model cannot be expressed in ONNX.", _cause(error), "Report the operator named."
        ) from error
    if program is None or program.exported_program is None:
        raise EdgekitError("torch.onnx.export gave no program.")
    _pack_int4(program)
    _restore_names(program, program.exported_program)
    _drop_traces(program)
    _name_bodies(program)
    program.model.metadata_props.update(metadata(source))
    return program


def _sizes(spec: Input) -> dict[int, str]:
    """The names of an input's sizes that vary, by axis."""
    return {axis: size.name for axis, size in enumerate(spec.shape) if isinstance(size, Dim)}


def _written(size: int | Dim) -> int | str:
    return size.name if isinstance(size, Dim) else size


def _restore_names(program: ONNXProgram, exported: ExportedProgram) -> None:
    """Call each value as the graph's node that it came from: the exporter numbers them anew.

    Where one node became several, the last one holds its value and has its name. A constant may
    have the name already, as where a node only passed it on.
    """
    values = {value.name: value for node in program.model.graph for value in node.outputs}
    kept = {value.name for value in program.model.graph.outputs}
    origins = {
        node.name: node.meta["from_node"][-1].name
        for node in exported.graph.nodes
        if node.meta.get("from_node") and node.name in values and node.name not in kept
    }
    taken = set(program.model.graph.initializers)
    last = {origin: name for name, origin in origins.items() if origin not in taken}
    for name, origin in origins.items():
        values[name].name = origin if last.get(origin) == name else f"{origin}/{name}"


def _pack_int4(program: ONNXProgram) -> None:
    """Store levels that fit 4 bits in 4 bits."""
    import onnx_ir as ir
    from ml_dtypes import int4

    from edgekit.quantize.place import INT4

    for name, value in program.model.graph.initializers.items():
        if name.endswith(INT4) and value.const_value is not None:
            levels = value.const_value.numpy().astype(int4)
            value.const_value = ir.tensor(levels, dtype=ir.DataType.INT4, name=name)
            value.dtype = ir.DataType.INT4


def _drop_traces(program: ONNXProgram) -> None:
    """Of what the exporter notes on each node, keep the path of the user's module.

    The rest is stack traces and this machine's paths, half of a small model's bytes.
    """
    program.model.graph.metadata_props.clear()
    for node in program.model.graph:
        scopes = node.metadata_props.get(MODULE_PATH)
        node.metadata_props.clear()
        if scopes is not None:
            node.metadata_props[MODULE_PATH] = scopes


def _name_bodies(program: ONNXProgram) -> None:
    """Call the nodes of a loop's body after the loop: TensorRT wants names of its own for each."""
    import onnx_ir as ir

    for node in program.model.graph:
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                for inner in attribute.as_graph():
                    inner.name = f"{node.name}/{inner.name}"


def _lower_opset(path: Path, opset: int) -> None:
    """Rewrite the file at an older opset, with ONNX's own version converter."""
    import onnx

    try:
        lowered = onnx.version_converter.convert_version(onnx.load(str(path)), opset)
    except RuntimeError as error:
        raise EdgekitError(
            f"The model cannot be expressed in ONNX opset {opset}.",
            str(error).strip().splitlines()[0],
            "Choose a target with a newer runtime.",
        ) from error
    for node in lowered.graph.node:
        _drop_newer_attributes(node, opset)
    onnx.save(lowered, str(path))


def _drop_newer_attributes(node: Any, opset: int) -> None:
    """Remove attributes that the older operator lacks, where they have their default value.

    ONNX's converter leaves them. One with another value stays, and the checker names it.
    """
    import onnx

    newer = onnx.defs.get_schema(node.op_type, LEAST_OPSET + 1, node.domain).attributes
    older = onnx.defs.get_schema(node.op_type, opset, node.domain).attributes
    value = onnx.helper.get_attribute_value
    for attribute in list(node.attribute):
        default = newer[attribute.name].default_value if attribute.name in newer else None
        if attribute.name in older or default is None:
            continue
        if value(default) == value(attribute):
            node.attribute.remove(attribute)


def _save(program: ONNXProgram, out: Path) -> None:
    size = sum(
        value.const_value.nbytes
        for value in program.model.graph.initializers.values()
        if value.const_value is not None
    )
    program.save(str(out), external_data=size > _EXTERNAL_ABOVE)


def _check(path: Path, source: Graph) -> Any:
    """Validate the file with shapes inferred, and that its interface is the graph's."""
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise EdgekitError("The exported ONNX file is invalid.", str(error)) from error
    model = onnx.load(str(path), load_external_data=False)
    said = interface(model)
    taken = {spec["name"]: spec["shape"] for spec in said["inputs"]}
    wanted = {spec.name: [_written(size) for size in spec.shape] for spec in source.inputs}
    if taken != wanted:
        raise EdgekitError("The ONNX file's inputs are misnamed.", f"{taken}, {wanted}")
    names = tuple(spec["name"] for spec in said["outputs"])
    if names != source.outputs:
        raise EdgekitError("The ONNX file's outputs are misnamed.", f"{names}, {source.outputs}")
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's progress lines; its errors still arrive as exceptions."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _cause(error: BaseException) -> str:
    """The innermost message: the exporter wraps it several times."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
