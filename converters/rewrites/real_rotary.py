"""real_rotary: complex numbers as pairs of real ones.

    (a + bi)(c + di) = (ac - bd) + (ad + bc)i

Rotary embeddings turn pairs of channels by an angle, which some models write as a product of
complex numbers; no backend has those. Every complex tensor becomes two real ones:

1. A stored tensor, and one that is computed of stored ones alone, is stored as its parts.
2. ``view_as_complex`` takes them from its last axis, ``view_as_real`` puts them back.
3. What moves elements (reshapes, slices, concatenations...) moves both parts alike.
4. Arithmetic is written out, as above.

An operator on complex numbers that is none of these is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgekit.errors import EdgekitError

if TYPE_CHECKING:
    from torch.fx import Node

    from edgekit.edit import Editor
    from edgekit.model import Graph

#: Rule 3: axes counted from the front are the same ones in both parts.
MOVES = frozenset(
    "reshape view unsqueeze squeeze permute transpose slice select expand clone contiguous flatten "
    "unflatten alias detach cat stack repeat index index_select".split()
)


@dataclass(frozen=True)
class Pair:
    """A complex tensor's parts; ``imag`` of a real one is the number 0."""

    real: Any
    imag: Any


def _product(x: Pair, y: Pair) -> Pair:
    return Pair(x.real * y.real - x.imag * y.imag, x.real * y.imag + x.imag * y.real)


#: Rule 4: operator -> what it does with pairs.
ARITHMETIC: dict[str, Callable[..., Any]] = {
    "mul": _product,
    "add": lambda x, y: Pair(x.real + y.real, x.imag + y.imag),
    "sub": lambda x, y: Pair(x.real - y.real, x.imag - y.imag),
    "neg": lambda x: Pair(-x.real, -x.imag),
    "conj": lambda x: Pair(x.real, -x.imag),
    "_conj": lambda x: Pair(x.real, -x.imag),
    "real": lambda x: x.real,
    "imag": lambda x: x.imag,
    "complex": lambda x, y: Pair(x.real, y.real),
    "polar": lambda x, y: Pair(x.real * y.real.cos(), x.real * y.real.sin()),
}


def rewrite(graph: Graph) -> Graph:
    """The graph with real tensors only.

    Raises:
        EdgekitError: an operator on complex numbers that is not known.
    """
    from edgekit.edit import Editor
    from edgekit.quantize.fp16 import CLAIM

    if not any(_is_complex(node) for node in graph.exported.graph.nodes):
        return graph
    editor = Editor(graph)
    for claim in editor.calls(CLAIM):
        editor.fx.erase_node(claim)
    pairs: dict[Node, Pair] = {}
    stored: dict[Node, Any] = {}
    for node in editor.calls():
        if _is_complex(node) and _is_known(editor, node, stored):
            stored[node] = _computed(editor, node, stored)
        elif any(_is_complex(value) for value in (node, *node.all_input_nodes)):
            _store(editor, node, stored, pairs)
            _lower(editor, node, pairs)
    return editor.done()


def _is_known(editor: Editor, node: Node, stored: dict[Node, Any]) -> bool:
    return all(n in stored or editor.tensor(n) is not None for n in node.all_input_nodes)


def _computed(editor: Editor, node: Node, stored: dict[Node, Any]) -> Any:
    """A constant's value."""
    import torch
    from torch.fx import map_arg

    call: Any = node.target
    args: Any = map_arg(node.args, lambda n: stored[n] if n in stored else editor.tensor(n))
    with torch.no_grad():
        return call(*args, **node.kwargs)


def _store(editor: Editor, user: Node, stored: dict[Node, Any], pairs: dict[Node, Pair]) -> None:
    """Rule 1, for the constants that a call reads.

    Raises:
        EdgekitError: it reads a complex input of the model.
    """
    for node in user.all_input_nodes:
        if not _is_complex(node) or node in pairs:
            continue
        value = stored.get(node, editor.tensor(node))
        if value is None:
            raise EdgekitError(
                f"The model takes complex numbers at {node.name}.",
                "No backend has them.",
                "Take their real and imaginary parts.",
            )
        parts = {"real": value.real, "imag": value.imag}
        pairs[node] = Pair(
            **{side: editor.buffer(f"{node.name}_{side}", x.clone()) for side, x in parts.items()}
        )


def _is_complex(value: Any) -> bool:
    found = getattr(value, "meta", {}).get("val")
    return bool(getattr(found, "is_complex", lambda: False)())


def _lower(editor: Editor, node: Node, pairs: dict[Node, Pair]) -> None:
    """Write a call with real numbers; its pair is kept, or its real result takes its place."""
    from torch.fx import Node
    from torch.utils._pytree import tree_flatten, tree_unflatten

    leaves, shape = tree_flatten(node.args)
    nodes = [n for leaf in leaves if isinstance(leaf, Node) for n in _nodes(leaf, pairs)]

    def form(*tensors: Any) -> Any:
        given = iter(tensors)
        values = [_value(leaf, given) for leaf in leaves]
        result = _apply(node, tree_unflatten(values, shape))
        return (result.real, result.imag) if isinstance(result, Pair) else result

    results = editor.trace(form, *nodes, like=node)
    if _is_complex(node):
        pairs[node] = Pair(*results)
    else:
        editor.replace(node, results[0])


def _nodes(leaf: Node, pairs: dict[Node, Pair]) -> tuple[Node, ...]:
    return (pairs[leaf].real, pairs[leaf].imag) if _is_complex(leaf) else (leaf,)


def _value(leaf: Any, tensors: Iterator[Any]) -> Any:
    """An argument as ``_apply`` takes it: a pair for a complex tensor."""
    from torch.fx import Node

    if isinstance(leaf, Node):
        return Pair(next(tensors), next(tensors)) if _is_complex(leaf) else next(tensors)
    return Pair(leaf.real, leaf.imag) if isinstance(leaf, complex) else leaf


def _apply(node: Node, args: Any) -> Any:
    """The result of a call: a pair, or a real tensor."""
    import torch
    from torch.utils._pytree import tree_map

    name = str(node.target).split(".")[1]
    if name == "view_as_complex":
        return Pair(*args[0].unbind(-1))
    if name == "view_as_real":
        return torch.stack([args[0].real, args[0].imag], -1)
    if name in ARITHMETIC and not node.kwargs:
        return ARITHMETIC[name](*(x if isinstance(x, Pair) else Pair(x, 0) for x in args))
    if name in MOVES:
        call: Any = node.target
        sides = (
            tree_map(lambda x, s=side: getattr(x, s) if isinstance(x, Pair) else x, args)
            for side in ("real", "imag")
        )
        return Pair(*(call(*part, **node.kwargs) for part in sides))
    raise EdgekitError(
        f"The model computes with complex numbers in {node.target} ({node.name}).",
        "No backend has them, and edgekit knows no real form of this operator.",
        "Write it with real numbers in the model.",
    )
