"""Report: how often units and neurons fire, and what that makes of a model's operations.

A layer whose input is spikes only adds weights up. Over T steps, with MACs the multiply-accumulates
of the same layer on real numbers and rate the spikes a neuron a step,

    rate = spikes / (neurons T),        AC = MACs T rate

AC (accumulates) are its synaptic operations. Neurons along a sequence have T = 1: each position is
a step, and MACs count all positions. A signed unit is two neurons whose spikes are both counted,
for one neuron. All other layers multiply, MACs of them. With joules a MAC and an AC,

    energy = AC_PJ sum(AC) + MAC_PJ sum(MACs of the others)

is an estimate for hardware that computes by events, not for an engine that runs the model here. It
counts no memory traffic, and nothing of what a neuron itself does.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from edgekit.edit import module_path
from edgekit.errors import EdgekitError
from edgekit.quantize.sites import OPERATORS
from edgekit.quantize.spiking.units import UNIT, moved_from

if TYPE_CHECKING:
    from torch.fx import Node

    from edgekit.model import Graph
    from edgekit.targets.runtimes import Arrays

#: Picojoules of a multiply-accumulate and of an accumulate.
MAC_PJ, AC_PJ = 4.6, 0.9
#: Where they are from; 4.6 is a product of 3.7 and a sum of 0.9.
CONSTANTS = (
    "45 nm, 32-bit float; M. Horowitz, Computing's energy problem (and what we can do about it), "
    "ISSCC 2014"
)
#: What fires: units and neurons.
_SPIKING = (UNIT, "edgekit.fire.default")
_ATTENTION = "aten.scaled_dot_product_attention.default"


@dataclass(frozen=True)
class Layer:
    """A linear, convolution or product, and what enters it; counts are those of one sample.

    Attributes:
        name: the module's path; one that is called twice gets #2.
        macs: multiply-accumulates if what enters were real numbers.
        unit: the path of the unit or neurons whose spikes enter; '' where real numbers do.
        steps: T of that unit; 0 without one.
        rate: spikes a neuron a step, 0 to 1; None without a unit.
        acs: accumulates, in place of the MACs; 0 without a unit.
    """

    name: str
    kind: str
    macs: float
    unit: str
    steps: int
    rate: float | None
    acs: float


@dataclass(frozen=True)
class Spikes:
    """What was counted, a sample.

    Attributes:
        samples: how many it is the mean of.
        forms: of the units: ``folded``, ``temporal``; ``neurons`` along the sequence.
        uncounted: operators of edgekit's own whose operations are in no layer.
    """

    samples: int
    layers: tuple[Layer, ...]
    forms: tuple[str, ...]
    uncounted: tuple[str, ...]

    @property
    def acs(self) -> float:
        """Accumulates: the synaptic operations of all layers that spikes enter."""
        return sum(layer.acs for layer in self.layers)

    @property
    def analog(self) -> float:
        """MACs of the layers that real numbers enter."""
        return sum(layer.macs for layer in self.layers if not layer.unit)

    @property
    def macs(self) -> float:
        """MACs of all layers, if real numbers entered all."""
        return sum(layer.macs for layer in self.layers)

    @property
    def energy_uj(self) -> float:
        """The estimate, in microjoules."""
        return (AC_PJ * self.acs + MAC_PJ * self.analog) / 1e6

    @property
    def float_uj(self) -> float:
        """The estimate of the same layers on real numbers, in microjoules."""
        return MAC_PJ * self.macs / 1e6

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            **asdict(self),
            "acs": self.acs,
            "analog_macs": self.analog,
            "macs": self.macs,
            "energy_estimate": {
                "spiking_uj": self.energy_uj,
                "float_uj": self.float_uj,
                "mac_pj": MAC_PJ,
                "ac_pj": AC_PJ,
                "constants": CONSTANTS,
            },
        }


def count(graph: Graph, calls: Iterable[Arrays], name: str) -> Spikes:
    """Run a model with units or neurons, and count.

    Args:
        graph: in fp32, before the units are lowered.
        calls: inputs by name; at least one.
        name: the model's, for messages.

    Raises:
        EdgekitError: it has neither units nor neurons.
    """
    nodes = list(graph.exported.graph.nodes)
    forms = tuple(dict.fromkeys(filter(None, map(_form, nodes))))
    if not forms:
        raise EdgekitError(
            f"{name} has no spikes to count.",
            "It holds neither spiking units nor neurons: real numbers enter all its layers.",
            f"Make it spiking: `edgekit compress {name} --pass spiking:steps=8 --calibration DATA "
            "-o FOLDER`, and inspect compressed/FOLDER.",
        )
    own = {str(node.target) for node in nodes} - set(_SPIKING)
    uncounted = tuple(sorted(name for name in own if name.startswith("edgekit.")))
    counting, samples = _Counting(graph), 0
    for call in calls:
        counting.add(call)
        samples += len(next(iter(call.values())))
    return Spikes(samples, counting.layers(samples), forms, uncounted)


def _form(node: Node) -> str:
    """What a unit or neurons are called among the forms; '' for all else."""
    if str(node.target) == UNIT:
        return str(node.args[6])
    return "neurons" if str(node.target) in _SPIKING else ""


def _fired(value: Node) -> Node | None:
    """The unit or neurons whose spikes a value is, as they are or moved; None if it is not."""
    call: Any = moved_from(value)
    return call if str(getattr(call, "target", "")) in _SPIKING else None


class _Counting(torch.fx.Interpreter):
    """Runs a graph and adds up, by node, operations and spikes."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph.exported.module(check_guards=False))
        self._graph = graph
        self._macs: dict[Node, float] = {}
        self._acs: dict[Node, float] = {}
        self._units: dict[Node, Node] = {}

    def add(self, inputs: Arrays) -> None:
        """Run one call."""
        from torch.nn.attention import SDPBackend, sdpa_kernel
        from torch.utils.flop_counter import FlopCounterMode

        given = self._graph.complete(inputs).values()
        plain = sdpa_kernel(SDPBackend.MATH)  # as ``compress.measure.operations`` counts
        with plain, torch.no_grad(), FlopCounterMode(display=False) as self._counter:
            self.run(*map(torch.from_numpy, given))

    def run_node(self, n: Node) -> Any:
        """A node, with what the counter says that it did."""
        before = self._counter.get_total_flops()
        value = super().run_node(n)
        macs = (self._counter.get_total_flops() - before) / 2
        if macs:
            self._macs[n] = self._macs.get(n, 0) + macs
            self._fires(n, macs)
        return value

    def _fires(self, node: Node, macs: float) -> None:
        """Add the accumulates of a layer; of two spiking operands those of the rarer spikes."""
        if str(node.target) == _ATTENTION:
            return  # the weights of a softmax are no spikes
        found = [(value, unit) for value in node.all_input_nodes if (unit := _fired(value))]
        if not found:
            return
        spikes, unit = min(
            ((self._spikes(value, unit), unit) for value, unit in found), key=lambda pair: pair[0]
        )
        self._units[node] = unit
        self._acs[node] = self._acs.get(node, 0) + macs * spikes

    def _spikes(self, value: Node, unit: Node) -> float:
        """Spikes of a neuron in all its steps, the mean over a value that comes from a unit."""
        level: Any = unit.args[2] if str(unit.target) == UNIT else 1
        return float(self.env[value].abs().double().mean() / level)

    def layers(self, samples: int) -> tuple[Layer, ...]:
        """What was added up, as means of a sample, in the order of the graph."""
        found, seen = [], dict[str, int]()
        for node, macs in self._macs.items():
            path = module_path(node) or node.name
            seen[path] = seen.get(path, 0) + 1
            unit, acs = self._units.get(node), self._acs.get(node, 0.0)
            steps = 0 if unit is None else _steps(unit)
            found.append(
                Layer(
                    name=path if seen[path] == 1 else f"{path}#{seen[path]}",
                    kind=OPERATORS.get(str(node.target), "product"),
                    macs=macs / samples,
                    unit="" if unit is None else module_path(unit) or unit.name,
                    steps=steps,
                    rate=acs / (macs * steps) if steps else None,
                    acs=acs / samples,
                )
            )
        return tuple(found)


def _steps(unit: Node) -> int:
    steps: Any = unit.args[3] if str(unit.target) == UNIT else 1
    return int(steps)
