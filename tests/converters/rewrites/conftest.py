"""How a recurrence that was written out is compared with the operator that it was."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from edgekit.model import Dim, Graph, Input, Model

Arrays = dict[str, np.ndarray[Any, Any]]
#: Inputs that have no step of the sequence on axis 1.
STEADY = ("state", "A")


class Written:
    """A module of one operator, whole and written out."""

    def __init__(
        self,
        module: torch.nn.Module,
        rewrite: Callable[[Graph], Graph],
        feed: Arrays,
        length: int | Dim,
    ) -> None:
        def spec(name: str, value: np.ndarray[Any, Any]) -> Input:
            sizes: list[int | Dim] = list(value.shape)
            if name not in STEADY:
                sizes[1] = length
            return Input(name, tuple(sizes), str(value.dtype))

        inputs = tuple(spec(name, value) for name, value in feed.items())
        self.graph = Model(module, inputs, ("y", "last"), "test").export()
        self.written = rewrite(self.graph)

    @property
    def is_whole(self) -> bool:
        """Whether an operator of ours is left."""
        return "edgekit" in str(self.written.exported.graph)

    def error(self, feeds: Sequence[Arrays]) -> float:
        """The largest difference of any output, in units of the largest value, or of 1."""
        worst = 0.0
        for feed in feeds:
            want, got = self.graph.run(feed), self.written.run(feed)
            for name, value in want.items():
                assert got[name].shape == value.shape
                assert np.isfinite(got[name]).all()
                scale = max(1.0, float(np.abs(value).max()))
                worst = max(worst, float(np.abs(got[name] - value).max()) / scale)
        return worst


@pytest.fixture
def written() -> type[Written]:
    return Written
