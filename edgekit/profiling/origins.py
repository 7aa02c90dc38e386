"""Origins: which module of the source each node of an ONNX file comes from, and as what.

The exporter notes the path of modules on each node (``MODULE_PATH``), and at its end the node of
the exported graph: ``mamba_scan_1`` is the whole of a recurrence, however many nodes it became. A
file by torch's older exporter has the path in its nodes' names, ``/blocks/blocks.0/attn/MatMul``.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.converters.onnx import MODULE_PATH
from edgekit.profiling.attention import products
from edgekit.profiling.classes import class_of, listed

if TYPE_CHECKING:
    import onnx

#: Classes of wholes: what a node of the exported graph became is of its class, as a bias that is
#: added is part of a linear.
_WHOLES = {
    *("attention", "scan", "linear", "convolution", "normalisation"),
    *("activation", "softmax", "embedding"),
}
#: How modules that normalise are called.
_NORM = re.compile(r"norm|^ln(_|\d|$)|_ln$|^bn\d*$")
_ATTENTION = re.compile(r"attn|attention")
#: What torch adds to an operator's name to tell nodes and overloads apart.
_SUFFIX = re.compile(r"(_default|_tensor|_int)?(_\d+)*$")


@dataclass(frozen=True)
class Origin:
    """Where a node comes from.

    Attributes:
        module: dotted path; ``""`` where it is the model itself, or unknown.
        role: the class of the whole that it is part of, or ``""``.
    """

    module: str = ""
    role: str = ""


class Origins:
    """The origins of a file's nodes, by node name and by the values that they give."""

    def __init__(self, model: onnx.ModelProto) -> None:
        nodes = model.graph.node
        constants = {tensor.name for tensor in model.graph.initializer}
        constants |= {v for n in nodes if n.op_type == "Constant" for v in n.output}
        attention = products(nodes, constants)
        self.by_node: dict[str, Origin] = {}
        self.by_value: dict[str, Origin] = {}
        unplaced = []
        for node in nodes:
            path = _scopes(node)
            if path is None:
                unplaced.append(node)
                path = ["", ""]
            role = "attention" if node.output[0] in attention else _role(node, path, constants)
            self._put(node, Origin(path[-2] if len(path) > 1 else "", role))
        readers = _readers(nodes)
        for node in reversed(unplaced):
            # Optimizers leave no path: it is in the module that all its readers have in common.
            found = [reader for value in node.output for reader in readers.get(value, ())]
            modules = [self.by_value[reader.output[0]].module for reader in found]
            self._put(node, Origin(common(modules), self.by_value[node.output[0]].role))

    @classmethod
    def read(cls, path: Path) -> Origins:
        """Of a file."""
        import onnx

        return cls(onnx.load(str(path), load_external_data=False))

    def of_names(self, names: Iterable[str]) -> Origin:
        """Of a kernel that was fused of the nodes (or values) with these names.

        Its module is that of the last one; its role that of the first one that has any.
        """
        found = [o for name in names if (o := self.by_node.get(name) or self.by_value.get(name))]
        if not found:
            return Origin()
        role = next((origin.role for origin in found if origin.role), "")
        return Origin(found[-1].module, role)

    def of_kernels(self, kernels: Sequence[Any]) -> dict[str, Origin]:
        """Of the kernels (ONNX nodes) that a runtime made of the file, by name.

        A fused kernel counts for the module whose value it gives, else for the node of the file
        that it is called after; what gives no value of the file and is called after none (a
        reordered copy, a quantized input) counts for the kernel that reads it.
        """
        readers = _readers(kernels)
        found: dict[str, Origin] = {}
        for kernel in reversed(kernels):
            known = [self.by_value[value] for value in kernel.output if value in self.by_value]
            after = (kernel.name, kernel.name.partition("/")[0])
            known += [self.by_node[name] for name in after if name and name in self.by_node]
            read_by = [readers[value][0].name for value in kernel.output if value in readers]
            inherited = [Origin(found[name].module) for name in read_by if name in found]
            found[kernel.name] = next(iter([*known, *inherited]), Origin())
        return found

    def _put(self, node: Any, origin: Origin) -> None:
        self.by_node[node.name] = replace(origin, role=role_of(node.op_type, origin.role))
        self.by_value.update(dict.fromkeys(node.output, origin))


def common(modules: Sequence[str]) -> str:
    """The innermost module that holds them all.

    >>> common(["blocks.0.attn.qkv", "blocks.0.attn"]), common(["a.b", "c"]), common([])
    ('blocks.0.attn', '', '')
    """
    shared: list[str] = []
    for parts in zip(*(module.split(".") for module in modules), strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)


def role_in(operator: str, module: str) -> str:
    """The role of an operator by the module that it stands in; ``""``: none beside its class."""
    kind, last = class_of(operator), module.rpartition(".")[2].lower()
    if kind == "elementwise" and _NORM.search(last):
        return "normalisation"
    return ""


def role_of(operator: str, role: str) -> str:
    """The role of a kernel that a runtime made, of the roles of what it was made of.

    A product with an activation fused into it is a product, and to quantize what a whole takes is
    no part of it: it would not be there in float. But a product in attention is attention.
    """
    kind = class_of(operator)
    if kind == "quantize":
        return ""
    if role in ("attention", "scan"):
        return role
    return "" if kind in ("linear", "convolution", "softmax", "attention", "scan") else role


def in_attention(module: str) -> bool:
    """Whether a module is called as attention is.

    >>> in_attention("blocks.0.attn"), in_attention("blocks.0.mlp")
    (True, False)
    """
    return _ATTENTION.search(module.lower().rpartition(".")[2]) is not None


def _role(node: Any, path: Sequence[str], constants: set[str]) -> str:
    module = path[-2] if len(path) > 1 else ""
    # Our values are called as the nodes of the source's graph, or WHOLE/PART where one became
    # several; the exporter's name of the node is that of a later graph.
    names = (path[-1], node.output[0].partition("/")[0])
    wholes = [kind for name in names if (kind := listed(_SUFFIX.sub("", name))) in _WHOLES]
    if found := next((kind for kind in wholes if kind in ("attention", "scan")), ""):
        return found
    if class_of(node.op_type) == "linear" and in_attention(module):
        return "" if any(value in constants for value in node.input) else "attention"
    if wholes:
        return wholes[0]
    return role_in(node.op_type, module)


def _readers(nodes: Sequence[Any]) -> dict[str, list[Any]]:
    """The nodes that take each value, in order."""
    found: dict[str, list[Any]] = {}
    for node in nodes:
        for value in filter(None, dict.fromkeys(node.input)):
            found.setdefault(value, []).append(node)
    return found


def _scopes(node: Any) -> list[str] | None:
    """Modules from the outermost, the model, on, and the node of the exported graph."""
    notes: Mapping[str, str] = {note.key: note.value for note in node.metadata_props}
    if MODULE_PATH in notes:
        # Where the exporter knows no module, it makes a name up, with an underscore first.
        return [
            scope
            for scope in ast.literal_eval(notes[MODULE_PATH])
            if not scope.startswith("_empty")
        ]
    if not node.name.startswith("/"):
        return None
    *modules, own = node.name[1:].split("/")
    path: list[str] = []
    for module in modules:
        # The older exporter says the name of a list before those of its members.
        if path and module.startswith(f"{path[-1]}."):
            path.pop()
        path.append(module)
    return ["", ".".join(path), own] if path else ["", own]
