"""chunked_ssd: the state-space dual of Mamba-2 as products of matrices, without a loop.

Of a chunk that starts from ``state``, with c[t] the sum of its decays up to t,

    y[t]  = sum_{i <= t} (C[t] . B[i]) exp(c[t] - c[i]) x[i] + exp(c[t]) C[t] state
    state = exp(c[last]) state + sum_i exp(c[last] - c[i]) B[i]^T x[i]

(Dao and Gu, 2024, listing 1). The sums within all chunks are three products of matrices; what
the chunks start from is found by doubling, as in ``scan_by_doubling``.

1. A length that varies, of ``lengths.PIECE`` at most, is one chunk.
2. A known length is cut into chunks of ``CHUNK``.
3. A longer length that varies is left as it is.

Decays enter as exponentials of differences, at most 0 where they count and hidden elsewhere. One
below ``FORGOTTEN`` is taken for that: exp(-40) of a state is below the rounding of float64, and
without it the sums would lose the digits of the small decays beside it. In half precision all but
the products stays in float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit.converters.lengths import longest, varies
from edgekit.converters.rewrites.scan_by_doubling import PRODUCTS, carried

if TYPE_CHECKING:
    from torch import Tensor

    from edgekit.model import Graph

CHUNK = 64
FORGOTTEN = -40.0
#: Added to an exponent, makes it nothing: below ``PIECE`` times ``FORGOTTEN``, within float16.
HIDDEN = -3e4


def rewrite(graph: Graph) -> Graph:
    """The graph with every ``edgekit::ssd`` written out, where its length allows."""
    from edgekit.edit import Editor

    editor = Editor(graph)
    for node in editor.calls("edgekit.ssd.default"):
        arguments = editor.arguments(node)
        length = arguments[0].meta["val"].shape[1]
        most = longest(graph, length)
        if most is not None:
            size = most if varies(length) else min(CHUNK, most)
            mask = editor.buffer(f"later_steps_{size}", later_steps(size))
            results = editor.trace(ssd, *arguments, mask, like=node, half=PRODUCTS)
            editor.replace_results(node, results)
    return editor.done()


def later_steps(size: int) -> Tensor:
    """(size, size): ``HIDDEN`` where the column is a later step than the row, else 0."""
    import torch

    return torch.full((size, size), HIDDEN).triu(1)


def ssd(
    x: Tensor, decay: Tensor, B: Tensor, C: Tensor, state: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """``edgekit.operators.ssd`` in chunks as long as the mask, or in one that is no longer."""
    import torch

    batch, length, heads, width = x.shape
    groups, states = B.shape[2:]
    split = (groups, heads // groups)
    values, sums, keys, queries = (chunks(v, mask.shape[0]) for v in (x, decay, B, C))
    values = values.reshape(*values.shape[:2], *split, width).permute(0, 2, 3, 1, 4)
    sums = sums.reshape(*sums.shape[:2], *split).permute(0, 2, 3, 1)
    sums = torch.cumsum(sums.clamp(min=FORGOTTEN), -1)  # (chunk, g, heads of g, step)
    keys, queries = (v.transpose(1, 2).unsqueeze(2) for v in (keys, queries))

    weights = torch.matmul(queries, keys.transpose(-1, -2)) * falling(sums, mask)
    within = torch.matmul(weights, values)
    left = torch.exp(sums[..., -1:] - sums).unsqueeze(-1)
    ends = torch.matmul(keys.transpose(-1, -2), left * values)
    kept = torch.exp(sums[..., -1:]).unsqueeze(-1)
    starts, last = started(kept, ends, state.reshape(-1, *split, states, width), count(x, mask))
    y = within + torch.exp(sums).unsqueeze(-1) * torch.matmul(queries, starts)
    y = whole(y.permute(0, 3, 1, 2, 4), x)
    return y.reshape(batch, length, heads, width), last.reshape(state.shape)


def count(x: Tensor, mask: Tensor) -> int:
    """How many chunks as long as the mask there are; one of a length that varies."""
    return 1 if varies(x.shape[1]) else -(-x.shape[1] // mask.shape[0])


def chunks(x: Tensor, size: int) -> Tensor:
    """(b, L, ...) as (b chunks, size, ...), with zeros after the end; see ``whole``."""
    from torch.nn import functional

    if varies(x.shape[1]):
        return x
    filled = functional.pad(x, (0, 0) * (x.ndim - 2) + (0, -x.shape[1] % size))
    return filled.reshape(-1, size, *x.shape[2:])


def whole(cut: Tensor, like: Tensor) -> Tensor:
    """(b chunks, size, ...) as (b, L, ...), as long as another."""
    if varies(like.shape[1]):
        return cut
    size = cut.shape[1]
    return cut.reshape(-1, -(-like.shape[1] // size) * size, *cut.shape[2:])[:, : like.shape[1]]


def falling(sums: Tensor, mask: Tensor) -> Tensor:
    """(..., step, step): what is left at each row's step of what came at each column's."""
    import torch

    steps = sums.shape[-1]
    hidden = mask[:steps, :steps] if varies(steps) else mask
    return torch.exp(sums.unsqueeze(-1) - sums.unsqueeze(-2) + hidden)


def started(kept: Tensor, ends: Tensor, state: Tensor, chunks: int) -> tuple[Tensor, Tensor]:
    """What each chunk starts from, (b chunks, ...), and the last state (b, ...).

    Args:
        kept: of what a chunk starts from until its end, (b chunks, ..., 1, 1).
        ends: where each chunk ends that starts from zero, (b chunks, ...).
        state: (b, ...).
    """
    if chunks == 1:
        return state, kept * state + ends
    flat = (-1, chunks, ends.shape[1] * ends.shape[2])
    starts, last = carried(
        kept.reshape(*flat, 1, 1),
        ends.reshape(*flat, *ends.shape[3:]),
        state.reshape(-1, *flat[2:], *ends.shape[3:]),
    )
    return starts.reshape(ends.shape), last
