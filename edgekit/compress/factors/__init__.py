"""Factors: a linear's weight as the product of two that take fewer bytes.

With E the error of a weight (out, in) and H the mean of x x^T over its inputs, its output is wrong
by  tr(E H E^T)  on average; all errors here are that over  tr(W H W^T).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edgekit.operators.sparse_codes import bits

#: Share of H's mean diagonal that is added to the diagonal: calibration has seen too little.
_DAMPING = 0.01


@dataclass(frozen=True)
class Choice:
    """A size that a layer may have.

    Attributes:
        size: the rank, or the values of a code; 0 is the layer as it is.
        bytes: that it takes.
        error: that it leaves, perhaps estimated.
        fit: the place of the fit that it is of, where a layer has several.
    """

    size: int
    bytes: int
    error: float
    fit: int = 0


def damped(gram: Tensor | None, width: int) -> Tensor:
    """H in float64 and positive definite; None is the identity: all inputs count the same."""
    if gram is None:
        return torch.eye(width, dtype=torch.float64)
    more = _DAMPING * float(gram.diagonal().double().mean()) + 1e-30
    return gram.double() + more * torch.eye(width, dtype=torch.float64)


def relative_error(weight: Tensor, made: Tensor, gram: Tensor) -> float:
    """tr(E H E^T) / tr(W H W^T)"""
    old, error = weight.detach().double(), (weight - made).detach().double()
    return float(((error @ gram) * error).sum() / ((old @ gram) * old).sum().clamp_min(1e-300))


def code_bytes(codes: int, each: int, atoms: int, element: int) -> int:
    """Bytes of the values of sparse codes and of their places, which take ceil(log2 atoms) bits."""
    return codes * each * element + -(-codes * each * bits(atoms) // 8)


def allot(layers: Mapping[str, Sequence[Choice]], budget: float) -> dict[str, Choice]:
    """What each layer gets so that all errors together are small, within the budget.

    The budget goes where a byte saves most: from each layer's smallest choice along the lower
    convex hull of its errors, steps of all layers are taken in the order of error saved a byte.

    Args:
        layers: choices by layer, one at the least.
        budget: bytes for all; those of the smallest choices fit.
    """
    hulls = {name: _hull(choices) for name, choices in layers.items()}
    taken = {name: hull[0] for name, hull in hulls.items()}
    left = budget - sum(choice.bytes for choice in taken.values())
    steps = [
        (_gain(before, after), name, after)
        for name, hull in hulls.items()
        for before, after in itertools.pairwise(hull)
    ]
    full: set[str] = set()
    for _, name, after in sorted(steps, key=lambda step: -step[0]):
        more = after.bytes - taken[name].bytes
        if name in full or more > left:
            full.add(name)  # its later steps build on this one
            continue
        taken[name] = after
        left -= more
    return taken


def _hull(choices: Sequence[Choice]) -> list[Choice]:
    """From the smallest choice on, those that no mix of two others beats."""
    hull: list[Choice] = []
    for each in sorted(choices, key=lambda choice: (choice.bytes, choice.error)):
        if hull and each.error >= hull[-1].error:
            continue
        while len(hull) > 1 and _gain(hull[-2], hull[-1]) <= _gain(hull[-1], each):
            hull.pop()
        hull.append(each)
    return hull


def _gain(before: Choice, after: Choice) -> float:
    """Error that a byte saves."""
    return (before.error - after.error) / max(after.bytes - before.bytes, 1e-9)
