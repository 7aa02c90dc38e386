"""FakeQuantizer: rounds to levels as the placed graph does, and learns its step.

LSQ: S. K. Esser et al., "Learned Step Size Quantization", ICLR 2020.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from edgekit.quantize.scales import Entry
from edgekit.quantize.schemes import QMAX
from edgekit.quantize.weights import nearest

#: The least and the largest scale: positive numbers of float16.
LEAST, LARGEST = 2.0**-24, 65504.0


class FakeQuantizer(torch.nn.Module):
    """x' = s q(x), q(x) = clamp(round(x / s), low, high), with the gradients of LSQ.

    With g = 1 / sqrt(N high) and N the values of one sample, or one weight, that share s:

        dx'/dx = 1 where low < x / s < high, else 0
        dx'/ds = g (q(x) - x / s) where low < x / s < high, else g q(x)     (equation 3)

    The step is the parameter; what multiplies is the nearest positive float16, as a scale table
    keeps it, and the gradient passes that rounding straight. The scale of an 8-bit float stays
    as it is: its levels are about as fine at any scale. So does that of what a spiking unit gives.

    Attributes:
        step: (n,): one, or where the table's differ one for each of its.
        sites: the names of those that it stands for.
    """

    def __init__(self, entry: Entry, factor: float = 1.0, fixed: bool = False) -> None:
        """
        Args:
            entry: of the site: its first scales.
            factor: what the site's tensor has been multiplied by.
            fixed: whether the step stays as it is.
        """
        super().__init__()
        one = len(set(entry.scale)) == 1
        steps = torch.tensor(entry.scale[:1] if one else entry.scale, dtype=torch.float32)
        self.step = torch.nn.Parameter(steps, requires_grad=not fixed and entry.dtype != "fp8")
        self.sites: list[str] = []
        self._entry, self._factor = entry, factor
        self.weight = entry.kind == "weight"
        self.high = QMAX[entry.dtype]
        self.low = {"int8": -self.high - (not self.weight), "uint8": 0}.get(entry.dtype, -self.high)

    @property
    def entry(self) -> Entry:
        """What has been learned, as a scale table keeps it."""
        steps = half(self.step.detach()).double().cpu()
        scale = steps.expand(len(self._entry.scale)).tolist()
        return self._entry.model_copy(update={"scale": tuple(scale)})

    def exact(self) -> torch.Tensor:
        """What a level is multiplied by, (n,) in float32: as ``place`` rounds it, upwards."""
        steps = half(self.step.detach())
        if self._factor == 1:
            return steps.float()
        wanted = steps.double() * self._factor
        least = half(wanted)
        above = (least.view(torch.int16) + 1).view(torch.float16)
        return torch.where(least.double() < wanted, above, least).float()

    def scaled(self, values: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
        """Values in units of the step, computed as the operators in the placed graph do."""
        if self.weight:
            return values.double() / exact.double()
        if self._entry.dtype == "fp8":
            return values / exact
        return values * exact.double().reciprocal().float()

    def levels(self, scaled: torch.Tensor) -> torch.Tensor:
        """The levels nearest to values in units of the step."""
        if self._entry.dtype == "fp8":
            return nearest(scaled, "fp8")
        return scaled.round().clamp(self.low, self.high)

    def gain(self, values: torch.Tensor) -> float:
        """g, and what the factor does to the gradient of the step."""
        count = values.numel() / (len(self.step) if self.weight else len(values))
        return self._factor / math.sqrt(count * self.high)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Values as their levels represent them, in the same shape."""
        result: torch.Tensor = _Quantize.apply(values, self.step, self)  # type: ignore[no-untyped-call]
        return result


class _Quantize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, values: torch.Tensor, step: torch.Tensor, quantizer: FakeQuantizer
    ) -> torch.Tensor:
        exact = quantizer.exact()[:, None]
        scaled = quantizer.scaled(values.reshape(len(exact), -1), exact)
        levels = quantizer.levels(scaled)
        inside = (scaled > quantizer.low) & (scaled < quantizer.high)
        slope = torch.where(inside, levels - scaled, levels).float()
        ctx.save_for_backward(inside, slope)
        ctx.gain = quantizer.gain(values)
        return (levels.float() * exact).reshape(values.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        inside, slope = ctx.saved_tensors
        gradient = gradients[0].reshape(inside.shape)
        to_step = (gradient * slope).sum(1) * ctx.gain
        return (gradient * inside).reshape(gradients[0].shape), to_step, None


def half(steps: torch.Tensor) -> torch.Tensor:
    """The nearest positive numbers of float16."""
    return steps.clamp(LEAST, LARGEST).half()
