"""Encoded: a convolution with a spiking unit in front of it, which puts its input in spikes."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class Encoded(nn.Module):
    """In the place of a convolution; what else is asked of it (``weight``), the convolution says.

    Args:
        unit: a signed ``QCFS``, as what enters a model has both signs.
        layer: the convolution.
    """

    def __init__(self, unit: nn.Module, layer: nn.Module) -> None:
        super().__init__()
        self.unit, self.layer = unit, layer

    def arguments(self) -> dict[str, Any]:
        """Nothing: a saved model names both modules itself."""
        return {}

    def forward(self, x: Tensor, *rest: Any) -> Tensor:
        """As the convolution, of the levels of x."""
        y: Tensor = self.layer(self.unit(x), *rest)
        return y

    def __getattr__(self, name: str) -> Any:
        modules = self.__dict__.get("_modules", {})
        if name in modules:
            return modules[name]
        if "layer" not in modules:
            raise AttributeError(name)
        return getattr(modules["layer"], name)


def make() -> Encoded:
    """One without its modules."""
    return Encoded(nn.Identity(), nn.Identity())
