"""Spiking attention: self-attention of spikes, without softmax.

Z. Zhou et al., "Spikformer: When Spiking Neural Network Meets Transformer", ICLR 2023, equation 6,
and M. Yao et al., "Spike-driven Transformer", NeurIPS 2023: products of spikes are never negative,
so that nothing need make weights of them. With units u (``operators/qcfs.py``), queries and keys
less their means m, a learned factor s a head, and L tokens,

    Q = u(q - m_q),  K = u(k - m_k),  V = u(v),     y = proj(u(norm(s Q K^T V / L)))

Q (K^T V) is the same in the other order, and takes 2 L d^2 products a head rather than 2 L^2 d.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edgekit.compress.attentions import split

#: What is taken over from the attention in whose place it stands.
TAKEN = ("qkv", "q_norm", "k_norm", "norm", "proj")
_UNITS = ("query_unit", "key_unit", "value_unit", "output_unit")


class SpikingAttention(nn.Module):
    """Tokens (b, L, width) to the same.

    Its layers (``TAKEN``) and units are put in by the pass.

    Args:
        heads: how many.
        head_dim: channels of each, d.
        keys_first: whether K^T V comes first, as is cheaper where L > d.
    """

    qkv: nn.Module
    q_norm: nn.Module
    k_norm: nn.Module
    norm: nn.Module
    proj: nn.Module
    query_unit: nn.Module
    key_unit: nn.Module
    value_unit: nn.Module
    output_unit: nn.Module

    def __init__(self, heads: int, head_dim: int, keys_first: bool) -> None:
        super().__init__()
        self.heads, self.head_dim, self.keys_first = heads, head_dim, keys_first
        for name in (*TAKEN, *_UNITS):
            setattr(self, name, nn.Identity())
        self.query_mean = nn.Parameter(torch.zeros(heads, 1, head_dim))
        self.key_mean = nn.Parameter(torch.zeros(heads, 1, head_dim))
        self.factor = nn.Parameter(torch.ones(heads, 1, 1))

    def arguments(self) -> dict[str, Any]:
        """What ``make`` takes."""
        names = ("heads", "head_dim", "keys_first")
        return {name: getattr(self, name) for name in names}

    def forward(self, x: Tensor, attn_mask: None = None, is_causal: bool = False) -> Tensor:
        """As the file says; of a mask there is none, as ``attentions.find`` has seen."""
        mixed = self.mixed(x).transpose(1, 2).flatten(2)
        y: Tensor = self.proj(self.output_unit(self.norm(mixed)))
        return y

    def mixed(self, x: Tensor) -> Tensor:
        """What the heads give, (b, heads, L, d)."""
        q, k, v = split(self.qkv(x), self.heads, self.q_norm, self.k_norm)
        q, k = self.query_unit(q - self.query_mean), self.key_unit(k - self.key_mean)
        keys, v = k.transpose(-2, -1), self.value_unit(v)
        product: Tensor = q @ (keys @ v) if self.keys_first else (q @ keys) @ v
        return product * (self.factor / x.shape[1])


def make(heads: int, head_dim: int, keys_first: bool) -> SpikingAttention:
    """One without its layers and units."""
    return SpikingAttention(heads, head_dim, keys_first)
