"""chunked_delta: the gated delta rule as products of matrices, without a loop.

Of a chunk that starts from ``state``, with c[t] the sum of its decays up to t, the changes u that
its steps write solve a triangular system (Yang, Kautz and Hatamizadeh, 2024, section 3.3)

    (I + N) u = beta (value - exp(c) key state),  N[t, i] = beta[t] exp(c[t] - c[i]) key[t] . key[i]
    y[t]  = exp(c[t]) query[t] state + sum_{i <= t} exp(c[t] - c[i]) (query[t] . key[i]) u[i]
    state = exp(c[last]) state + sum_i exp(c[last] - c[i]) key[i]^T u[i],                    i < t

``inverse`` gives (I + N)^-1. All is linear in the state that the chunk starts from, and what the
chunks start from is found by doubling, as in ``scan_by_doubling``, with products of matrices.
Lengths and decays are treated as in ``chunked_ssd``; in half precision all stays in float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit.converters.lengths import longest, varies
from edgekit.converters.rewrites.chunked_ssd import (
    CHUNK,
    FORGOTTEN,
    chunks,
    count,
    falling,
    later_steps,
    whole,
)
from edgekit.converters.rewrites.scan_by_doubling import carried

if TYPE_CHECKING:
    from torch import Tensor

    from edgekit.model import Graph


def rewrite(graph: Graph) -> Graph:
    """The graph with every ``edgekit::gated_delta`` written out, where its length allows."""
    from edgekit.edit import Editor

    editor = Editor(graph)
    for node in editor.calls("edgekit.gated_delta.default"):
        arguments = editor.arguments(node)
        length = arguments[0].meta["val"].shape[1]
        most = longest(graph, length)
        if most is not None:
            size = most if varies(length) else min(CHUNK, most)
            mask = editor.buffer(f"later_steps_{size}", later_steps(size))
            blocks = editor.buffer(f"blocks_below_{size}", blocks_below(size))
            results = editor.trace(
                gated_delta, *arguments, mask, blocks, like=node, half=frozenset()
            )
            editor.replace_results(node, results)
    return editor.done()


def blocks_below(size: int) -> Tensor:
    """(rounds, size, size): 1 in the blocks that each round of ``inverse`` joins.

    >>> blocks_below(4)[1].int().tolist()
    [[0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0]]
    """
    import torch

    block = torch.arange(size)
    rounds: list[Tensor] = []
    while 1 << len(rounds) < size or not rounds:
        rounds.append((block[:, None] % 2 == 1) & (block[None] == block[:, None] - 1))
        block = block // 2
    return torch.stack(rounds).float()


def inverse(below: Tensor, blocks: Tensor) -> Tensor:
    """(I + N)^-1 for what a matrix has below its diagonal, N; its other parts are not read.

    The inverse of [[P, 0], [Q, R]] is [[P', 0], [-R' Q P', R']]: from blocks of one, every round
    joins neighbours, X - X Q X for all at once. The product (I - N)(I + N^2)(I + N^4)... is
    as short, but its factors grow as binomials where keys repeat, and float32 loses all.
    """
    import torch

    size = below.shape[-1]
    seen = blocks[:, :size, :size] if varies(size) else blocks
    diagonal = torch.ones_like(below).tril().triu()
    result = diagonal - below * seen[0]
    for block in seen.unbind(0)[1:]:
        result = result - torch.matmul(torch.matmul(result, below * block), result)
    return result


def gated_delta(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    decay: Tensor,
    beta: Tensor,
    state: Tensor,
    mask: Tensor,
    blocks: Tensor,
) -> tuple[Tensor, Tensor]:
    """``edgekit.operators.gated_delta`` in chunks as long as the mask, or in one no longer."""
    import torch

    q, k, v, sums, rate = (
        chunks(part, mask.shape[0]).transpose(1, 2) for part in (query, key, value, decay, beta)
    )  # (chunk, h, step, ...)
    sums, rate = torch.cumsum(sums.clamp(min=FORGOTTEN), -1), rate.unsqueeze(-1)
    since, left = torch.exp(sums).unsqueeze(-1), torch.exp(sums[..., -1:] - sums).unsqueeze(-1)
    end = since[..., -1:, :]
    weights = falling(sums, mask)
    solved = inverse(rate * torch.matmul(k, k.transpose(-1, -2)) * weights, blocks)
    writes, reads = torch.matmul(solved, rate * v), torch.matmul(solved, rate * since * k)
    keys = (left * k).transpose(-1, -2)
    starts = last = state
    number = count(query, mask)
    if number > 1:
        diagonal = torch.ones_like(torch.matmul(keys, reads)).tril().triu()
        kept, ends = end * diagonal - torch.matmul(keys, reads), torch.matmul(keys, writes)
        split = (-1, number)
        starts, last = carried(
            kept.reshape(*split, *kept.shape[1:]),
            ends.reshape(*split, *ends.shape[1:]),
            state,
            torch.matmul,
        )
        starts = starts.reshape(ends.shape)
    writes = writes - torch.matmul(reads, starts)
    if number == 1:
        last = end * state + torch.matmul(keys, writes)
    y = torch.matmul(since * q, starts) + torch.matmul(
        torch.matmul(q, k.transpose(-1, -2)) * weights, writes
    )
    return whole(y.transpose(1, 2), query), last
