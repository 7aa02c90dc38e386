"""Surrogates: what stands for the derivative of a spike, which has none.

A spike is a step function of z = potential - threshold; its derivative is zero but at the step.
Training puts a smooth one in its place (Neftci, Mostafa and Zenke, "Surrogate Gradient Learning in
Spiking Neural Networks", 2019). All here have an area of 1 and their peak, 1 / width, at z = 0: a
wider one reaches neurons that are further from firing.

    arctan      1 / (w (1 + (pi z / w)^2))      Fang et al., 2021 (PLIF)
    sigmoid     4 / w s(4 z / w) (1 - s(4 z / w)),  s(v) = 1 / (1 + e^-v)    Wu et al., 2018 (STBP)
    triangle    max(0, 1 - |z| / w) / w         Esser et al., 2016; Bellec et al., 2018
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from edgekit.errors import EdgekitError

Surrogate = Callable[[Tensor, float], Tensor]


def arctan(z: Tensor, width: float) -> Tensor:
    """That of arctan(pi z / width) / pi; its tails reach far."""
    return 1 / (width * (1 + (z * (math.pi / width)).square()))


def sigmoid(z: Tensor, width: float) -> Tensor:
    """That of the logistic function of 4 z / width."""
    risen = torch.sigmoid(z * (4 / width))
    return risen * (1 - risen) * (4 / width)


def triangle(z: Tensor, width: float) -> Tensor:
    """Falls to zero at a distance of ``width``, and is zero beyond."""
    return torch.clamp(1 - z.abs() / width, min=0) / width


SURROGATES: dict[str, Surrogate] = {"arctan": arctan, "sigmoid": sigmoid, "triangle": triangle}


def surrogate(name: str) -> Surrogate:
    """The function of a name: from z and the width to the derivative.

    Raises:
        EdgekitError: there is none of that name.
    """
    if name not in SURROGATES:
        raise EdgekitError(
            f"There is no surrogate {name!r}.",
            "A surrogate is the derivative that a spike gets in training.",
            f"Use one of {', '.join(SURROGATES)}.",
        )
    return SURROGATES[name]
