"""chunked_lmu: the Legendre memory unit's memory as products of matrices, without a loop.

Of a chunk that starts from ``state``, with A and B constants,

    memory[t] = sum_{i <= t} A^(t-i) B x[i] + A^(t+1) state

which is one product with a constant matrix for all steps of all chunks (Chilkuri and Eliasmith,
2021, equation 25), and one for what they start from. That is found by doubling: every chunk's end
takes up that of the one ``s`` before it, times A^(s CHUNK), for s = 1, 2, 4...

1. A length that varies, of ``lengths.PIECE`` at most, is doubled step by step.
2. A known length is cut into chunks of ``CHUNK``.
3. A longer length that varies, or an A that is no constant, is left as it is.

Powers of A are computed in float64. In half precision all stays in float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgekit.converters.lengths import longest, varies
from edgekit.converters.rewrites.chunked_ssd import CHUNK, chunks, whole
from edgekit.converters.rewrites.scan_by_doubling import delayed

if TYPE_CHECKING:
    from torch import Tensor
    from torch.fx import Node

    from edgekit.edit import Editor
    from edgekit.model import Graph


def rewrite(graph: Graph) -> Graph:
    """The graph with every ``edgekit::lmu`` written out, where its length allows."""
    from edgekit.edit import Editor

    editor = Editor(graph)
    for node in editor.calls("edgekit.lmu.default"):
        x, A, B, _ = editor.arguments(node)
        most = longest(graph, x.meta["val"].shape[1])
        if most is not None and editor.tensor(A) is not None and editor.tensor(B) is not None:
            editor.replace_results(node, _written_out(editor, node, most))
    return editor.done()


def _written_out(editor: Editor, node: Node, most: int) -> list[Node]:
    x, *constants, state = editor.arguments(node)
    A, B = (_wide(editor, constant) for constant in constants)
    name = f"{editor.tensor_name(constants[0])}_{editor.tensor_name(constants[1])}"

    def stored(kind: str, value: Tensor) -> Node:
        dtype = constants[0].meta["val"].dtype
        return editor.buffer(f"lmu_{kind}_{name}", value.to(dtype))

    if varies(x.meta["val"].shape[1]):
        jumps = stored(f"steps_{most}", squares(A, most + 1))
        options: tuple[Any, ...] = (x, state, jumps, stored("input", B))
        return editor.trace(by_steps, *options, like=node, half=frozenset())
    size = min(CHUNK, most)
    powers = all_powers(A, size)
    number = -(-most // size)
    options = (
        x,
        state,
        stored(f"responses_{size}", responses(powers, B)),
        stored(f"powers_{size}", powers[1:]),
        stored(f"chunks_{size}_{number}", squares(powers[size], number + 1)),
    )
    return editor.trace(by_chunks, *options, like=node, half=frozenset())


def _wide(editor: Editor, constant: Node) -> Any:
    stored = editor.tensor(constant)
    return stored.detach().double() if stored is not None else None


def all_powers(A: Tensor, most: int) -> Tensor:
    """(most + 1, n, n): A to the power of 0, 1, ... ``most``."""
    import torch

    powers = [torch.eye(len(A), dtype=A.dtype)]
    while len(powers) <= most:
        powers.append(powers[-1] @ A)
    return torch.stack(powers)


def squares(A: Tensor, most: int) -> Tensor:
    """(rounds, n, n): A to the power of 1, 2, 4, ... below ``most``, and at least the first."""
    import torch

    powers = [A]
    while 1 << len(powers) < most:
        powers.append(powers[-1] @ powers[-1])
    return torch.stack(powers)


def responses(powers: Tensor, B: Tensor) -> Tensor:
    """(step, n, step): what a memory has at each step of an input 1 at each."""
    import torch

    size = len(powers) - 1
    seen = torch.matmul(powers[:size], B)
    since = torch.arange(size)[:, None] - torch.arange(size)
    return (seen[since.clamp(min=0)] * (since >= 0)[..., None]).transpose(1, 2)


def by_steps(x: Tensor, state: Tensor, jumps: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """Case 1."""
    import torch

    new = x.unsqueeze(2) * B.unsqueeze(-1)
    memory = _joined(torch.cat([state.unsqueeze(1), new], 1), jumps)
    return memory[:, 1:], memory[:, -1]


def by_chunks(
    x: Tensor, state: Tensor, responses: Tensor, powers: Tensor, jumps: Tensor
) -> tuple[Tensor, Tensor]:
    """Case 2."""
    import torch

    size, states, _ = responses.shape
    pieces = chunks(x, size)
    within = torch.matmul(responses.reshape(-1, size), pieces)  # (chunk, size n, d)
    number = -(-x.shape[1] // size)
    ends = within[:, -states:].reshape(-1, number, states, x.shape[2])
    memory = _joined(torch.cat([state.unsqueeze(1), ends], 1), jumps)
    starts = memory[:, :number].reshape(-1, states, x.shape[2])
    every = within + torch.matmul(powers.reshape(-1, states), starts)
    every = whole(every.reshape(-1, size, states, x.shape[2]), x)
    return every, every[:, -1]


def _joined(new: Tensor, jumps: Tensor) -> Tensor:
    """Every memory on axis 1: ``jumps`` are A to the power of 1, 2, 4... of its steps."""
    import torch

    for number, jump in enumerate(jumps.unbind(0)):
        new = new + torch.matmul(jump, delayed(new, 1 << number))
    return new
