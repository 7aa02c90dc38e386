"""Schemes: which numbers a precision stores weights in, and computes activations with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from edgekit.errors import EdgekitError

Precision = Literal["fp32", "fp16", "int8", "w8a16", "w4a16", "w4a8", "fp8"]
Dtype = Literal["int8", "uint8", "int4", "fp8"]
Effort = Literal["quick", "balanced", "best"]
Granularity = Literal["tensor", "channel", "group32", "group64", "group128"]

#: The largest level of a dtype. Weights use -QMAX..QMAX, 8-bit activations also -QMAX - 1;
#: uint8 is for what is never negative.
QMAX: dict[str, int] = {"int8": 127, "uint8": 255, "int4": 7, "fp8": 448}


@dataclass(frozen=True)
class Scheme:
    """How a precision quantizes.

    Attributes:
        weight: dtype of weights.
        activation: dtype of what enters a quantized operator; None leaves it in float.
        granularity: what shares a weight scale: the tensor, an output channel, or so many
            consecutive input channels of one.
    """

    weight: Dtype
    activation: Literal["int8", "fp8"] | None
    granularity: Granularity = "channel"

    @property
    def group(self) -> int | None:
        """Input channels that share a weight scale, or None."""
        size = self.granularity.removeprefix("group")
        return int(size) if size.isdigit() else None

    @property
    def dtypes(self) -> tuple[str, ...]:
        """What a device must run."""
        return (self.weight,) if self.activation is None else (self.weight, self.activation)


SCHEMES = {
    "int8": Scheme("int8", "int8"),
    "w8a16": Scheme("int8", None),
    "w4a16": Scheme("int4", None, "group32"),
    "w4a8": Scheme("int4", "int8"),
    "fp8": Scheme("fp8", "fp8"),
}


def scheme_for(precision: str, granularity: Granularity | None) -> Scheme:
    """The scheme of a precision, with another granularity if one is asked for.

    Raises:
        EdgekitError: integer activations with groups of weights: no integer kernel takes them.
    """
    scheme = SCHEMES[precision]
    if granularity is None:
        return scheme
    if granularity.startswith("group") and scheme.activation is not None:
        raise EdgekitError(
            f"{precision} cannot have a scale for each {granularity}.",
            "A product of 8-bit activations is summed over all input channels before it is scaled.",
            "Use --granularity channel, or --precision w8a16 or w4a16.",
        )
    return replace(scheme, granularity=granularity)
