"""fire: spiking neurons along a sequence, whose steps are the time that they fire in.

For each channel, with the potential s, a decay a, a gain g and a threshold h (Gerstner and Kistler,
"Spiking Neuron Models", 2002, chapter 4; Fang et al., "Incorporating Learnable Membrane Time
Constant to Enhance Learning of Spiking Neural Networks", ICCV 2021, equations 2 to 4),

    u[t] = a s[t-1] + g x[t]                        it takes up its input,
    spike[t] = 1 if u[t] >= h else 0                fires,
    s[t] = u[t] - h spike[t]                        and is reset: by the threshold (soft),
    s[t] = u[t] (1 - spike[t])                      or to zero (hard)

The gradient is that of backpropagation through time, with the surrogate f of ``spiking/
surrogates.py`` in the place of a spike's derivative (Neftci, Mostafa and Zenke, 2019):

    du[t] = f(u[t] - h) dspike[t] + r[t] ds[t],     ds[t-1] = a du[t],      dx[t] = g du[t]

where r is 1 (soft) or 1 - spike[t] (hard): the spike of a reset is taken as a constant, since the
surrogate's gradient through it hurts training (Zenke and Vogels, 2021).
"""

from __future__ import annotations

from typing import Any

import torch

from edgekit.operators import wide
from edgekit.quantize.spiking.surrogates import surrogate as derivative


@torch.library.custom_op("edgekit::fire", mutates_args=())
def fire(
    x: torch.Tensor,
    decay: torch.Tensor,
    gain: torch.Tensor,
    threshold: torch.Tensor,
    state: torch.Tensor,
    hard: bool,
    surrogate: str,
    width: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Spikes, and the potentials after the last step.

    Args:
        x: (b, L, d).
        decay: what is left of a potential after a step, (d,).
        gain: of the input, (d,).
        threshold: (d,).
        state: potentials to start from, (b, d).
        hard: whether a spike resets a potential to zero; else the threshold is taken off.
        surrogate: the name of a spike's derivative.
        width: of that derivative.

    Returns:
        0 or 1 (b, L, d), in the dtype of x, and the state (b, d).
    """
    u, a, g, h, s = wide(x, decay, gain, threshold, state)
    spikes, states = written_out(u, a, g, h, s, hard, x.shape[1])
    return torch.stack(spikes, 1).to(x.dtype), states[-1].to(state.dtype)


@fire.register_fake
def _(
    x: torch.Tensor,
    decay: torch.Tensor,
    gain: torch.Tensor,
    threshold: torch.Tensor,
    state: torch.Tensor,
    hard: bool,
    surrogate: str,
    width: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    return x.new_empty(x.shape), state.new_empty(state.shape)


def written_out(
    x: torch.Tensor,
    decay: torch.Tensor,
    gain: torch.Tensor,
    threshold: torch.Tensor,
    state: torch.Tensor,
    hard: bool,
    steps: int,
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """``fire`` in plain operators, all of one dtype: spikes and states (b, d) of each step."""
    pushed, spikes, states = gain * x, [], []
    for t in range(steps):
        potential = decay * state + pushed[:, t]
        spikes.append((potential >= threshold).to(x.dtype))
        state = reset(potential, spikes[-1], threshold, hard)
        states.append(state)
    return spikes, states


def reset(
    potential: torch.Tensor, spike: torch.Tensor, threshold: torch.Tensor, hard: bool
) -> torch.Tensor:
    """The potential after a step."""
    return potential * (1 - spike) if hard else potential - threshold * spike


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    *tensors, ctx.hard, ctx.surrogate, ctx.width = inputs
    ctx.save_for_backward(*tensors, output[0])


def _backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
    """As the module says; potentials are computed anew from the spikes."""
    *inputs, spikes = ctx.saved_tensors
    x, decay, gain, threshold, state, spikes = wide(*inputs, spikes)
    pushed, carried = wide(*gradients)
    before, potentials = _potentials(x, decay, gain, threshold, state, spikes, ctx.hard)
    fired = pushed * derivative(ctx.surrogate)(potentials - threshold, ctx.width)
    kept = 1 - spikes if ctx.hard else torch.ones_like(spikes)
    found, lowered = [], torch.zeros_like(threshold)
    for t in range(x.shape[1] - 1, -1, -1):
        if not ctx.hard:
            lowered = lowered + (carried * spikes[:, t]).sum(0)
        found.append(fired[:, t] + kept[:, t] * carried)
        carried = decay * found[-1]
    each = torch.stack(found[::-1], 1)  # with respect to the potentials, (b, L, d)
    values = (
        gain * each,
        (each * before).sum((0, 1)),
        (each * x).sum((0, 1)),
        -fired.sum((0, 1)) - lowered,
        carried,
    )
    returned = (v.to(i.dtype) for v, i in zip(values, inputs, strict=True))
    return *returned, None, None, None


def _potentials(
    x: torch.Tensor,
    decay: torch.Tensor,
    gain: torch.Tensor,
    threshold: torch.Tensor,
    state: torch.Tensor,
    spikes: torch.Tensor,
    hard: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """s[t-1] and u[t] of every step, (b, L, d)."""
    pushed, before, potentials = gain * x, [], []
    for t in range(x.shape[1]):
        before.append(state)
        potentials.append(decay * state + pushed[:, t])
        state = reset(potentials[-1], spikes[:, t], threshold, hard)
    return torch.stack(before, 1), torch.stack(potentials, 1)


fire.register_autograd(_backward, setup_context=_save)
