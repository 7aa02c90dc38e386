"""qcfs: an activation of a few levels, and the integrate-and-fire neurons that count to it.

Quantization, clip, floor and shift (T. Bu et al., "Optimal ANN-SNN Conversion for High-accuracy
and Ultra-low-latency Spiking Neural Networks", ICLR 2022, equations 7 and 11). With T steps, a
threshold, and z = T x / threshold,

    level(x) = clip(floor(z + 1/2), 0, T),        y = scale level(x)

A neuron whose potential starts at half its threshold, that takes the current x at every step, and
whose threshold is taken off with each spike, has fired level(x) times after T steps. In thresholds,

    u[t] = 1/2 + t z / T - N[t-1],    s[t] = (u[t] >= 1),    N[t] = N[t-1] + s[t]

What came in is a product here, not a running sum, so that nothing is lost to rounding: the two
are equal bit for bit. Signed is a pair of neurons, of x and -x: y = scale (level(x) - level(-x)).
"""

from __future__ import annotations

from typing import Any

import torch

#: One pass, or all steps one by one; their results are equal.
FORMS = ("folded", "temporal")
#: Levels are stored in 8 bits.
MOST_STEPS = 127


@torch.library.custom_op("edgekit::qcfs", mutates_args=())
def qcfs(
    x: torch.Tensor,
    threshold: torch.Tensor,
    scale: float,
    steps: int,
    axis: int,
    signed: bool,
    form: str,
) -> torch.Tensor:
    """Levels of x, times the scale.

    Args:
        x: of any shape.
        threshold: one, or one for each position along ``axis``; (1,) or (x.shape[axis],).
        scale: what a level stands for.
        steps: T; the largest level.
        signed: whether x below zero has levels too.
        form: one of ``FORMS``.
    """
    return written_out(x, threshold, scale, steps, axis, signed, form).clone()


@qcfs.register_fake
def _(
    x: torch.Tensor,
    threshold: torch.Tensor,
    scale: float,
    steps: int,
    axis: int,
    signed: bool,
    form: str,
) -> torch.Tensor:
    return torch.empty_like(x)


def written_out(
    x: torch.Tensor,
    threshold: torch.Tensor,
    scale: float,
    steps: int,
    axis: int,
    signed: bool,
    form: str,
) -> torch.Tensor:
    """``qcfs`` in plain operators."""
    z = x * per_threshold(x, threshold, steps, axis)
    return of_levels(z, scale, steps, signed, form)


def of_levels(z: torch.Tensor, scale: float, steps: int, signed: bool, form: str) -> torch.Tensor:
    """The same of z, as targets lower it."""
    count = counted if form == "temporal" else level
    found = count(z, steps)
    return (found - count(-z, steps) if signed else found) * scale


def per_threshold(x: torch.Tensor, threshold: torch.Tensor, steps: int, axis: int) -> torch.Tensor:
    """What x is multiplied by to give z, in a shape that fits x."""
    shape = [1] * x.dim()
    shape[axis] = -1
    return (steps / threshold).reshape(shape)


def level(z: torch.Tensor, steps: int) -> torch.Tensor:
    """The level in one pass."""
    return torch.clamp(torch.floor(z + 0.5), 0, steps)


def counted(z: torch.Tensor, steps: int) -> torch.Tensor:
    """The level as spikes, counted."""
    fired = torch.zeros_like(z)
    for t in range(1, steps + 1):
        fired = fired + fires(z, fired, t, steps)
    return fired


def fires(z: torch.Tensor, fired: torch.Tensor, t: int, steps: int) -> torch.Tensor:
    """The spikes of step ``t``, 1 to ``steps``, after ``fired`` of them."""
    potential = z * (t / steps) + 0.5 - fired
    return (potential >= 1).to(z.dtype)


def spikes(z: torch.Tensor, steps: int) -> torch.Tensor:
    """Every step's spikes, (steps, ...): 0 or 1."""
    fired, found = torch.zeros_like(z), []
    for t in range(1, steps + 1):
        found.append(fires(z, fired, t, steps))
        fired = fired + found[-1]
    return torch.stack(found)


def _save(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x, threshold, ctx.scale, ctx.steps, ctx.axis, ctx.signed, _ = inputs
    ctx.save_for_backward(x, threshold)


def _backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
    """Straight through the floor; nothing beyond the first and the last level."""
    x, threshold = ctx.saved_tensors
    slope = per_threshold(x, threshold, ctx.steps, ctx.axis)
    z = x * slope
    within = (z.abs() if ctx.signed else z) <= ctx.steps + 0.5
    if not ctx.signed:
        within = within & (z >= -0.5)
    return gradient * within * (ctx.scale * slope), None, None, None, None, None, None


qcfs.register_autograd(_backward, setup_context=_save)
