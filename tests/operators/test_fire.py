"""fire: spikes and gradients against their definition, step by step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from edgekit.errors import EdgekitError
from edgekit.operators.fire import fire
from edgekit.quantize.spiking.surrogates import SURROGATES

LENGTHS = (1, 2, 33)


def tensors(length: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Inputs of which some fire, some often, and some never."""
    torch.manual_seed(length)
    x = torch.randn(3, length, 4, dtype=dtype) + 0.5
    decay, gain = torch.tensor([[1.0, 0.9, 0.5, 0.0], [1.0, 0.1, 0.5, 1.3]], dtype=dtype)
    threshold = torch.tensor([1.0, 0.4, 0.7, 50.0], dtype=dtype)
    return [x, decay, gain, threshold, torch.randn(3, 4, dtype=dtype)]


class Spike(torch.autograd.Function):
    """The step function, with a surrogate in the place of its derivative."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, name: str, width: float) -> Tensor:
        ctx.save_for_backward(z)
        ctx.name, ctx.width = name, width
        return (z >= 0).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (z,) = ctx.saved_tensors
        return gradients[0] * SURROGATES[ctx.name](z, ctx.width), None, None


def one_by_one(
    x: Tensor,
    decay: Tensor,
    gain: Tensor,
    threshold: Tensor,
    s: Tensor,
    hard: bool,
    name: str = "arctan",
    width: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """The definition, for torch to differentiate; the reset takes spikes as constants."""
    spikes = []
    for t in range(x.shape[1]):
        u = decay * s + gain * x[:, t]
        spikes.append(Spike.apply(u - threshold, name, width))
        fired = spikes[-1].detach()
        s = u * (1 - fired) if hard else u - threshold * fired
    return torch.stack(spikes, 1), s


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_spikes_and_potentials_are_those_of_the_definition(
    hard: bool, length: int, dtype: torch.dtype
) -> None:
    values = tensors(length, dtype)
    wanted = one_by_one(*values, hard)
    spikes, last = fire(*values, hard, "arctan", 1.0)
    assert torch.equal(spikes, wanted[0])
    assert torch.equal(last, wanted[1])
    assert set(spikes.unique().tolist()) == {0.0, 1.0}
    assert not spikes[..., 3].any()


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("name", SURROGATES)
def test_gradients_are_those_of_the_definition(hard: bool, name: str) -> None:
    values = [value.requires_grad_() for value in tensors(17, torch.float64)]
    weights = [torch.randn(3, 17, 4).double(), torch.randn(3, 4).double()]

    def gradients(found: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        total = sum((f * w).sum() for f, w in zip(found, weights, strict=True))
        return torch.autograd.grad(total, values)

    wanted = gradients(one_by_one(*values, hard, name, 0.7))
    for want, got in zip(wanted, gradients(fire(*values, hard, name, 0.7)), strict=True):
        assert float(want.abs().max()) > 0.01
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("hard", [False, True])
def test_pieces_that_hand_on_their_state_equal_the_whole(hard: bool) -> None:
    x, *others, state = tensors(33)
    spikes, last = fire(x, *others, state, hard, "arctan", 1.0)
    pieces = []
    for piece in x.split((1, 10, 22), 1):
        fired, state = fire(piece, *others, state, hard, "arctan", 1.0)
        pieces.append(fired)
    assert torch.equal(torch.cat(pieces, 1), spikes)
    assert torch.equal(state, last)


def test_half_precision_is_float32_inside() -> None:
    """Inputs that half precision could not add to the potential."""
    *values, state = [value.half() for value in tensors(200)]
    values[0] = torch.full_like(values[0], 1e-4)
    values[1], values[2] = torch.ones(4).half(), torch.ones(4).half()
    state = torch.full((3, 4), 8.0)
    values[3] = torch.full((4,), 100.0).half()
    spikes, last = fire(*values, state, False, "arctan", 1.0)
    assert (spikes.dtype, last.dtype) == (torch.float16, torch.float32)
    torch.testing.assert_close(last, state + 200 * values[0][:, 0].float(), rtol=1e-5, atol=0)


def test_torch_finds_nothing_wrong() -> None:
    values = [value.requires_grad_() for value in tensors(3)]
    torch.library.opcheck(torch.ops.edgekit.fire.default, (*values, False, "sigmoid", 1.0))


def test_an_unknown_surrogate_is_an_error_where_a_gradient_is_asked_for() -> None:
    values = [value.requires_grad_() for value in tensors(2)]
    spikes, _ = fire(*values, False, "arctangent", 1.0)
    with pytest.raises(EdgekitError, match=r"arctangent(.|\n)*arctan, sigmoid, triangle"):
        spikes.sum().backward()
