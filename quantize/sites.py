"""Sites: the tensors of an exported graph that can be quantized.

A site is named after the module in the user's own code (``blocks.0.attn.qkv.weight``,
``blocks.0.attn.qkv.input``), so that a scale table can be read, edited and reused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal

from edgekit.errors import EdgekitError

if TYPE_CHECKING:
    from torch.fx import Node

    from edgekit.edit import Editor

Kind = Literal["input", "weight", "query", "key", "value", "probabilities"]

#: operator -> what the placement rules call it
OPERATORS = {
    "aten.linear.default": "linear",
    "aten.conv1d.default": "conv",
    "aten.conv2d.default": "conv",
    "aten.conv2d.padding": "conv",
    "aten.scaled_dot_product_attention.default": "attention",
}
_LAYER: tuple[Kind, ...] = ("input", "weight")
_ATTENTION: tuple[Kind, ...] = ("query", "key", "value", "probabilities")
#: The sites of an operator.
KINDS = {"linear": _LAYER, "conv": _LAYER, "attention": _ATTENTION}


@dataclass(frozen=True)
class Site:
    """One tensor that can be quantized.

    Attributes:
        name: the module's path and its kind.
        kind: ``weight`` has one scale or more an output channel, all others one.
        operator: ``linear``, ``conv`` or ``attention``.
        node: the graph node that consumes it.
    """

    name: str
    kind: Kind
    operator: str
    node: str

    @property
    def module(self) -> str:
        """The path of the module in the user's code."""
        return self.name.rpartition(".")[0]


def find_sites(editor: Editor, exclude: Sequence[str] = ()) -> tuple[Site, ...]:
    """The sites of every linear and convolution with a constant weight, and of attention.

    Args:
        exclude: globs over module paths, such as ``head`` or ``blocks.0.*``.

    Raises:
        EdgekitError: a glob matches nothing.
    """
    found = list(_modules(editor))
    for glob in exclude:
        if not any(fnmatchcase(module, glob) for _, module in found):
            some = ", ".join(module for _, module in found[:8])
            raise EdgekitError(
                f"--exclude {glob!r} matches no linear, convolution or attention.",
                f"This model has {len(found)}, for example: {some}.",
            )
    return tuple(
        Site(f"{module}.{kind}", kind, OPERATORS[str(node.target)], node.name)
        for node, module in found
        if not any(fnmatchcase(module, glob) for glob in exclude)
        for kind in KINDS[OPERATORS[str(node.target)]]
    )


def _modules(editor: Editor) -> Iterator[tuple[Node, str]]:
    """Each quantizable call with a unique module name; a module called twice gets #2."""
    from edgekit.edit import module_path

    seen: dict[str, int] = {}
    for node in editor.calls(*OPERATORS):
        layer = OPERATORS[str(node.target)] != "attention"
        if layer and editor.tensor(node.args[1]) is None:
            continue
        path = module_path(node) or node.name
        seen[path] = seen.get(path, 0) + 1
        yield node, path if seen[path] == 1 else f"{path}#{seen[path]}"
