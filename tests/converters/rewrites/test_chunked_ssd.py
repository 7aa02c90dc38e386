"""chunked_ssd: Mamba-2's recurrence as products of matrices, at any length."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from edgekit.converters.lengths import PIECE
from edgekit.converters.rewrites.chunked_ssd import rewrite
from edgekit.model import Dim
from edgekit.operators.ssd import ssd
from edgekit.quantize.fp16 import rewrite_fp16

LENGTHS = (1, 2, 63, 64, 65, 200)
ANY = Dim("length", 1, 64, PIECE)


class Dual(torch.nn.Module):
    def forward(self, x: Tensor, decay: Tensor, B: Tensor, C: Tensor, state: Tensor) -> Any:
        return ssd(x, decay, B, C, state)


def _feed(length: int, dtype: str = "float64", rate: float = 0.3) -> dict[str, Any]:
    draw = np.random.default_rng(length).standard_normal
    arrays = {
        "x": draw((2, length, 6, 3)),
        "decay": -np.abs(draw((2, length, 6))) * rate,
        "B": draw((2, length, 2, 4)),
        "C": draw((2, length, 2, 4)),
        "state": draw((2, 6, 4, 3)),
    }
    return {name: value.astype(dtype) for name, value in arrays.items()}


def test_any_length_is_equal(written: Any) -> None:
    form = written(Dual(), rewrite, _feed(4), ANY)
    assert not form.is_whole
    assert form.error([_feed(length) for length in LENGTHS]) < 1e-12


@pytest.mark.parametrize("length", [1, 64, 200])
def test_one_length_is_equal(length: int, written: Any) -> None:
    form = written(Dual(), rewrite, _feed(length), length)
    assert not form.is_whole
    assert form.error([_feed(length)]) < 1e-12


def _interrupted(dtype: str) -> dict[str, Any]:
    """Steps that forget all, among steps that forget little."""
    feed = _feed(200, dtype, 1e-3)
    feed["decay"][:, ::20] = -5e4
    return feed


@pytest.mark.parametrize("length", [ANY, 200])
def test_extreme_decays_lose_no_digits(length: Any, written: Any) -> None:
    for dtype, bound in (("float64", 1e-12), ("float32", 2e-5)):
        feeds = [_feed(200, dtype, 0.0), _feed(200, dtype, 1e4), _interrupted(dtype)]
        assert written(Dual(), rewrite, feeds[0], length).error(feeds) < bound


def test_longer_lengths_are_left_as_they_are(written: Any) -> None:
    assert written(Dual(), rewrite, _feed(4), Dim("length", 1, 64, PIECE + 1)).is_whole


@pytest.mark.parametrize("rate", [1e-3, 0.3, 1e4])
def test_half_precision_is_right_to_its_rounding(rate: float, written: Any) -> None:
    feed = _feed(200, "float32", rate)
    assert (
        written(Dual(), lambda graph: rewrite_fp16(rewrite(graph)), feed, 200).error([feed]) < 2e-3
    )
