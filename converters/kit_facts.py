"""kit.json: what the on-device kit knows of its model, its target and other devices."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.converters import sparsity
from edgekit.converters.interface import interface, is_discrete
from edgekit.converters.kit.build import SPARSE
from edgekit.converters.kit.main import SCHEMA_VERSION
from edgekit.targets import Target

if TYPE_CHECKING:
    import onnx

#: Least cosine, and least share of equal arg-max, of an engine's outputs and the reference.
#: "fp32" on a Jetson means TF32 matrix products. Of a model that computes levels it is INT8's.
TOLERANCE = {
    "fp32": {"cosine": 0.9999, "top1": 0.99},
    "fp16": {"cosine": 0.999, "top1": 0.95},
    "int8": {"cosine": 0.97, "top1": 0.85},
}

#: The first compute capability with sparse tensor cores.
SPARSE_SINCE = (8, 0)


def kit_facts(model: onnx.ModelProto, target: Target, folder: Path) -> dict[str, Any]:
    """The content of kit.json, but for the names and the hash of the model's files.

    Args:
        folder: where the model's external data lies.
    """
    kinds = _dtypes(model)
    precision = _precision(kinds)
    float_flags = ["FP16"] if target.float_dtype == "fp16" else []
    flags = {"fp32": [], "fp16": ["FP16"], "int8": ["INT8", *float_flags]}
    keep = {"name", "title", "system", "compute_capability", "memory_gb", "power_modes"}
    return {
        "schema_version": SCHEMA_VERSION,
        "target": target.model_dump(mode="json", include=keep),
        "devices": _devices(),
        "tensorrt": target.runtime_version,
        "precision": precision,
        "dtypes": kinds,
        "flags": flags[precision] + _sparse_flags(model, folder, target),
        **interface(model),
        "tolerance": TOLERANCE["int8" if is_discrete(model) else precision],
        "layers": layer_facts(model),
    }


def _devices() -> list[dict[str, Any]]:
    """The devices with an NVIDIA GPU that edgekit knows: a kit names the one that it is on."""
    from edgekit import targets

    known = [targets.load(name) for name in targets.names()]
    return [
        {
            "name": target.name,
            "title": target.title,
            "compute_capability": target.compute_capability,
            "tensorrt": target.runtime_version if target.runtime == "tensorrt" else "0",
        }
        for target in known
        if target.compute_capability is not None
    ]


def layer_facts(model: onnx.ModelProto) -> dict[str, Any]:
    """Module, class and operator of each node that runs, for the names of TensorRT's layers.

    Returns:
        ``modules``, ``classes`` and ``operators`` without repetitions, and ``nodes``: name ->
        the place of each in these; ``order``: classes, the costliest first.
    """
    from edgekit.profiling.classes import CLASSES, class_of
    from edgekit.profiling.origins import Origins

    origins = Origins(model).by_node
    rows = {
        node.name: (
            origins[node.name].module,
            origins[node.name].role or class_of(node.op_type, node.name),
            node.op_type,
        )
        for node in model.graph.node
        if node.op_type != "Constant"
    }
    columns = [list(dict.fromkeys(column)) for column in zip(*rows.values(), strict=True)]
    places = [{value: place for place, value in enumerate(column)} for column in columns]
    nodes = {
        name: [place[value] for place, value in zip(places, row, strict=True)]
        for name, row in rows.items()
    }
    modules, classes, operators = columns or ([], [], [])
    return {
        "modules": modules,
        "classes": classes,
        "operators": operators,
        "order": list(CLASSES),
        "nodes": nodes,
    }


def _sparse_flags(model: onnx.ModelProto, folder: Path, target: Target) -> list[str]:
    """The flag that lets TensorRT skip zeros, where there are some and the GPU can (Ampere on)."""
    able = version(target.compute_capability or "0") >= SPARSE_SINCE
    return [SPARSE] if able and sparsity.sparse(model, folder) else []


def _dtypes(model: onnx.ModelProto) -> list[str]:
    """The number formats of the graph, the narrowest first: weights, activations and casts."""
    import onnx

    kinds = onnx.TensorProto
    named = {
        kinds.FLOAT4E2M1: "fp4",
        kinds.INT4: "int4",
        kinds.FLOAT8E4M3FN: "fp8",
        kinds.INT8: "int8",
        kinds.BFLOAT16: "bf16",
        kinds.FLOAT16: "fp16",
    }
    found = {tensor.data_type for tensor in model.graph.initializer}
    found |= {a.i for n in model.graph.node if n.op_type == "Cast" for a in n.attribute}
    found |= {value.type.tensor_type.elem_type for value in model.graph.input}
    present = [name for kind, name in named.items() if kind in found]
    quantized = any(node.op_type == "DequantizeLinear" for node in model.graph.node)
    if quantized and not set(present) & {"fp4", "int4", "fp8", "int8"}:
        present.insert(0, "int8")
    return present or ["fp32"]


def _precision(kinds: Sequence[str]) -> str:
    """Whose tolerance and flags hold: int8 with any quantized type, fp16 with any half one."""
    if set(kinds) & {"fp4", "int4", "fp8", "int8"}:
        return "int8"
    return "fp16" if set(kinds) & {"bf16", "fp16"} else "fp32"


def version(text: str) -> tuple[int, ...]:
    """The numbers of a version.

    >>> version("10.13") > version("10.3")
    True
    """
    return tuple(int(part) for part in text.split("."))
