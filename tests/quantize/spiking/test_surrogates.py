"""Surrogates: of one area and one peak, each the derivative that it says."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from edgekit.errors import EdgekitError
from edgekit.quantize.spiking.surrogates import SURROGATES, surrogate

WIDTHS = (0.25, 1.0, 3.0)
#: What each is the derivative of, where that has a simple form.
RISES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "arctan": lambda z, width: torch.atan(math.pi * z / width) / math.pi,
    "sigmoid": lambda z, width: torch.sigmoid(4 * z / width),
}


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", SURROGATES)
def test_an_area_of_one_and_a_peak_of_one_over_the_width(name: str, width: float) -> None:
    z = torch.linspace(-500, 500, 1_000_001, dtype=torch.float64) * width
    values = surrogate(name)(z, width)
    assert float(torch.trapezoid(values, z)) == pytest.approx(1, abs=1e-3)
    assert float(values.max()) == pytest.approx(1 / width)
    assert float(z[values.argmax()]) == pytest.approx(0, abs=1e-9)
    torch.testing.assert_close(values, values.flip(0))
    assert float(values.min()) >= 0


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", RISES)
def test_it_is_the_derivative_of_what_it_says(name: str, width: float) -> None:
    z = torch.linspace(-2, 2, 101, dtype=torch.float64, requires_grad=True)
    (wanted,) = torch.autograd.grad(RISES[name](z, width).sum(), z)
    torch.testing.assert_close(surrogate(name)(z.detach(), width), wanted)


def test_a_triangle_ends_at_its_width() -> None:
    found = SURROGATES["triangle"](torch.tensor([-3.0, -2.0, -1.0, 1.0, 2.0]), 2.0)
    assert found.tolist() == [0.0, 0.0, 0.25, 0.25, 0.0]


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(EdgekitError) as caught:
        surrogate("step")
    assert "'step'" in caught.value.what
    assert all(name in caught.value.fix for name in SURROGATES)
