"""Normalisations, and attention as one operator."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from edgekit.errors import EdgekitError
from edgekit.families.onnx_graph.table import operator


@operator("BatchNormalization")
def batch_norm(
    x: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor,
    mean: torch.Tensor,
    variance: torch.Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    spatial: int = 1,
    training_mode: int = 0,
) -> torch.Tensor:
    """By the statistics in the file."""
    if training_mode or not spatial:
        raise EdgekitError(
            "BatchNormalization in training mode is not read.",
            "It would normalise by the batch at hand.",
            "Export the model after model.eval().",
        )
    return F.batch_norm(x, mean, variance, scale, bias, eps=epsilon)


@operator("InstanceNormalization")
def instance_norm(
    x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, *, epsilon: float = 1e-5
) -> torch.Tensor:
    """Over each channel of each sample."""
    return F.instance_norm(x, weight=scale, bias=bias, eps=epsilon)


@operator("LayerNormalization")
def layer_norm(
    x: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> torch.Tensor:
    """Over the dimensions from ``axis`` on."""
    shape = x.shape[axis:]
    if scale.shape == shape and (bias is None or bias.shape == shape):
        return F.layer_norm(x, shape, scale, bias, epsilon)
    result = F.layer_norm(x, shape, eps=epsilon) * scale
    return result if bias is None else result + bias


@operator("RMSNormalization")
def rms_norm(
    x: torch.Tensor,
    scale: torch.Tensor,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> torch.Tensor:
    """Over the dimensions from ``axis`` on, without their mean."""
    return F.rms_norm(x, list(x.shape[axis:]), eps=epsilon) * scale


@operator("GroupNormalization")
def group_norm(
    x: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor,
    *,
    num_groups: int,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> torch.Tensor:
    """Over groups of channels. ONNX's checker refuses its first form, of opset 18."""
    return F.group_norm(x, num_groups, scale, bias, epsilon)


@operator("LpNormalization")
def lp_norm(x: torch.Tensor, *, axis: int = -1, p: int = 2) -> torch.Tensor:
    """Divided by its own norm along one dimension."""
    norm: torch.Tensor = torch.linalg.vector_norm(x, p, axis, keepdim=True)
    return x / norm


@operator("LRN")
def local_response_norm(
    x: torch.Tensor, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0
) -> torch.Tensor:
    """By the squares of neighbouring channels."""
    if size % 2 == 0:
        raise EdgekitError("LRN of an even size is not read: torch centres it elsewhere.")
    return F.local_response_norm(x, size, alpha, beta, bias)


@operator("Attention")
def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None = None,
    past_key: Any = None,
    past_value: Any = None,
    *,
    is_causal: int = 0,
    scale: float | None = None,
    q_num_heads: int = 0,
    kv_num_heads: int = 0,
    softcap: float = 0.0,
    softmax_precision: int = 0,
    qk_matmul_output_mode: int = 0,
) -> torch.Tensor:
    """softmax(scale Q K^T + mask) V of (batch, heads, tokens, width)."""
    if query.dim() != 4 or past_key is not None or past_value is not None or softcap:
        raise EdgekitError(
            "This form of Attention is not read.",
            "edgekit reads it with 4-d inputs, without a cache or a soft cap.",
            "Export with an opset below 23, which writes attention out.",
        )
    grouped = query.shape[1] != key.shape[1]
    return F.scaled_dot_product_attention(
        query, key, value, mask, is_causal=bool(is_causal), scale=scale, enable_gqa=grouped
    )
