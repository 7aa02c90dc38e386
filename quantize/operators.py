"""Operators that torch lacks: weights with a scale a group, and 8-bit floats.

torch's own ``quantized_decomposed`` ones do the rest. All keep the type of the float side in
``out_dtype``, so that half precision reaches through them.
"""

from __future__ import annotations

import torch

_GROUPS = "edgekit::dequantize_groups"
_QUANTIZE_FP8 = "edgekit::quantize_fp8"
_DEQUANTIZE_FP8 = "edgekit::dequantize_fp8"


@torch.library.custom_op(_GROUPS, mutates_args=())
def dequantize_groups(
    levels: torch.Tensor, scale: torch.Tensor, axis: int, out_dtype: torch.dtype | None = None
) -> torch.Tensor:
    """Levels times scales; along ``axis`` each scale holds for ``levels / scale`` positions.

    Args:
        levels: int8.
        scale: of the same rank; its size along ``axis`` divides that of the levels.
    """
    size = levels.shape[axis] // scale.shape[axis]
    real = levels.float() * scale.float().repeat_interleave(size, axis)
    return real.to(out_dtype or torch.float32)


@dequantize_groups.register_fake
def _(
    levels: torch.Tensor, scale: torch.Tensor, axis: int, out_dtype: torch.dtype | None = None
) -> torch.Tensor:
    return torch.empty_like(levels, dtype=out_dtype or torch.float32)


@torch.library.custom_op(_QUANTIZE_FP8, mutates_args=())
def quantize_fp8(x: torch.Tensor, scale: float) -> torch.Tensor:
    """The nearest E4M3 floats to x / scale, clamped to their range of 448."""
    return (x.float() / scale).clamp(-448, 448).to(torch.float8_e4m3fn)


@quantize_fp8.register_fake
def _(x: torch.Tensor, scale: float) -> torch.Tensor:
    return torch.empty_like(x, dtype=torch.float8_e4m3fn)


@torch.library.custom_op(_DEQUANTIZE_FP8, mutates_args=())
def dequantize_fp8(
    levels: torch.Tensor, scale: torch.Tensor, axis: int, out_dtype: torch.dtype | None = None
) -> torch.Tensor:
    """Levels times scales: one scale, or one for each position along ``axis``."""
    shape = [1] * levels.dim()
    if scale.numel() > 1:
        shape[axis] = -1
    return (levels.float() * scale.float().reshape(shape)).to(out_dtype or torch.float32)


@dequantize_fp8.register_fake
def _(
    levels: torch.Tensor, scale: torch.Tensor, axis: int, out_dtype: torch.dtype | None = None
) -> torch.Tensor:
    return torch.empty_like(levels, dtype=out_dtype or torch.float32)
