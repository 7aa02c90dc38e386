"""Operators that act on each element: arithmetic, comparison, activations, casts."""

from __future__ import annotations

import math
import operator as python
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F

from edgekit.families.onnx_graph.table import enter, operator

#: onnx.TensorProto's number -> torch's dtype
DTYPES = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    5: torch.int16,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
    16: torch.bfloat16,
}
_PLAIN = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "BitwiseNot": torch.bitwise_not,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "HardSwish": F.hardswish,
    "Identity": lambda x: x,
    "IsNaN": torch.isnan,
    "Log": torch.log,
    "Mish": F.mish,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal,
    "Relu": torch.relu,
    "Round": torch.round,
    "Sigmoid": torch.sigmoid,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Softplus": F.softplus,
    "Softsign": F.softsign,
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
    "Tanh": torch.tanh,
    "And": torch.logical_and,
    "Or": torch.logical_or,
    "Xor": torch.logical_xor,
    "BitwiseAnd": python.and_,
    "BitwiseOr": python.or_,
    "BitwiseXor": python.xor,
}
_WITH_NUMBERS = {
    "Add": python.add,
    "Sub": python.sub,
    "Mul": python.mul,
    "Equal": python.eq,
    "Greater": python.gt,
    "GreaterOrEqual": python.ge,
    "Less": python.lt,
    "LessOrEqual": python.le,
    "Where": torch.where,
}


def _enter_all() -> None:
    for numbers, functions in ((False, _PLAIN), (True, _WITH_NUMBERS)):
        for name, function in functions.items():
            enter(name, _without_attributes(function), numbers=numbers)


def _without_attributes(function: Any) -> Any:
    """Torch's own keywords are not ONNX's attributes."""
    return lambda *inputs: function(*inputs)


_enter_all()


@operator("Div", numbers=True)
def divide(a: Any, b: Any) -> torch.Tensor:
    """Integers are divided towards zero."""
    result = a if isinstance(a, torch.Tensor) else b
    if result.is_floating_point():
        return a / b  # type: ignore[no-any-return]
    first = a if isinstance(a, torch.Tensor) else torch.full_like(b, a)
    return torch.div(first, b, rounding_mode="trunc")


@operator("Pow", numbers=True)
def power(a: Any, b: Any) -> torch.Tensor:
    """The result has the base's dtype."""
    result = torch.pow(a, b)
    return result.to(a.dtype) if isinstance(a, torch.Tensor) else result


@operator("Mod", numbers=True)
def mod(a: Any, b: Any, *, fmod: int = 0) -> torch.Tensor:
    """The result has the divisor's sign, or with ``fmod`` the dividend's."""
    return torch.fmod(a, b) if fmod else torch.remainder(a, b)


@operator("Max", numbers=True)
def greatest(*values: Any) -> torch.Tensor:
    """Of all inputs, broadcast."""
    result: torch.Tensor = reduce(lambda a, b: _bounded(a, b, torch.maximum, "min"), values)
    return result


@operator("Min", numbers=True)
def least(*values: Any) -> torch.Tensor:
    """Of all inputs, broadcast."""
    result: torch.Tensor = reduce(lambda a, b: _bounded(a, b, torch.minimum, "max"), values)
    return result


def _bounded(a: Any, b: Any, function: Any, side: str) -> Any:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return function(a, b)
    x, number = (a, b) if isinstance(a, torch.Tensor) else (b, a)
    return torch.clamp(x, **{side: number})


@operator("Sum", numbers=True)
def total(*values: Any) -> Any:
    """Of all inputs, broadcast."""
    return reduce(python.add, values)


@operator("Mean")
def mean(*values: torch.Tensor) -> torch.Tensor:
    """Of all inputs, broadcast."""
    return reduce(python.add, values) / len(values)


@operator("Clip", numbers=True)
def clip(x: torch.Tensor, min: Any = None, max: Any = None) -> torch.Tensor:
    """Between two bounds, each of which may be absent."""
    return x if min is None and max is None else torch.clamp(x, min, max)


@operator("BitShift")
def shift(a: torch.Tensor, b: torch.Tensor, *, direction: str) -> torch.Tensor:
    """Left or right."""
    return a << b if direction == "LEFT" else a >> b


@operator("Cast")
def cast(x: torch.Tensor, *, to: int, saturate: int = 1) -> torch.Tensor:
    """To another dtype."""
    return x.to(DTYPES[to])


@operator("CastLike")
def cast_like(x: torch.Tensor, like: torch.Tensor, *, saturate: int = 1) -> torch.Tensor:
    """To another tensor's dtype."""
    return x.to(like.dtype)


@operator("IsInf")
def is_infinite(
    x: torch.Tensor, *, detect_negative: int = 1, detect_positive: int = 1
) -> torch.Tensor:
    """Of either sign, or of one."""
    if detect_negative and detect_positive:
        return torch.isinf(x)
    bound = math.inf if detect_positive else -math.inf
    return x == bound if detect_negative or detect_positive else torch.zeros_like(x).bool()


@operator("LeakyRelu")
def leaky_relu(x: torch.Tensor, *, alpha: float = 0.01) -> torch.Tensor:
    """x, or alpha x below zero."""
    return F.leaky_relu(x, alpha)


@operator("PRelu")
def prelu(x: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    """x, or slope x below zero; the slope is broadcast."""
    return torch.where(x < 0, slope * x, x)


@operator("Elu")
def elu(x: torch.Tensor, *, alpha: float = 1.0) -> torch.Tensor:
    """x, or alpha (exp(x) - 1) below zero."""
    return F.elu(x, alpha)


@operator("Selu")
def selu(
    x: torch.Tensor, *, alpha: float = 1.6732632423543772, gamma: float = 1.0507009873554805
) -> torch.Tensor:
    """gamma elu(x, alpha)."""
    return gamma * F.elu(x, alpha)


@operator("Celu")
def celu(x: torch.Tensor, *, alpha: float = 1.0) -> torch.Tensor:
    """max(0, x) + min(0, alpha (exp(x / alpha) - 1))."""
    return F.celu(x, alpha)


@operator("Gelu")
def gelu(x: torch.Tensor, *, approximate: str = "none") -> torch.Tensor:
    """By erf, or by tanh."""
    return F.gelu(x, approximate=approximate)


@operator("HardSigmoid")
def hard_sigmoid(x: torch.Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> torch.Tensor:
    """alpha x + beta, between 0 and 1."""
    if math.isclose(alpha, 1 / 6, rel_tol=1e-6) and beta == 0.5:
        return F.hardsigmoid(x)
    return torch.clamp(x * alpha + beta, 0, 1)


@operator("Swish")
def swish(x: torch.Tensor, *, alpha: float = 1.0) -> torch.Tensor:
    """x sigmoid(alpha x)."""
    return F.silu(x) if alpha == 1 else x * torch.sigmoid(alpha * x)


@operator("ThresholdedRelu")
def thresholded_relu(x: torch.Tensor, *, alpha: float = 1.0) -> torch.Tensor:
    """x where it is above alpha, else 0."""
    return F.threshold(x, alpha, 0.0)


@operator("Shrink")
def shrink(x: torch.Tensor, *, bias: float = 0.0, lambd: float = 0.5) -> torch.Tensor:
    """x moved by ``bias`` towards zero, and zero within ``lambd`` of it."""
    zero = torch.zeros_like(x)
    return torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, zero))
