"""Operators on each element: arithmetic, comparisons, activations, quantization."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgekit.converters.mil_ops import Table

if TYPE_CHECKING:
    from torch import Tensor


def table() -> Table:
    """MIL name -> function."""
    import torch
    from torch.nn import functional

    return {
        # arithmetic
        "add": lambda x, y: x + y,
        "sub": lambda x, y: x - y,
        "mul": lambda x, y: x * y,
        "real_div": lambda x, y: x / y,
        "floor_div": lambda x, y: torch.div(x, y, rounding_mode="floor"),
        "mod": lambda x, y: torch.remainder(x, y),
        "pow": lambda x, y: torch.pow(x, y),
        "maximum": lambda x, y: torch.maximum(x, y),
        "minimum": lambda x, y: torch.minimum(x, y),
        # comparisons and logic
        "equal": lambda x, y: x == y,
        "not_equal": lambda x, y: x != y,
        "greater": lambda x, y: x > y,
        "greater_equal": lambda x, y: x >= y,
        "less": lambda x, y: x < y,
        "less_equal": lambda x, y: x <= y,
        "logical_and": lambda x, y: torch.logical_and(x, y),
        "logical_or": lambda x, y: torch.logical_or(x, y),
        "logical_xor": lambda x, y: torch.logical_xor(x, y),
        "logical_not": lambda x: torch.logical_not(x),
        "select": lambda cond, a, b: torch.where(cond.bool(), a, b),
        # unary
        **{name: _unary(getattr(torch, name)) for name in _SAME_IN_TORCH},
        "cast": lambda x, dtype: x,  # the evaluator rounds to the declared type
        "identity": lambda x: x,
        "read_state": lambda input: input,
        "coreml_update_state": lambda state, value: value,  # the evaluator keeps it
        "clip": lambda x, alpha, beta: x.clamp(alpha, beta),
        "inverse": lambda x, epsilon=1e-4: 1 / (x + epsilon),
        "log": lambda x, epsilon=1e-45: torch.log(x + epsilon),
        "rsqrt": lambda x, epsilon=1e-12: torch.rsqrt(x + epsilon),
        "threshold": lambda x, alpha: x.clamp(min=alpha),
        # activations
        "clamped_relu": lambda x, alpha, beta: torch.where(x >= 0, x, alpha * x).clamp(max=beta),
        "elu": lambda x, alpha: functional.elu(x, alpha),
        "gelu": gelu,
        "leaky_relu": lambda x, alpha: functional.leaky_relu(x, alpha),
        "linear_activation": lambda x, alpha, beta: alpha * x + beta,
        "prelu": lambda x, alpha: functional.prelu(x, alpha),
        "relu": lambda x: functional.relu(x),
        "relu6": lambda x: functional.relu6(x),
        "scaled_tanh": lambda x, alpha, beta: alpha * torch.tanh(beta * x),
        "sigmoid_hard": lambda x, alpha, beta: (alpha * x + beta).clamp(0, 1),
        "silu": lambda x: functional.silu(x),
        "softplus": lambda x: functional.softplus(x),
        "softplus_parametric": softplus_parametric,
        "softsign": lambda x: functional.softsign(x),
        "thresholded_relu": lambda x, alpha: torch.where(x >= alpha, x, 0.0),
        # int8
        "quantize": quantize,
        "dequantize": dequantize,
    }


_SAME_IN_TORCH = [
    "abs",
    "acos",
    "asin",
    "atan",
    "atanh",
    "ceil",
    "cos",
    "cosh",
    "erf",
    "exp",
    "exp2",
    "floor",
    "round",
    "sigmoid",
    "sign",
    "sin",
    "sinh",
    "sqrt",
    "square",
    "tan",
    "tanh",
]


def _unary(function: Any) -> Any:
    return lambda x: function(x)


def gelu(x: Tensor, mode: str = "EXACT") -> Tensor:
    """x * P(N(0, 1) <= x), exactly or by one of MIL's two approximations."""
    import torch
    from torch.nn import functional

    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    return functional.gelu(x, approximate="tanh" if mode == "TANH_APPROXIMATION" else "none")


def softplus_parametric(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """alpha * log(1 + exp(beta * x)), with one alpha and one beta a channel (axis 1)."""
    from torch.nn import functional

    return _along(alpha, x, 1) * functional.softplus(_along(beta, x, 1) * x)


def quantize(
    input: Tensor,
    scale: Any,
    output_dtype: str,
    zero_point: Any = 0,
    axis: int | None = None,
) -> Tensor:
    """clip(round(input / scale) + zero_point) into the range of ``output_dtype``."""
    import torch

    levels = torch.iinfo(getattr(torch, output_dtype))
    scaled = torch.round(input / _along(scale, input, axis)) + _along(zero_point, input, axis)
    return scaled.clamp(levels.min, levels.max)


def dequantize(input: Tensor, scale: Any, zero_point: Any = 0, axis: int | None = None) -> Tensor:
    """scale * (input - zero_point), in float32."""
    shifted = input.float() - _along(zero_point, input, axis)
    return shifted * _along(scale, input, axis)


def _along(value: Any, like: Tensor, axis: int | None) -> Tensor:
    """A scalar, or a vector shaped so that it broadcasts along one axis of ``like``."""
    import torch

    tensor = torch.as_tensor(value, dtype=torch.float32)
    if tensor.ndim == 0 or axis is None:
        return tensor
    shape = [1] * like.ndim
    shape[axis] = -1
    return tensor.reshape(shape)
