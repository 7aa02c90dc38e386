"""lmu: the Legendre memory unit's memory (Voelker, Kajic and Eliasmith, 2019, equation 2).

    memory[t, n, d] = sum_m A[n, m] memory[t-1, m, d] + B[n] x[t, d]

A and B are constants, already discretised. Steps are taken in chunks, as products with powers of A
(Chilkuri and Eliasmith, 2021).
"""

from __future__ import annotations

from typing import Any

import torch

from edgekit.operators import chunks, wide

CHUNK = 32


@torch.library.custom_op("edgekit::lmu", mutates_args=())
def lmu(
    x: torch.Tensor, A: torch.Tensor, B: torch.Tensor, state: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The memory after every step, and after the last.

    Args:
        x: (b, L, d).
        A: (n, n).
        B: (n,).
        state: to start from, (b, n, d).

    Returns:
        memory (b, L, n, d) and the state after the last step (b, n, d).
    """
    u, a, b, m = wide(x, A, B, state)
    powers, response = _matrices(a, b, min(CHUNK, x.shape[1]))
    outputs = []
    for (part,) in chunks(CHUNK, u):
        steps = part.shape[1]
        added = torch.matmul(response[:steps, :, :steps].flatten(0, 1), part)
        memory = torch.matmul(powers[:steps], m[:, None])
        outputs.append(memory + added.reshape(memory.shape))
        m = outputs[-1][:, -1]
    return torch.cat(outputs, 1).to(x.dtype).contiguous(), m.to(state.dtype).contiguous()


def _matrices(a: torch.Tensor, b: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A^1 to A^size (size, n, n), and what x at each step adds to each memory (size, n, size)."""
    powers, columns = [a], [b]
    for _ in range(size - 1):
        columns.append(torch.matmul(powers[-1], b))
        powers.append(torch.matmul(a, powers[-1]))
    response = b.new_zeros(size, len(b), size)
    for row in range(size):
        response[row, :, : row + 1] = torch.stack(columns[row::-1], 1)
    return torch.stack(powers), response


@lmu.register_fake
def _(
    x: torch.Tensor, A: torch.Tensor, B: torch.Tensor, state: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    batch, length, channels = x.shape
    return x.new_empty(batch, length, A.shape[0], channels), state.new_empty(state.shape)


def _save(ctx: Any, inputs: tuple[torch.Tensor, ...], output: tuple[torch.Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs, output[0])


def _backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """g[t] = dmemory[t] + A^T g[t+1], the gradient with respect to memory[t]."""
    *inputs, outputs = ctx.saved_tensors
    u, a, b, start, memory = wide(*inputs, outputs)
    pushed, g = wide(*gradients)
    found = []
    for t in range(pushed.shape[1] - 1, -1, -1):
        g = pushed[:, t] + g
        found.append(g)
        g = torch.matmul(a.t(), g)
    each = torch.stack(found[::-1], 1)  # (b, L, n, d)
    before = torch.cat([start[:, None], memory[:, :-1]], 1)
    values = (
        torch.einsum("blnd,n->bld", each, b),
        torch.einsum("blnd,blmd->nm", each, before),
        torch.einsum("blnd,bld->n", each, u),
        g,
    )
    return tuple(v.to(i.dtype) for v, i in zip(values, inputs, strict=True))


lmu.register_autograd(_backward, setup_context=_save)
