"""Dictionary: a linear's weight as sparse combinations of the few columns of a small dense matrix.

The weight's rows are cut into blocks; column j of block g is D c_gj, with D (block, atoms) shared
by all and c_gj of few values. So  y_g = D (C_g x) + b_g:  two products, C_g dense as they run.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edgekit.operators.sparse_codes import bits, pack, sparse_codes, unpack


class Dictionary(nn.Module):
    """In the place of a linear.

    Args:
        in_features, out_features: as of the linear.
        block: rows of a block; divides ``out_features``.
        atoms: columns of D.
        nonzeros: values of each column's code.
        bias: whether it adds one.
    """

    packed: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        block: int,
        atoms: int,
        nonzeros: int,
        bias: bool,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.block, self.atoms, self.nonzeros = block, atoms, nonzeros
        self.blocks = out_features // block
        self.dictionary = nn.Linear(atoms, block, bias=False)
        codes = in_features * self.blocks
        #: By input and block; their places are those of ``packed``.
        self.values = nn.Parameter(torch.zeros(codes, nonzeros))
        size = -(-codes * nonzeros * bits(atoms) // 8)
        self.register_buffer("packed", torch.zeros(size, dtype=torch.uint8))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None

    def arguments(self) -> dict[str, Any]:
        """What it is made of."""
        return {
            "in_features": self.in_features,
            "out_features": self.out_features,
            "block": self.block,
            "atoms": self.atoms,
            "nonzeros": self.nonzeros,
            "bias": self.bias is not None,
        }

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features)."""
        codes = sparse_codes(self.values, self.packed, self.atoms)
        mixed = x @ codes.reshape(self.in_features, self.blocks * self.atoms)
        y: Tensor = self.dictionary(mixed.unflatten(-1, (self.blocks, self.atoms))).flatten(-2)
        return y if self.bias is None else y + self.bias

    def assign(self, dictionary: Tensor, codes: Tensor) -> None:
        """Take D (block, atoms) and the codes (in_features * blocks, atoms), sparse as they are."""
        places = codes.abs().topk(self.nonzeros, -1).indices.sort(-1).values
        with torch.no_grad():
            self.dictionary.weight.copy_(dictionary)
            self.values.copy_(codes.gather(1, places))
            self.packed.copy_(pack(places, self.atoms))

    def dense(self) -> Tensor:
        """The weight that it stands for, (out, in)."""
        places = unpack(self.packed, self.atoms, *self.values.shape)
        values = self.values.detach()
        codes = values.new_zeros(len(values), self.atoms).scatter(1, places, values)
        columns = codes @ self.dictionary.weight.detach().T
        return columns.reshape(self.in_features, self.out_features).T


def make(
    in_features: int, out_features: int, block: int, atoms: int, nonzeros: int, bias: bool
) -> Dictionary:
    """One with codes of zero."""
    return Dictionary(in_features, out_features, block, atoms, nonzeros, bias)
