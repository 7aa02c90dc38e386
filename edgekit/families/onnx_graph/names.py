"""Names of modules and parameters, as near to those of the model's own code as the file tells."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping

from edgekit.families.onnx_graph.reading import Node

#: Names that exporters make up.
_ANONYMOUS = re.compile(r"onnx::.*|\w*_?\d+|const.*|initializer.*", re.IGNORECASE)


def layer_path(node: Node, weight: str, bias: str, uses: Mapping[str, int]) -> str:
    """Where a layer's module stands: ``blocks.0.attn.qkv``.

    The first of these that the file has: its weight's own name, the module that the exporter
    noted, the node's name where that is a path, its bias's name, the weight's, the node's.

    Args:
        uses: how many nodes take a value; exporters merge equal weights, so that the name of one
            that several nodes share tells little.
    """
    if uses[weight] == 1 and weight.endswith(".weight"):
        return clean(weight.removesuffix(".weight"))
    if len(node.scopes) > 1 and node.scopes[-2]:
        return clean(node.scopes[-2])
    if "/" in node.name.strip("/"):
        return _walked(node.name.strip("/").split("/")[:-1])
    if bias and uses[bias] == 1 and bias.endswith(".bias"):
        return clean(bias.removesuffix(".bias"))
    return clean(node.name or node.outputs[0] if _ANONYMOUS.fullmatch(weight) else weight)


def tensor_path(name: str, folded: bool) -> str:
    """Where a parameter or buffer stands.

    Exporters call values ``add_17`` or ``val_3`` again and again: what has such a name, or is
    ``folded`` from several constants, must not stand where the next exporter puts another.
    """
    path = clean(name)
    return (
        f"constants.{path}" if "." not in path and (folded or _ANONYMOUS.fullmatch(name)) else path
    )


def _walked(parts: list[str]) -> str:
    """The path in a node's name; the old exporter repeats a list's name before its item's.

    >>> _walked(["blocks", "blocks.0", "attn", "qkv"])
    'blocks.0.attn.qkv'
    """
    path: list[str] = []
    for part in parts:
        if path and part.startswith(f"{path[-1]}."):
            path.pop()
        path.append(part)
    return clean(".".join(path))


def clean(name: str) -> str:
    """A dotted path that modules can have.

    >>> clean("encoder/layer:0.weight")
    'encoder.layer.0.weight'
    """
    parts = [re.sub(r"\W", "_", part) for part in re.split(r"[./:]+", name)]
    return ".".join(part for part in parts if part) or "unnamed"


def scopes(note: str) -> tuple[str, ...]:
    """The modules around a node, outermost first, as torch's exporter notes them.

    >>> scopes("['', 'blocks', 'blocks.0', 'linear']")
    ('', 'blocks', 'blocks.0', 'linear')
    """
    try:
        found = ast.literal_eval(note)
    except (ValueError, SyntaxError):
        return ()
    return tuple(map(str, found)) if isinstance(found, list) else ()
