"""causal_attention: attention of the last positions to all before them.

    y[i] = sum_j softmax_j(scale query[i] key[j]) value[j],   i - window < j <= i

The queries are those of the last T of S positions, so query i is at position i + S - T. Heads
share keys and values in groups, as in grouped-query attention (Ainslie et al., 2023).
"""

from __future__ import annotations

import torch

from edgekit.operators import wide

#: Queries at a time: the scores of all would not fit the memory where there are many.
ROWS = 512


@torch.library.custom_op("edgekit::causal_attention", mutates_args=())
def causal_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    window: int | None = None,
) -> torch.Tensor:
    """What each query attends to.

    Args:
        query: (b, h, T, k).
        key: (b, g, S, k); S is at least T.
        value: (b, g, S, v).
        scale: of the products.
        window: how many positions a query sees, its own among them; None is all.

    Returns:
        (b, h, T, v).
    """
    q, k, v = wide(query, key, value)
    q = q * scale
    heads = query.shape[1] // key.shape[1]
    k, v = (tensor.repeat_interleave(heads, 1) for tensor in (k, v))
    before, outputs = key.shape[2] - query.shape[2], []
    for start in range(before, key.shape[2], ROWS):
        end = min(start + ROWS, key.shape[2])
        first = 0 if window is None else max(start - window + 1, 0)
        ahead = torch.arange(first, end)[None] - torch.arange(start, end)[:, None]
        hidden = ahead > 0 if window is None else (ahead > 0) | (ahead <= -window)
        rows = q[:, :, start - before : end - before]
        scores = torch.matmul(rows, k[:, :, first:end].mT).masked_fill_(hidden, float("-inf"))
        outputs.append(torch.matmul(torch.softmax(scores, -1), v[:, :, first:end]))
    return torch.cat(outputs, 2).to(query.dtype)


@causal_attention.register_fake
def _(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    window: int | None = None,
) -> torch.Tensor:
    return query.new_empty(*query.shape[:3], value.shape[3])
