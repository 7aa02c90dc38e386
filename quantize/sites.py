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

#: operator -> what the placement rules call it
OPERATORS = {
    "aten.linear.default": "linear",
    "aten.conv1d.default": "conv",
    "aten.conv2d.default": "conv",
    "aten.conv2d.padding": "conv",
}


@dataclass(frozen=True)
class Site:
    """One tensor that is quantized.

    Attributes:
        name: the module's path and ``input`` or ``weight``.
        kind: ``activation`` (one scale) or ``weight`` (one scale an output channel).
        operator: ``linear`` or ``conv``.
        node: the graph node that consumes it.
        axis: of the scales, or None for one scale.
        bits: of the integer.
    """

    name: str
    kind: Literal["activation", "weight"]
    operator: str
    node: str
    axis: int | None = None
    bits: Literal[8] = 8

    @property
    def module(self) -> str:
        """The path of the module in the user's code."""
        return self.name.rpartition(".")[0]

    @property
    def qmax(self) -> int:
        """The largest integer level."""
        return int(2 ** (self.bits - 1) - 1)

    @property
    def qmin(self) -> int:
        """The least level: symmetric for weights (-127), full for activations (-128)."""
        return -self.qmax if self.kind == "weight" else -self.qmax - 1


def find_sites(editor: Editor, exclude: Sequence[str] = ()) -> tuple[Site, ...]:
    """Both sites (input and weight) of every linear and convolution with a constant weight.

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
                f"--exclude {glob!r} matches no linear or convolution.",
                f"This model has {len(found)}, for example: {some}.",
            )
    return tuple(
        site
        for node, module in found
        if not any(fnmatchcase(module, glob) for glob in exclude)
        for site in _pair(node, module)
    )


def _modules(editor: Editor) -> Iterator[tuple[Node, str]]:
    """Each quantizable call with a unique module name; a module called twice gets #2."""
    from edgekit.edit import module_path

    seen: dict[str, int] = {}
    for node in editor.calls(*OPERATORS):
        if editor.tensor(node.args[1]) is None:
            continue
        path = module_path(node) or node.name
        seen[path] = seen.get(path, 0) + 1
        yield node, path if seen[path] == 1 else f"{path}#{seen[path]}"


def _pair(node: Node, module: str) -> tuple[Site, Site]:
    operator = OPERATORS[str(node.target)]
    return (
        Site(f"{module}.input", "activation", operator, node.name),
        Site(f"{module}.weight", "weight", operator, node.name, axis=0),
    )
