"""Neurons: their equations, their forms that agree, and snnTorch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from edgekit.errors import EdgekitError
from edgekit.quantize.spiking.neurons import IF, LIF, PLIF, Neuron

CHANNELS, LENGTH = 5, 24
KINDS: dict[str, Callable[..., Neuron]] = {"IF": IF, "LIF": LIF, "PLIF": PLIF}
#: name -> decay and gain, by the equations.
FACTORS = {"IF": (1.0, 1.0), "LIF": (2 / 3, 1 / 3), "PLIF": (2 / 3, 1 / 3)}
EACH = pytest.mark.parametrize("kind", KINDS)
RESETS = pytest.mark.parametrize("hard", [False, True])


def made(kind: str, **options: Any) -> Neuron:
    """A neuron; of tau 3 where it leaks."""
    return KINDS[kind](CHANNELS, **({} if kind == "IF" else {"tau": 3.0}), **options)


def currents(kind: str) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(2, LENGTH, CHANNELS) / FACTORS[kind][1]


def stepped(neuron: Neuron, x: Tensor) -> tuple[Tensor, Tensor]:
    """All steps of x one by one."""
    state, spikes = neuron.at_rest(x), []
    for t in range(x.shape[1]):
        spike, state = neuron.step(x[:, t], state)
        spikes.append(spike)
    return torch.stack(spikes, 1), state


@EACH
@RESETS
def test_it_fires_as_its_equations_say(kind: str, hard: bool) -> None:
    x, (decay, gain) = currents(kind), FACTORS[kind]
    fired = made(kind, threshold=0.75, hard=hard)(x).detach()
    assert 0.05 < float(fired.mean()) < 0.7
    for b, c in ((0, 0), (1, 3)):
        s, wanted = 0.0, []
        for value in x[b, :, c].tolist():
            u = decay * s + gain * value
            wanted.append(float(u >= 0.75))
            s = (0.0 if hard else u - 0.75) if wanted[-1] else u
        assert fired[b, :, c].tolist() == wanted


@EACH
@RESETS
def test_whole_pieces_and_single_steps_agree_exactly(kind: str, hard: bool) -> None:
    neuron, x = made(kind, hard=hard), currents(kind).requires_grad_()
    weights = torch.randn(2, LENGTH, CHANNELS)
    whole, (singly, last) = neuron(x), stepped(neuron, x)
    state, pieces = neuron.at_rest(x), []
    for piece in x.split((1, 9, 14), 1):
        fired, state = neuron.forward_with(piece, state)
        pieces.append(fired)
    wanted, *others = (
        torch.autograd.grad((found * weights).sum(), [x, *neuron.parameters()])
        for found in (whole, singly, torch.cat(pieces, 1))
    )
    assert torch.equal(whole, singly)
    assert torch.equal(whole, torch.cat(pieces, 1))
    assert torch.equal(last, state)
    for other in others:
        torch.testing.assert_close(other, wanted, rtol=1e-6, atol=1e-6)


def test_only_plif_learns_its_time_constant() -> None:
    neuron, x = PLIF(CHANNELS, tau=4.0), 4 * currents("IF")
    assert float(1 / neuron.gain[0].detach()) == pytest.approx(4)
    assert [list(made(kind).parameters()) for kind in ("IF", "LIF")] == [[], []]
    before = neuron.w.detach().clone()
    optimizer = torch.optim.SGD(neuron.parameters(), 0.1)
    for _ in range(5):  # fewer spikes: a longer time constant
        optimizer.zero_grad()
        neuron(x).mean().backward()
        optimizer.step()
    assert not torch.equal(neuron.w, before)
    assert torch.equal(neuron.decay, 1 - neuron.gain)


def test_what_is_saved_is_what_fires() -> None:
    source = LIF(CHANNELS, tau=5.0, threshold=0.3)
    copy = LIF(CHANNELS)
    copy.load_state_dict(source.state_dict())
    assert torch.equal(copy(currents("LIF")), source(currents("LIF")))


@pytest.mark.parametrize("length", [1, 7])
def test_it_is_exported_at_any_length(length: int) -> None:
    neuron, x = made("PLIF"), currents("PLIF")
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    program = torch.export.export(neuron, (x,), dynamic_shapes=(sizes,))
    assert torch.equal(program.module()(x[:1, :length]), neuron(x[:1, :length]))


@EACH
@pytest.mark.parametrize("threshold", [0.0, -1.0, math.nan, math.inf])
def test_a_threshold_must_be_above_zero(kind: str, threshold: float) -> None:
    with pytest.raises(EdgekitError, match=f"{kind}: threshold is {threshold}"):
        made(kind, threshold=threshold)


@pytest.mark.parametrize("kind", [LIF, PLIF])
@pytest.mark.parametrize("tau", [1.0, 0.0, -2.0, math.nan, math.inf])
def test_a_time_constant_must_be_above_one(kind: Callable[..., Neuron], tau: float) -> None:
    with pytest.raises(EdgekitError, match=f"tau is {tau}") as caught:
        kind(CHANNELS, tau=tau)
    assert caught.value.exit_code == 2


def test_a_width_must_be_above_zero() -> None:
    with pytest.raises(EdgekitError, match=r"IF: width is 0\.0"):
        IF(CHANNELS, width=0.0)


def test_an_unknown_surrogate_lists_the_known() -> None:
    with pytest.raises(EdgekitError, match="arctan, sigmoid, triangle"):
        IF(CHANNELS, surrogate="step")


def test_a_state_of_another_shape_is_named_with_both() -> None:
    x = currents("LIF")
    with pytest.raises(EdgekitError) as caught:
        LIF(CHANNELS).forward_with(x, torch.zeros(3, CHANNELS))
    assert all(text in caught.value.what for text in ("LIF(", "(3, 5)", "(2, 5)"))


@pytest.mark.parametrize("shape", [(2, LENGTH), (2, LENGTH, CHANNELS + 1)])
def test_currents_of_another_shape_are_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(EdgekitError, match=rf"IF\((.|\n)*\({', '.join(map(str, shape))}\)"):
        IF(CHANNELS)(torch.zeros(shape))


def snntorch_spikes(x: Tensor, **options: Any) -> Tensor:
    """What ``snntorch.Leaky`` fires along (b, L, channels)."""
    snntorch = pytest.importorskip("snntorch")
    leaky, spikes = snntorch.Leaky(**options), []
    state = torch.zeros_like(x[:, 0])
    for t in range(x.shape[1]):
        spike, state = leaky(x[:, t], state)
        spikes.append(spike)
    return torch.stack(spikes, 1)


def small_currents() -> Tensor:
    """Of at most 1, the threshold: more, and snnTorch resets twice for one spike."""
    torch.manual_seed(1)
    return torch.rand(4, 100, CHANNELS) * 1.5 - 0.5


@pytest.mark.parametrize(("kind", "tau"), [("IF", None), ("LIF", 2.0), ("LIF", 5.0)])
@pytest.mark.parametrize(("hard", "mechanism"), [(False, "subtract"), (True, "zero")])
def test_snntorch_fires_the_same(kind: str, tau: float | None, hard: bool, mechanism: str) -> None:
    """beta is our decay; snnTorch has no gain. Ours resets at once: ``reset_delay=False``."""
    neuron = IF(CHANNELS, hard=hard) if tau is None else LIF(CHANNELS, tau, hard=hard)
    beta = 1.0 if tau is None else 1 - 1 / tau
    x = small_currents()
    wanted = snntorch_spikes(x, beta=beta, reset_mechanism=mechanism, reset_delay=False)
    assert 0.1 < float(wanted.mean()) < 0.9
    assert torch.equal(neuron(x / neuron.gain), wanted)


def test_snntorch_fires_and_learns_the_same_with_its_delayed_reset() -> None:
    """Without a leak, a reset at the next step is the same one; nor is its spike differentiated.

    Currents are multiples of 1/64 and the threshold is not: sums are exact, and none is equal to
    it, where snnTorch's neuron would not fire.
    """
    snntorch = pytest.importorskip("snntorch")
    threshold = 1 - 2**-10
    x = ((small_currents() * 64).round() / 64).requires_grad_()
    arctan = snntorch.surrogate.atan(alpha=2.0)
    spikes = (
        snntorch_spikes(x, beta=1.0, threshold=threshold, spike_grad=arctan),
        IF(CHANNELS, threshold)(x),
    )
    assert torch.equal(*spikes)
    weights = torch.randn(spikes[0].shape)
    wanted, found = (torch.autograd.grad((each * weights).sum(), x)[0] for each in spikes)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
