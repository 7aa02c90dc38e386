"""cross_attention: a first token that attends to all, with heads of any width.

As CrossViT's (C. Chen et al., ICCV 2021), whose own module takes its heads' width from that of the
tokens, so that none of them can go:

    y = P concat_h(softmax(q_h k_h^T / sqrt(d)) v_h),  q = Wq x_0,  k = Wk x,  v = Wv x
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class CrossAttention(nn.Module):
    """Tokens (b, n, width) to the first's (b, 1, width).

    ``wq``, ``wk``, ``wv`` and ``proj`` are put in by the pass.
    """

    wq: nn.Module
    wk: nn.Module
    wv: nn.Module
    proj: nn.Module

    def __init__(self, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, head_dim

    def forward(self, x: Tensor) -> Tensor:
        """As the file says."""
        q, k, v = (
            layer(part).unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
            for layer, part in ((self.wq, x[:, :1]), (self.wk, x), (self.wv, x))
        )
        weights = (q @ k.transpose(-2, -1) * self.head_dim**-0.5).softmax(-1)
        y: Tensor = self.proj((weights @ v).transpose(1, 2).flatten(2))
        return y

    def arguments(self) -> dict[str, Any]:
        """What ``make`` takes."""
        return {"num_heads": self.num_heads, "head_dim": self.head_dim}


def make(num_heads: int, head_dim: int) -> nn.Module:
    """The module without its layers."""
    return CrossAttention(num_heads, head_dim)


def take_over(module: Any) -> nn.Module:
    """Ours in the place of timm's, with its layers."""
    made = CrossAttention(module.num_heads, module.wq.out_features // module.num_heads)
    for name in ("wq", "wk", "wv", "proj"):
        made._modules[name] = module._modules[name]
    return made.train(module.training)


def fits(module: Any) -> bool:
    """Whether a module is timm's, with the usual scale."""
    if type(module).__module__ != "timm.models.crossvit" or not hasattr(module, "wq"):
        return False
    each = module.wq.out_features // module.num_heads
    return bool(abs(module.scale * each**0.5 - 1) < 1e-6)
