"""Neurons as nodes of NIR: units that count, and neurons along a sequence.

``converters/nir.py`` says how they are to be read.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.converters.nir_network import Network, Value
from edgekit.errors import EdgekitError

if TYPE_CHECKING:
    from torch.fx import Node

UNIT, FIRE = "edgekit.qcfs.default", "edgekit.fire.default"
#: What makes a state before the first step.
ZEROS = ("aten.new_zeros.default", "aten.zeros.default", "aten.zeros_like.default")


def unit(network: Network, call: Node) -> Value:
    """One population, or two of x and -x."""
    import nir

    x, threshold, scale, steps, axis, signed, _ = network.editor.arguments(call)
    value, stored = network.value(x), network.stored(threshold)
    if stored is None:
        raise TypeError(call.name)
    network.steps.add(steps)
    shape = network.shape(call, value)
    along = [1] * (len(shape) + 1)
    along[axis] = -1
    limit = np.broadcast_to(stored.reshape(along)[0], shape).astype(np.float32)

    def population(sign: int, part: str) -> Value:
        made = nir.IF(np.full(shape, sign * value.factor, np.float32), just_below(limit))
        made.metadata = {"reset": "subtract", "v_start": limit / 2}
        return network.fire(call, made, value, scale * steps, part)

    above = population(1, "")
    if not signed:
        return above
    below = population(-1, "_negative")
    below = network.scaled(call, replace(below, factor=-1.0), "_minus")
    return replace(above, sources=(*above.sources, *below.sources))


def fire(network: Network, call: Node) -> Value:
    import nir

    x, *stored, state, hard, _, _ = network.editor.arguments(call)
    value = network.value(x)
    decay, gain, threshold = (np.asarray(network.stored(each), np.float64) for each in stored)
    rests = _rest(network, state)
    leaks = decay != 1
    if not rests or leaks.any() != leaks.all() or network.shape(x, value) != decay.shape:
        raise EdgekitError(
            f"NIR cannot hold {call.name}.",
            "Its state is not zero at first, or some of its channels leak and some do not.",
            "Export the whole sequence, with neurons of one kind in a layer.",
        )
    gain, limit = gain * value.factor, just_below(threshold.astype(np.float32))
    if leaks.any():
        tau = 1 / (1 - decay)
        zero = np.zeros_like(limit)
        made: Any = nir.LIF(tau.astype(np.float32), (gain * tau).astype(np.float32), zero, limit)
    else:
        made = nir.IF(gain.astype(np.float32), limit)
    made.metadata = {"reset": "hard" if hard else "subtract"}
    return network.fire(call, made, value, 1.0)


def _rest(network: Network, state: Node) -> bool:
    """Whether a state is zero, stored or made so."""
    stored = network.constants.get(state)
    return str(state.target) in ZEROS if stored is None else not stored.any()


def zeros(network: Network, call: Node) -> Value:
    """A state before the first step, of no node."""
    return Value(())


def spikes_of(network: Network, call: Node) -> Value:
    """Spikes; the state behind them is not read."""
    if call.args[1] != 0:
        raise EdgekitError(
            f"NIR cannot hold {call.name}: it reads the potentials after the last step.",
            "Nodes give spikes.",
            "Export the whole sequence, without states.",
        )
    return network.value(call.args[0])


def just_below(threshold: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """What is exceeded where the threshold is reached."""
    found: np.ndarray[Any, Any] = np.nextafter(threshold, np.float32(0))
    return found
