"""QCFS: an activation of a few levels, where a ReLU or GELU was; see ``operators/qcfs.py``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edgekit.errors import EdgekitError
from edgekit.operators.qcfs import FORMS, MOST_STEPS, per_threshold, qcfs


class QCFS(nn.Module):
    """A spiking unit: levels of T steps, in one pass or as neurons that fire.

    Args:
        channels: how many thresholds; 1 is one for all.
        axis: of the channels; counted from the end where negative.
        steps: T, 1 to 127.
        scale: what a level stands for; a float16 holds it.
        signed: whether what is below zero has levels too.
        form: ``folded`` or ``temporal``; both give the same.
    """

    threshold: Tensor

    def __init__(
        self, channels: int, axis: int, steps: int, scale: float, signed: bool, form: str
    ) -> None:
        super().__init__()
        check_steps(steps)
        if form not in FORMS:
            raise EdgekitError(
                f"{form!r} is no form of a spiking unit.", "", f"Use one of {', '.join(FORMS)}."
            )
        self.channels, self.axis, self.steps, self.scale = channels, axis, steps, scale
        self.signed, self.form = signed, form
        self.register_buffer("threshold", torch.ones(channels))

    def arguments(self) -> dict[str, Any]:
        """What it is made of."""
        names = "channels axis steps scale signed form".split()
        return {name: getattr(self, name) for name in names}

    def forward(self, x: Tensor) -> Tensor:
        """Of any shape with ``channels`` along ``axis``."""
        y: Tensor = qcfs(
            x, self.threshold, self.scale, self.steps, self.axis, self.signed, self.form
        )
        return y

    def normalised(self, x: Tensor) -> Tensor:
        """z: what enters, in levels."""
        return x * per_threshold(x, self.threshold, self.steps, self.axis)

    def check(self, path: str) -> None:
        """Raise unless every threshold is a number above zero.

        Raises:
            EdgekitError: naming the unit and how many are not.
        """
        wrong = ~(self.threshold.isfinite() & (self.threshold > 0))
        if wrong.any():
            first = float(self.threshold[wrong][0])
            raise EdgekitError(
                f"{path}: {int(wrong.sum())} of {self.channels} thresholds are not above zero.",
                f"The first is {first}; a neuron fires when its potential reaches its threshold.",
                "Calibrate with finite data that makes the layer active, or copy the model again.",
            )


def check_steps(steps: int) -> None:
    """Raise unless a unit can have so many steps.

    Raises:
        EdgekitError: it cannot.
    """
    if not 1 <= steps <= MOST_STEPS:
        raise EdgekitError(
            f"spiking: steps is {steps}.",
            "A neuron needs a step to fire in, and its count is stored in 8 bits.",
            f"Give 1 to {MOST_STEPS}; 8 is usual.",
        )


def make(channels: int, axis: int, steps: int, scale: float, signed: bool, form: str) -> QCFS:
    """One whose thresholds are 1."""
    return QCFS(channels, axis, steps, scale, signed, form)
