"""Layers whose weights a mixer uses by itself, so that they are traced as layers all the same.

Mamba multiplies by ``dt_proj.weight`` and passes ``conv1d.weight`` to a function. In a graph such
products belong to no layer, and quantization would pass them by. While a model is traced its
mixers therefore see stand-ins, which call the layer itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Taps:
    """A depthwise convolution's weight without its axis of size 1, as it is passed around."""

    def __init__(self, layer: torch.nn.Conv1d) -> None:
        self._layer = layer
        self.size = layer.kernel_size[0]

    def convolve(self, x: torch.Tensor) -> torch.Tensor:
        """The layer on an input (b, d, L + size - 1) that is padded already: (b, d, L)."""
        padding, self._layer.padding = self._layer.padding, (0,)
        try:
            result: torch.Tensor = self._layer(x)
        finally:
            self._layer.padding = padding
        return result


class _ConvWeight:
    def __init__(self, layer: torch.nn.Conv1d) -> None:
        self._layer = layer

    def squeeze(self, axis: int) -> Taps:
        return Taps(self._layer)


class _LinearWeight:
    def __init__(self, layer: torch.nn.Linear) -> None:
        self._layer = layer

    def __matmul__(self, x: torch.Tensor) -> torch.Tensor:
        """(b, in, L) to (b, out, L), the bias added already."""
        result: torch.Tensor = self._layer(x.transpose(1, 2)).transpose(1, 2)
        return result


class _StandIn:
    """A layer as its mixer sees it; what is not overridden is the layer's own."""

    def __init__(self, layer: torch.nn.Module, **overridden: Any) -> None:
        self.__dict__.update(overridden)
        self._layer = layer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)

    def __call__(self, x: torch.Tensor) -> Any:
        return self._layer(x)


def _stand_in(name: str, layer: torch.nn.Module) -> _StandIn | None:
    if isinstance(layer, torch.nn.Conv1d) and layer.groups == layer.in_channels > 1:
        return _StandIn(layer, weight=_ConvWeight(layer))
    if isinstance(layer, torch.nn.Linear) and name == "dt_proj":
        return _StandIn(layer, weight=_LinearWeight(layer), bias=None)
    return None


@contextmanager
def standing_in(mixers: list[torch.nn.Module]) -> Iterator[None]:
    """Let the mixers see stand-ins for such layers; their parameters stay where they are."""
    placed: list[tuple[torch.nn.Module, str]] = []
    try:
        for mixer in mixers:
            for name, layer in mixer.named_children():
                stand_in = _stand_in(name, layer)
                if stand_in is not None:
                    mixer.__dict__[name] = stand_in  # found before torch's own _modules
                    placed.append((mixer, name))
        yield
    finally:
        for mixer, name in placed:
            del mixer.__dict__[name]
