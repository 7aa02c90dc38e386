"""few_levels: a linear or convolution with weights of two or three levels a channel.

``weight`` is what learns; what multiplies is made of it by ``operators/few_levels.py``.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from edgekit.errors import EdgekitError
from edgekit.operators.few_levels import LEVELS, few_levels

_CONVOLUTION = "in_channels out_channels kernel_size stride padding dilation groups padding_mode"
#: What each kind of layer is made of.
_MADE_OF = {
    "Linear": ("in_features", "out_features"),
    "Conv1d": tuple(_CONVOLUTION.split()),
    "Conv2d": tuple(_CONVOLUTION.split()),
}


class _FewLevels(nn.Module):
    """What the layers have in common."""

    layer: str
    levels: str
    weight: Tensor

    def arguments(self) -> dict[str, Any]:
        """What ``make`` takes."""
        made_of = [list(v) if isinstance(v, tuple) else v for v in _made_of(self, self.layer)]
        own = {"layer": self.layer, "levels": self.levels, "bias": self.bias is not None}
        return {**own, "made_of": made_of}

    def leveled(self) -> Tensor:
        """The weight that multiplies."""
        y: Tensor = few_levels(self.weight, self.levels)
        return y


class FewLevelsLinear(_FewLevels, nn.Linear):
    """In the place of a linear."""

    layer = "Linear"

    def forward(self, input: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features)."""
        return nn.functional.linear(input, self.leveled(), self.bias)


class FewLevelsConv1d(_FewLevels, nn.Conv1d):
    """In the place of a convolution over length."""

    layer = "Conv1d"

    def forward(self, input: Tensor) -> Tensor:
        """(b, in_channels, L) to (b, out_channels, L')."""
        y: Tensor = self._conv_forward(input, self.leveled(), self.bias)
        return y


class FewLevelsConv2d(_FewLevels, nn.Conv2d):
    """In the place of a convolution over height and width."""

    layer = "Conv2d"

    def forward(self, input: Tensor) -> Tensor:
        """(b, in_channels, H, W) to (b, out_channels, H', W')."""
        y: Tensor = self._conv_forward(input, self.leveled(), self.bias)
        return y


_KINDS: dict[str, Any] = {
    kind.layer: kind for kind in (FewLevelsLinear, FewLevelsConv1d, FewLevelsConv2d)
}


def make(layer: str, levels: str, bias: bool, made_of: list[Any]) -> _FewLevels:
    """One with random weights.

    Args:
        layer: the name of torch's.
        made_of: the values of what ``_MADE_OF`` names.

    Raises:
        EdgekitError: no such levels.
    """
    if levels not in LEVELS:
        raise EdgekitError(f"A layer's levels are {levels!r}.", "", f"Known: {', '.join(LEVELS)}.")
    values = [tuple(v) if isinstance(v, list) else v for v in made_of]
    named = dict(zip(_MADE_OF[layer], values, strict=True))
    made: _FewLevels = _KINDS[layer](**named, bias=bias)
    made.levels = levels
    return made


def take_over(layer: Any, levels: str) -> _FewLevels:
    """Ours in the place of torch's, with its weight and bias."""
    kind = next(name for name in _KINDS if isinstance(layer, getattr(nn, name)))
    made = make(kind, levels, layer.bias is not None, _made_of(layer, kind))
    made.weight, made.bias = layer.weight, layer.bias
    return made.train(layer.training)


def _made_of(layer: Any, kind: str) -> list[Any]:
    return [getattr(layer, name) for name in _MADE_OF[kind]]
