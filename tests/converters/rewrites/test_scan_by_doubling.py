"""scan_by_doubling: mamba_scan and linear_scan without a loop, at any length."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from edgekit.converters.lengths import PIECE
from edgekit.converters.rewrites.scan_by_doubling import rewrite
from edgekit.model import Dim
from edgekit.operators.linear_scan import linear_scan
from edgekit.operators.mamba_scan import mamba_scan
from edgekit.quantize.fp16 import rewrite_fp16

LENGTHS = (1, 2, 63, 200)
ANY = Dim("length", 1, 64, PIECE)


class Selective(torch.nn.Module):
    def forward(
        self, x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor
    ) -> Any:
        return mamba_scan(x, delta, A, B, C, state)


class Linear(torch.nn.Module):
    def forward(self, x: Tensor, decay: Tensor, state: Tensor) -> Any:
        return linear_scan(x, decay, state)


def _selective(length: int, dtype: str = "float64", step: float = 0.5) -> dict[str, Any]:
    random = np.random.default_rng(length)
    draw = random.standard_normal
    arrays = {
        "x": draw((2, length, 5)),
        "delta": np.abs(draw((2, length, 5))) * step,
        "A": -np.abs(draw((5, 3))) - 0.01,
        "B": draw((2, length, 3)),
        "C": draw((2, length, 3)),
        "state": draw((2, 3, 5)),
    }
    return {name: value.astype(dtype) for name, value in arrays.items()}


def _linear(length: int, dtype: str = "float64") -> dict[str, Any]:
    random = np.random.default_rng(length)
    arrays = {
        "x": random.standard_normal((2, length, 5)),
        "decay": random.choice([0.0, 0.3, 0.999, 1.0], (2, length, 5)),
        "state": random.standard_normal((2, 5)),
    }
    return {name: value.astype(dtype) for name, value in arrays.items()}


CASES: list[Any] = [(Selective, _selective), (Linear, _linear)]


@pytest.mark.parametrize(("module", "feed"), CASES)
def test_any_length_is_equal(module: Any, feed: Any, written: Any) -> None:
    form = written(module(), rewrite, feed(4), ANY)
    assert not form.is_whole
    assert form.error([feed(length) for length in LENGTHS]) < 1e-12


@pytest.mark.parametrize("length", [1, 63, 200])
@pytest.mark.parametrize(("module", "feed"), CASES)
def test_one_length_is_equal(module: Any, feed: Any, length: int, written: Any) -> None:
    form = written(module(), rewrite, feed(length), length)
    assert not form.is_whole
    assert form.error([feed(length)]) < 1e-12


@pytest.mark.parametrize("length", [ANY, 200])
def test_float32_is_right_to_its_rounding(length: Any, written: Any) -> None:
    feeds = [_selective(200, "float32", step) for step in (0.01, 0.5, 1e4)]
    assert written(Selective(), rewrite, feeds[0], length).error(feeds) < 2e-6


def test_longer_lengths_are_left_as_they_are(written: Any) -> None:
    assert written(Selective(), rewrite, _selective(4), Dim("length", 1, 64, PIECE + 1)).is_whole


@pytest.mark.parametrize("length", [ANY, 200])
def test_half_precision_keeps_the_state_in_float32(length: Any, written: Any) -> None:
    """A state that slow steps change by less than float16 can add to it."""
    feed = _selective(200, "float32", 1e-3)
    feed["x"], feed["B"] = np.abs(feed["x"]), np.abs(feed["B"])
    feed["state"] = np.full_like(feed["state"], 8)
    form = written(Selective(), lambda graph: rewrite_fp16(rewrite(graph)), feed, length)
    rounded = {k: v.astype("float16").astype("float32") for k, v in feed.items() if k in "xBC"}
    want, got = form.graph.run({**feed, **rounded}), form.written.run({**feed, **rounded})
    np.testing.assert_allclose(got["last"], want["last"], rtol=1e-5)
