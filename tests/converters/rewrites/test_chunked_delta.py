"""chunked_delta: the gated delta rule as products of matrices, at any length."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from edgekit.converters.lengths import PIECE
from edgekit.converters.rewrites.chunked_delta import blocks_below, inverse, rewrite
from edgekit.model import Dim
from edgekit.operators.gated_delta import gated_delta

ANY = Dim("length", 1, 64, PIECE)


class Delta(torch.nn.Module):
    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        decay: Tensor,
        beta: Tensor,
        state: Tensor,
    ) -> Any:
        return gated_delta(query, key, value, decay, beta, state)


def _feed(length: int, dtype: str = "float64", rate: float = 0.1) -> dict[str, Any]:
    random = np.random.default_rng(length)
    draw = random.standard_normal
    key = draw((2, length, 3, 5))
    arrays = {
        "query": draw((2, length, 3, 5)),
        "key": key / np.linalg.norm(key, axis=-1, keepdims=True),
        "value": draw((2, length, 3, 4)),
        "decay": -np.abs(draw((2, length, 3))) * rate,
        "beta": random.uniform(0, 1, (2, length, 3)),
        "state": draw((2, 3, 5, 4)),
    }
    return {name: value.astype(dtype) for name, value in arrays.items()}


def _repeated(dtype: str) -> dict[str, Any]:
    """One key all along, replaced whole and never forgotten."""
    feed = _feed(200, dtype, 0.0)
    feed["key"][:] = feed["key"][:, :1]
    feed["beta"][:] = 1
    return feed


def test_any_length_is_equal(written: Any) -> None:
    form = written(Delta(), rewrite, _feed(4), ANY)
    assert not form.is_whole
    assert form.error([_feed(length) for length in (1, 2, 64, 65)]) < 1e-12


@pytest.mark.parametrize("length", [1, 65])
def test_one_length_is_equal(length: int, written: Any) -> None:
    form = written(Delta(), rewrite, _feed(length), length)
    assert not form.is_whole
    assert form.error([_feed(length)]) < 1e-12


@pytest.mark.parametrize("length", [ANY, 200])
def test_float32_is_right_to_its_rounding(length: Any, written: Any) -> None:
    feeds = [_feed(200, "float32"), _feed(200, "float32", 1e4), _repeated("float32")]
    assert written(Delta(), rewrite, feeds[0], length).error(feeds) < 1e-5


def test_longer_lengths_are_left_as_they_are(written: Any) -> None:
    assert written(Delta(), rewrite, _feed(4), Dim("length", 1, 64, PIECE + 1)).is_whole


@pytest.mark.parametrize("size", [1, 2, 3, 48, 64])
def test_the_inverse_is_one(size: int) -> None:
    below = torch.ones(size, size, dtype=torch.float64).tril(-1)
    found = inverse(below + torch.rand(size, size).double().triu(), blocks_below(size))
    identity = torch.eye(size, dtype=torch.float64)
    torch.testing.assert_close(found @ (identity + below), identity)
