"""sign_codes: 1 where a value is not below zero, else -1.

Gradients pass straight through where |x| <= 1, and not beyond (M. Courbariaux et al., "Binarized
Neural Networks", 2016, equation 4). It enters a graph whole, so that training a graph has them too.
"""

from __future__ import annotations

from typing import Any

import torch


@torch.library.custom_op("edgekit::sign_codes", mutates_args=())
def sign_codes(x: torch.Tensor) -> torch.Tensor:
    """Of any shape."""
    return written_out(x).clone()


@sign_codes.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


def written_out(x: torch.Tensor) -> torch.Tensor:
    """``sign_codes`` in plain operators, as targets lower it."""
    return (x >= 0).to(x.dtype) * 2 - 1


def _save(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
    (x,) = ctx.saved_tensors
    passed: torch.Tensor = gradient * (x.abs() <= 1)
    return passed


sign_codes.register_autograd(_backward, setup_context=_save)
