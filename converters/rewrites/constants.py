"""constants: compute once what depends on no input.

Relative position biases, resized position embeddings and attention masks are functions of
parameters alone; after this rewrite they are stored values. Values that would take more than
``LIMIT`` elements, and random ones, stay computed.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch.fx import Node

    from edgekit.edit import Editor
    from edgekit.model import Graph

LIMIT = 16_000_000
#: Kept as they are: storing their result would only cost memory, or file size.
LARGER = ("aten.expand.default", "aten.repeat.default", "edgekit.sparse_codes.default")


def rewrite(graph: Graph) -> Graph:
    """The graph with every maximal constant expression replaced by its value."""
    import torch

    from edgekit.edit import Editor

    editor = Editor(graph)
    values: dict[Node, Any] = {}
    with torch.inference_mode(False), torch.no_grad():
        for node in editor.calls():
            if _is_constant(editor, node, values):
                values[node] = _evaluate(editor, node, values)
    for node, value in values.items():
        if isinstance(value, torch.Tensor) and any(user not in values for user in node.users):
            node.replace_all_uses_with(editor.buffer(f"constant_{node.name}", value.clone()))
    return editor.done()


def _is_constant(editor: Editor, node: Node, values: dict[Node, Any]) -> bool:
    import torch

    if isinstance(node.target, torch._ops.OpOverload):
        if torch.Tag.nondeterministic_seeded in node.target.tags or str(node.target) in LARGER:
            return False
    elif node.target is not operator.getitem:
        return False
    size = getattr(node.meta.get("val"), "numel", lambda: 0)()
    if not isinstance(size, int) or size > LIMIT:
        return False
    return all(n in values or editor.tensor(n) is not None for n in node.all_input_nodes)


def _evaluate(editor: Editor, node: Node, values: dict[Node, Any]) -> Any:
    import torch.fx

    def value(source: Node) -> torch.Tensor:
        return values[source] if source in values else editor.tensor(source)  # type: ignore[return-value]

    operation: Any = node.target
    args: Any = torch.fx.map_arg(node.args, value)
    kwargs: Any = torch.fx.map_arg(node.kwargs, value)
    return operation(*args, **kwargs)
