"""chunked_lmu: the Legendre memory as products with constant matrices, at any length."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from edgekit.converters.lengths import PIECE
from edgekit.converters.rewrites.chunked_lmu import rewrite
from edgekit.model import Dim
from edgekit.operators.lmu import lmu

ANY = Dim("length", 1, 64, PIECE)


class Memory(torch.nn.Module):
    """Order 4 over a window of 50 steps, by the equations of the paper."""

    def __init__(self, order: int = 4, window: float = 50.0) -> None:
        super().__init__()
        i, j = torch.meshgrid(torch.arange(order), torch.arange(order), indexing="ij")
        odd = (-1.0) ** (i - j + 1).double()
        rates = (2 * i + 1) / window * torch.where(i < j, -torch.ones_like(odd), odd)
        kept = torch.linalg.matrix_exp(rates)
        pushed = (2 * i[:, 0] + 1) / window * (-1.0) ** i[:, 0].double()
        eye = torch.eye(order, dtype=torch.float64)
        self.register_buffer("A", kept)
        self.register_buffer("B", torch.linalg.solve(rates, (kept - eye) @ pushed[:, None])[:, 0])

    def forward(self, x: Tensor, state: Tensor) -> Any:
        return lmu(x, self.A, self.B, state)


class Given(torch.nn.Module):
    def forward(self, x: Tensor, A: Tensor, state: Tensor) -> Any:
        return lmu(x, A, A[0], state)


def _feed(length: int, dtype: str = "float64") -> dict[str, Any]:
    draw = np.random.default_rng(length).standard_normal
    arrays = {"x": draw((2, length, 3)), "state": draw((2, 4, 3))}
    return {name: value.astype(dtype) for name, value in arrays.items()}


def test_any_length_is_equal(written: Any) -> None:
    form = written(Memory(), rewrite, _feed(4), ANY)
    assert not form.is_whole
    assert form.error([_feed(length) for length in (1, 2, 64, 65)]) < 1e-12


@pytest.mark.parametrize("length", [1, 65])
def test_one_length_is_equal(length: int, written: Any) -> None:
    form = written(Memory(), rewrite, _feed(length), length)
    assert not form.is_whole
    assert form.error([_feed(length)]) < 1e-12


@pytest.mark.parametrize("length", [ANY, 200])
def test_float32_is_right_to_its_rounding(length: Any, written: Any) -> None:
    feed = _feed(200, "float32")
    assert written(Memory().float(), rewrite, feed, length).error([feed]) < 2e-6


def test_what_cannot_be_written_out_is_left_as_it_is(written: Any) -> None:
    assert written(Memory(), rewrite, _feed(4), Dim("length", 1, 64, PIECE + 1)).is_whole
    feed = {"A": np.eye(4), **_feed(8)}
    ordered = {name: feed[name] for name in ("x", "A", "state")}
    assert written(Given(), rewrite, ordered, 8).is_whole
