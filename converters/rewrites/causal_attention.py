"""causal_attention: ``edgekit::causal_attention`` as two products and a softmax.

    y[i] = sum_j softmax_j(scale query[i] key[j]) value[j],   i - window < j <= i

The heads that share a key are rows of one matrix, so that no key is repeated: with h / g heads
to a group, (b, h, T, k) is (b, g, h / g T, k) without moving an element. What a query must not
see is a constant where the lengths are known, and else made of the sizes, once for all layers;
a single query sees all but what is outside of its window.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgekit.converters.lengths import varies

if TYPE_CHECKING:
    from torch import Tensor
    from torch.fx import Node

    from edgekit.edit import Editor
    from edgekit.model import Graph

#: Added to a score: its exponential is nothing, and float16 holds it.
HIDDEN = -3e4


def rewrite(graph: Graph) -> Graph:
    """The graph with every causal attention written out."""
    from edgekit.edit import Editor

    editor = Editor(graph)
    masks: dict[tuple[str, ...], Node | None] = {}
    for node in editor.calls("edgekit.causal_attention.default"):
        query, key, value, scale, window = editor.arguments(node)
        sizes = (query.meta["val"].shape[2], key.meta["val"].shape[2])
        name = tuple(str(part) for part in (*sizes, window))
        if name not in masks:
            masks[name] = _mask(editor, node, *sizes, window)
        results = editor.trace(attend, query, key, value, scale, masks[name], like=node)
        editor.replace(node, results[0])
    return editor.done()


def _mask(editor: Editor, node: Node, rows: Any, columns: Any, window: int | None) -> Node | None:
    """(T, S), added to the scores; None where all is seen."""
    query, key, *_ = editor.arguments(node)
    if varies(rows) or varies(columns):
        return editor.trace(
            lambda q, k: hidden(q.shape[2], k.shape[2], window), query, key, like=node
        )[0]
    mask = hidden(rows, columns, window)
    return editor.buffer(f"hidden_{rows}_{columns}_{window}", mask) if bool(mask.any()) else None


def hidden(rows: int, columns: int, window: int | None) -> Tensor:
    """(rows, columns): ``HIDDEN`` where a query must not look; the rows are the last positions."""
    import torch

    at = torch.arange(rows).unsqueeze(1) + (columns - rows)
    ahead = torch.arange(columns).unsqueeze(0) - at
    unseen = ahead > 0
    if window is not None:
        unseen = torch.logical_or(unseen, ahead <= -window)
    return unseen.to(torch.float32) * HIDDEN


def attend(query: Tensor, key: Tensor, value: Tensor, scale: float, mask: Tensor | None) -> Tensor:
    """``edgekit.operators.causal_attention`` with its mask."""
    import torch

    batch, heads, _, width = query.shape
    groups = key.shape[1]
    rows = (query * scale).reshape(batch, groups, -1, width)
    scores = torch.matmul(rows, key.transpose(-1, -2))
    if mask is not None:
        scores = scores + mask.repeat(heads // groups, 1)
    y = torch.matmul(torch.softmax(scores, -1), value)
    return y.reshape(batch, heads, -1, value.shape[3])
