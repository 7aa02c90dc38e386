"""Moments: how the units of two models vary together over the same samples."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from edgekit import interrupt
from edgekit.compress.batches import batches
from edgekit.data import Dataset
from edgekit.progress import track

#: Samples that run together.
BATCH = 32


class Moments:
    """Sums over samples and tokens, so that no activation is kept.

    Attributes:
        cross: (n, m), the sum of products of a unit of one and a unit of the other.
    """

    def __init__(self) -> None:
        self.count = 0
        self.cross = self.first = self.second = torch.zeros(())
        self.first_squares = self.second_squares = torch.zeros(())

    def add(self, first: Tensor, second: Tensor) -> None:
        """Activations (..., n) and (..., m) of the same samples and tokens."""
        first, second = (value.flatten(0, -2).double() for value in (first, second))
        self.count += len(first)
        self.cross = self.cross + first.T @ second
        self.first, self.second = self.first + first.sum(0), self.second + second.sum(0)
        self.first_squares = self.first_squares + first.square().sum(0)
        self.second_squares = self.second_squares + second.square().sum(0)

    def covariance(self) -> Tensor:
        """(n, m)"""
        return self.cross / self.count - torch.outer(self.first, self.second) / self.count**2

    def variance(self, which: int) -> Tensor:
        """Of each unit of the first (0) or the second (1) model."""
        sums, squares = (
            (self.first, self.first_squares) if which == 0 else (self.second, self.second_squares)
        )
        return (squares / self.count - (sums / self.count).square()).clamp_min(0)

    def correlation(self) -> Tensor:
        """(n, m), from -1 to 1; 0 for a unit that does not vary."""
        size = torch.outer(self.variance(0).sqrt(), self.variance(1).sqrt())
        return self.covariance() / size.clamp_min(1e-12)

    def part(self, rows: slice, columns: slice) -> Moments:
        """Those of some units of the first and some of the second."""
        found = Moments()
        found.count, found.cross = self.count, self.cross[rows, columns]
        found.first, found.second = self.first[rows], self.second[columns]
        found.first_squares = self.first_squares[rows]
        found.second_squares = self.second_squares[columns]
        return found


Sites = dict[str, tuple[nn.Module, bool]]


def collect(
    first: nn.Module, second: nn.Module, sites: tuple[Sites, Sites], data: Dataset
) -> dict[str, Moments]:
    """Moments at every site, over the samples.

    Args:
        sites: of each model, by name: a module, and whether its input is meant, or its output.
    """
    found = {name: Moments() for name in sites[0]}
    with torch.no_grad(), _seen(sites[0]) as one, _seen(sites[1]) as two:
        total = -(-len(data) // BATCH)
        for batch in track(batches(data, BATCH), "Comparing activations", total):
            interrupt.check()
            for module in (first, second):
                kind = next(module.parameters()).dtype
                module(**{name: value.to(kind) for name, value in batch.inputs.items()})
            for name, moments in found.items():
                moments.add(one[name], two[name])
    return found


@contextmanager
def _seen(sites: Sites) -> Iterator[dict[str, Tensor]]:
    """What passed the sites in the last call, by name."""
    seen: dict[str, Tensor] = {}
    handles = []
    for name, (module, is_input) in sites.items():

        def hook(_: nn.Module, given: tuple[Tensor, ...], gave: Tensor, name: str = name,
                 is_input: bool = is_input) -> None:  # fmt: skip
            seen[name] = given[0] if is_input else gave

        handles.append(module.register_forward_hook(hook))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
