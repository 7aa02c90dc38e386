"""An adversary of quantization: models whose activations hold outliers, with outputs unchanged.

Some channels of every norm before a linear, and of every attention's values, are made 100 times
as large, and the weights that read them 100 times as small. Trained transformers do this by
themselves; one scale for all channels then leaves the others a hundredth of the levels.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

#: How much larger, and how many channels of a hundred.
FACTOR, SHARE = 100.0, 4


def spoil(model: nn.Module, factor: float = FACTOR, share: int = SHARE, seed: int = 0) -> nn.Module:
    """A copy of a timm ViT or CrossViT with outliers, equal to it up to rounding.

    Args:
        factor: how much larger the chosen channels are.
        share: how many of a hundred are chosen, at least one.

    Raises:
        ValueError: the model has no block with ``norm1``, ``attn.qkv``, ``norm2`` and ``mlp.fc1``.
    """
    spoiled = copy.deepcopy(model)
    random = torch.Generator().manual_seed(seed)
    blocks: list[Any] = [m for m in spoiled.modules() if hasattr(getattr(m, "attn", None), "qkv")]
    if not blocks:
        raise ValueError(f"{type(model).__name__} has no block of timm's vision transformers.")
    with torch.no_grad():
        for block in blocks:
            scale = _scale(block.norm1.weight, factor, share, random)
            _norm(block.norm1, block.attn.qkv, scale)
            _norm(block.norm2, block.mlp.fc1, _scale(scale, factor, share, random))
            _values(block.attn, _scale(scale, factor, share, random))
    return spoiled


def _scale(like: torch.Tensor, factor: float, share: int, random: torch.Generator) -> torch.Tensor:
    chosen = torch.randperm(len(like), generator=random)[: max(1, len(like) * share // 100)]
    scale = torch.ones(len(like))
    scale[chosen] = factor
    return scale


def _norm(norm: Any, reader: Any, scale: torch.Tensor) -> None:
    norm.weight *= scale
    norm.bias *= scale
    reader.weight /= scale


def _values(attention: Any, scale: torch.Tensor) -> None:
    """The last third of qkv's outputs are the values, in the order that proj reads them."""
    attention.qkv.weight[-len(scale) :] *= scale[:, None]
    if attention.qkv.bias is not None:
        attention.qkv.bias[-len(scale) :] *= scale
    attention.proj.weight /= scale
