"""code_attention: linear attention on learned binary codes of queries and keys.

J. Liu et al., "EcoFormer: Energy-Saving Attention with Linear Complexity", NeurIPS 2022. A hash
(``codes.py``) gives each query and each key bits h in {-1, 1}^B, and the attention weight of a key
is how many bits it shares with the query, made positive:

    y_i = sum_j (h_i h_j + c) v_j / sum_j (h_i h_j + c),    c = B + 1

Sums over keys, of h_j v_j' and the like, are the same for every query: the cost grows with the
length, not with its square. Queries have a hash of their own, since they are not keys: the paper
shares one.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from edgekit.compress.attentions import SelfAttention, split
from edgekit.compress.modules.codes import Codes


class CodeAttention(nn.Module):
    """Tokens (b, L, width) to tokens; ``take_over`` puts in the layers of what it replaces."""

    qkv: nn.Module
    proj: nn.Module
    q_norm: nn.Module
    k_norm: nn.Module
    norm: nn.Module

    def __init__(self, heads: int, head_dim: int, bits: int, anchors: int) -> None:
        super().__init__()
        self.heads, self.head_dim, self.bits, self.count = heads, head_dim, bits, anchors
        self.queries = Codes(heads, head_dim, bits, anchors)
        self.keys = Codes(heads, head_dim, bits, anchors)

    def arguments(self) -> dict[str, Any]:
        """What ``make`` takes."""
        sizes = {"heads": self.heads, "head_dim": self.head_dim}
        return {**sizes, "bits": self.bits, "anchors": self.count}

    def forward(self, x: Tensor, attn_mask: None = None, is_causal: bool = False) -> Tensor:
        """As the file says; of a mask there is none, as ``attentions.find`` has seen."""
        q, k, v = split(self.qkv(x), self.heads, self.q_norm, self.k_norm)
        y = attend(self.queries(q), self.keys(k), v)
        out: Tensor = self.proj(self.norm(y.transpose(1, 2).flatten(2)))
        return out


def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention by shared bits, without the square of the length.

    Args:
        queries, keys: codes (..., L, B).
        values: (..., L, head_dim).
    """
    c, length = queries.shape[-1] + 1, keys.shape[-2]
    mixed = (keys.transpose(-2, -1) / length) @ values
    wanted = queries @ mixed + c * values.mean(-2, keepdim=True)
    return wanted / (queries @ keys.mean(-2, keepdim=True).transpose(-2, -1) + c)


def make(heads: int, head_dim: int, bits: int, anchors: int) -> CodeAttention:
    """The module without its layers."""
    return CodeAttention(heads, head_dim, bits, anchors)


def take_over(parts: SelfAttention, bits: int, anchors: int) -> CodeAttention:
    """Ours in the place of an attention, with its layers; the codes are still to be learned."""
    made = CodeAttention(parts.heads, parts.head_dim, bits, anchors)
    for name in ("qkv", "q_norm", "k_norm", "norm", "proj"):
        made.add_module(name, getattr(parts, name))
    return made.to(parts.qkv.weight.device).train(parts.module.training)
