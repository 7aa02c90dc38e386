"""sparse_codes: a matrix of few values a row, from the values and the packed places of them.

    C[n, places[n, r]] = values[n, r],   0 elsewhere

It enters a graph whole, so that an exported file holds the values and the bits of their places
and not the matrix, which is larger.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F


def bits(atoms: int) -> int:
    """How many bits a place among ``atoms`` takes, 1 at the least."""
    return max(1, (atoms - 1).bit_length())


def pack(places: torch.Tensor, atoms: int) -> torch.Tensor:
    """Places (n, s), integers below ``atoms``, as bytes: their bits in a row, the highest first."""
    width = bits(atoms)
    ones = places.reshape(-1, 1) >> torch.arange(width - 1, -1, -1) & 1
    flat = F.pad(ones.flatten(), (0, -ones.numel() % 8)).reshape(-1, 8)
    return (flat << torch.arange(7, -1, -1)).sum(1).to(torch.uint8)


def unpack(packed: torch.Tensor, atoms: int, rows: int, each: int) -> torch.Tensor:
    """The places (rows, each) of ``pack``."""
    width = bits(atoms)
    here = packed.device
    ones = packed.long()[:, None] >> torch.arange(7, -1, -1, device=here) & 1
    used = ones.flatten()[: rows * each * width].reshape(rows * each, width)
    return (used << torch.arange(width - 1, -1, -1, device=here)).sum(1).reshape(rows, each)


@torch.library.custom_op("edgekit::sparse_codes", mutates_args=())
def sparse_codes(values: torch.Tensor, packed: torch.Tensor, atoms: int) -> torch.Tensor:
    """The matrix.

    Args:
        values: (n, s).
        packed: bytes of the places, as ``pack`` gives them.
        atoms: columns of the matrix.

    Returns:
        (n, atoms).
    """
    return values.new_zeros(len(values), atoms).scatter(
        1, unpack(packed, atoms, *values.shape), values
    )


@sparse_codes.register_fake
def _(values: torch.Tensor, packed: torch.Tensor, atoms: int) -> torch.Tensor:
    return values.new_empty(values.shape[0], atoms)


def _keep(ctx: Any, inputs: tuple[torch.Tensor, torch.Tensor, int], output: Any) -> None:
    values, packed, atoms = inputs
    ctx.save_for_backward(unpack(packed, atoms, *values.shape))


def _back(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
    (places,) = ctx.saved_tensors
    return gradient.gather(1, places), None, None


sparse_codes.register_autograd(_back, setup_context=_keep)
