"""coreml: one exported program to one Core ML package (an ML program), through coremltools.

Graphs in ``fp16`` and ``int8`` are computed in float16, but for what a rewrite marked with
``edit.IN_FLOAT32``; inputs and outputs stay float32 (int32 where they are integers: Core ML has
no int64). INT8 is in the graph already, as ``quantized_decomposed`` operators. States are in
``coreml_states``. ``converters.mil`` runs the result on any machine.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import traceback
import warnings
from collections import Counter
from collections.abc import Container, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import files
from edgekit.converters import Artifact, coreml_states
from edgekit.converters.lengths import PIECE
from edgekit.converters.rewrites.unrolled_fire import STEPS
from edgekit.errors import EdgekitError
from edgekit.model import Dim
from edgekit.quantize.schemes import SCHEMES
from edgekit.targets import Target

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from edgekit.model import Graph, Input

NAME = "model.mlpackage"
RUNTIME = "coreml"
ACCEPTS = "graph"
REQUIRES = {"coremltools": "coremltools"}
#: Core ML quantizes activations from iOS 17 on, which is this specification version.
_INT8_SPECIFICATION = 8
#: And scales by block from iOS 18 on.
_BLOCKS_SPECIFICATION = 9
#: And holds states.
_STATES_SPECIFICATION = 9
#: The entry of a package's metadata with inputs, states, the ranges of their sizes, and the names
#: under which Core ML holds a state. ``targets/runtimes/coreml.py`` reads it.
STREAM = "edgekit.stream"
#: Our operators that ``coreml_ops`` translates; the others are recurrences.
_TRANSLATED = (
    "edgekit.dequantize_groups.default",
    "edgekit.latest.default",
    "edgekit.sparse_codes.default",
)
#: What marks a node for coremltools' transforms, which see it in an operator's scope.
_MARK = "debug_handle"


def convert(source: Graph, out: Path, target: Target) -> Artifact:
    """Write the package ``out`` for the target's deployment version.

    Raises:
        EdgekitError: the target names no version that coremltools knows, or one before
            INT8; or an operator has no Core ML form (it and its module are named).
    """
    with quiet():
        import coremltools

        version = _version(target, source)
        _check_recurrences(source)
        graph = coreml_states.never_empty(source)
        program = _prepare(graph)
        half = source.precision != "fp32"
        held: dict[str, tuple[str, ...]] = {}
        if half and version.value >= _STATES_SPECIFICATION:
            held = coreml_states.parts_of(graph)
            program = coreml_states.hold(program, graph, held)
        with _explained(program):
            model = coremltools.convert(
                program,
                inputs=_input_types(graph, held),
                outputs=_output_types(graph, program, held),
                convert_to="mlprogram",
                minimum_deployment_target=version,
                compute_precision=_half(program) if half else coremltools.precision.FLOAT32,
                compute_units=coremltools.ComputeUnit.ALL,
                skip_model_load=True,
            )
        if source.states:
            model.user_defined_metadata[STREAM] = json.dumps(_interface(source, held))
        with files.atomic(out) as room:
            model.save(str(room))
    return Artifact("coreml", out, _details(source, model.get_spec(), target, out))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide coremltools' warnings, log lines and progress bars. Exceptions pass."""
    logger = logging.getLogger("coremltools")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _version(target: Target, source: Graph) -> Any:
    """The target's deployment version, as coremltools' own object."""
    import coremltools

    from edgekit.edit import Editor
    from edgekit.quantize.place import DEQUANTIZE_GROUPS

    # The members include macOS's names, which are aliases of iOS's.
    known = [n for n in coremltools.target.__members__ if n.startswith(("iOS", "macOS"))]
    if target.deployment is None or target.deployment not in known:
        raise EdgekitError(
            f"{target.name} has no Core ML deployment version that coremltools knows.",
            f"Its deployment is {target.deployment!r}; known: {', '.join(known)}.",
            "Set deployment in the target's TOML.",
        )
    version = getattr(coremltools.target, target.deployment)
    blocks = next(Editor(source).calls(str(DEQUANTIZE_GROUPS)), None)
    if blocks is not None and version.value < _BLOCKS_SPECIFICATION:
        raise EdgekitError(
            f"{target.name} cannot run 4-bit weights, or weights with a scale for each group.",
            f"Core ML has them from iOS 18 and macOS 15 on; it has {target.deployment}.",
            "Choose --precision w8a16 with --granularity channel, or a later target.",
        )
    scheme = SCHEMES.get(source.precision)
    activations = scheme is not None and scheme.activation is not None
    if activations and version.value < _INT8_SPECIFICATION:
        raise EdgekitError(
            f"{target.name} cannot run int8 activations.",
            f"Core ML quantizes them from iOS 17 and macOS 14 on; it has {target.deployment}.",
            "Choose --precision fp16, or a target with a later deployment version.",
        )
    return version


def _prepare(source: Graph) -> ExportedProgram:
    """The program in the operators that coremltools translates."""
    from torch.ao.quantization.fx import _decomposed  # noqa: F401 - registers the operators

    from edgekit.converters import coreml_ops
    from edgekit.converters.rewrites import rank5
    from edgekit.edit import IN_FLOAT32, Editor
    from edgekit.quantize.fp16 import CLAIM

    coreml_ops.register()
    marked = {node.name for node in source.exported.graph.nodes if IN_FLOAT32 in node.meta}
    editor = Editor(source.replace(source.exported.run_decompositions({})))
    for node in editor.calls():
        if any(origin.name in marked for origin in node.meta.get("from_node", ())[-1:]):
            node.meta[IN_FLOAT32] = True
    editor.restore_names()
    # What torch asserts of sizes and dtypes: promised to the user, or its own guess.
    for claim in editor.calls("aten._assert_scalar.default", CLAIM):
        editor.fx.erase_node(claim)
    program = rank5.rewrite(editor.done()).exported
    coreml_ops.settle_keywords(program.graph)
    return program


def _check_recurrences(source: Graph) -> None:
    """Raise if the graph has a recurrence that no rewrite has written out."""
    from edgekit.edit import Editor

    for node in Editor(source).calls():
        name = str(node.target)
        if name.startswith("edgekit.") and name not in _TRANSLATED:
            neurons = name == "edgekit.fire.default"  # written out step by step
            most = STEPS if neurons else PIECE
            lengths = [dim for dim in source.dims.values() if dim.most > most]
            ranges = ", ".join(f"{dim.name} {dim}" for dim in lengths)
            one = f"one length of {most} at most" if neurons else "one length"
            raise EdgekitError(
                f"The model cannot be expressed in Core ML at {_place(node)}.",
                f"Core ML has no scan: a recurrence is written out, for {one} or for all up "
                f"to {most}" + (f"; here varies {ranges}." if ranges else "."),
                f"Fix the length, as in --input NAME:1x{most if neurons else 1024}, or let it "
                f"vary up to {most} at most, as in --input NAME:1x1..16..{most}; a stream takes "
                "more in several calls.",
            )


def _half(program: ExportedProgram) -> Any:
    """coremltools' own conversion to float16, of all but what is marked to stay in float32."""
    from coremltools import transform
    from coremltools.converters.mil.mil.scope import ScopeSource

    from edgekit.edit import IN_FLOAT32

    for node in program.graph.nodes:
        if IN_FLOAT32 in node.meta:
            node.meta[_MARK] = 1
    return transform.FP16ComputePrecision(
        lambda op: op.scopes.get(ScopeSource.EXIR_DEBUG_HANDLE) != [1]
    )


def _interface(source: Graph, held: dict[str, tuple[str, ...]]) -> dict[str, Any]:
    """What is written of a streaming model into its package."""
    names = {state.name for state in source.states}
    return {
        "inputs": [_declared(spec) for spec in source.inputs if spec.name not in names],
        "states": [_declared(state.input) for state in source.states],
        "dims": {name: [dim.least, dim.usual, dim.most] for name, dim in source.dims.items()},
        "held": held,
    }


def _declared(spec: Input) -> list[Any]:
    sizes = [size.name if isinstance(size, Dim) else size for size in spec.shape]
    return [spec.name, sizes, "int32" if spec.dtype == "int64" else spec.dtype]


def _input_types(source: Graph, held: Container[str] = ()) -> list[Any]:
    import coremltools
    import numpy as np

    ranges: dict[str, Any] = {}
    types = []
    for spec in (spec for spec in source.inputs if spec.name not in held):
        kind = np.dtype(spec.dtype)
        if kind.kind not in "fiu":
            raise EdgekitError(
                f"Input {spec.name} is {spec.dtype}.",
                "Core ML takes float and integer inputs only.",
                "Let the model take it as float32 or int32 and cast it inside.",
            )
        shape = [_range(ranges, size) if isinstance(size, Dim) else size for size in spec.shape]
        dtype = np.float32 if kind.kind == "f" else np.int32
        types.append(coremltools.TensorType(name=spec.name, shape=tuple(shape), dtype=dtype))
    return types


def _range(known: dict[str, Any], dim: Dim) -> Any:
    """coremltools' own object for a size that varies: one for each name."""
    import coremltools

    made = coremltools.RangeDim(dim.least, dim.most, default=dim.usual)
    return known.setdefault(dim.name, made)


def _output_types(source: Graph, program: ExportedProgram, held: Iterable[str]) -> list[Any]:
    import coremltools
    import numpy as np

    results: Any = program.graph.output_node().args[0]
    kept = [name for name in source.outputs if name not in {f"{state}_next" for state in held}]
    return [
        coremltools.TensorType(
            name=name, dtype=np.float32 if node.meta["val"].is_floating_point() else np.int32
        )
        for name, node in zip(kept, results[-len(kept) :], strict=True)
    ]


@contextlib.contextmanager
def _explained(program: ExportedProgram) -> Iterator[None]:
    """Turn what coremltools raises into an error that names the operator and its module."""
    try:
        yield
    except Exception as error:
        node = _node_at_fault(program, error)
        where = f" at {_place(node)}" if node is not None else ""
        raise EdgekitError(
            f"The model cannot be expressed in Core ML{where}.",
            f"coremltools says: {str(error).strip() or type(error).__name__}",
            "Replace the operator in the model, or register a translation for it in "
            "converters/coreml_ops.py.",
        ) from error


def _node_at_fault(program: ExportedProgram, error: Exception) -> Any:
    """The graph's node that coremltools was translating: its frames hold it, no message does."""
    nodes = {node.name: node for node in program.graph.nodes}
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_name in ("convert_single_node", "from_exir_node"):
            return nodes.get(frame.f_locals["node"].name)
    named = [name for name in nodes if f'"{name}' in str(error)]
    return nodes[max(named, key=len)] if named else None


def _place(node: Any) -> str:
    from edgekit.edit import module_path

    path = module_path(node)
    return f"{node.target} ({node.name}{f', in module {path}' if path else ''})"


def _details(source: Graph, spec: Any, target: Target, out: Path) -> dict[str, Any]:
    function = spec.mlProgram.functions["main"]
    block = function.block_specializations[function.opset]
    operators = Counter(op.type for op in block.operations if op.type != "const")
    narrowed = [i.name for i in source.inputs if i.dtype in ("int64", "uint64")]
    return {
        "deployment": target.deployment,
        "specification_version": spec.specificationVersion,
        "operators": dict(operators.most_common()),
        "bytes": sum(file.stat().st_size for file in out.rglob("*") if file.is_file()),
        "int64_inputs_taken_as_int32": narrowed,
        "dynamic_sizes": {name: str(dim) for name, dim in source.dims.items()},
        "states_held": [state.name for state in spec.description.state],
    }
