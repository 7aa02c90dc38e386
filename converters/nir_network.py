"""A network in NIR as it is put together: nodes, edges, and what their results stand for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.errors import EdgekitError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.fx import Node

    from edgekit.edit import Editor
    from edgekit.model import Graph

FIX = (
    "NIR takes linears, convolutions, average pooling, flattening, sums and neurons. Put spiking "
    "units in the place of activations (the pass spiking), or choose another target."
)


@dataclass(frozen=True)
class Value:
    """What nodes give, summed, times a factor that what reads it takes up.

    Attributes:
        sources: names of nodes, each once.
        factor: what one stands for.
        sequence: whether it has a value for each position of a sequence.
        depth: how many neurons are in series before it.
    """

    sources: tuple[str, ...]
    factor: float = 1.0
    sequence: bool = False
    depth: int = 0


class Network:
    """A graph's nodes and edges in NIR, at first those of its inputs.

    Attributes:
        nodes, edges: as NIR has them; a node is called as the graph's.
        sequence: whether it steps along a sequence.
        depth: how many neurons are in series.
        steps: of its spiking units.
        constants: values that depend on no input.
    """

    def __init__(self, graph: Graph, editor: Editor, sequence: bool) -> None:
        import nir

        self.editor, self.sequence = editor, sequence
        self.constants = constants(editor)
        self.nodes: dict[str, Any] = {}
        self.edges: list[tuple[str, str]] = []
        self.depth = 0
        self.steps: set[int] = set()
        self._averaged = False
        self._values: dict[Node, Value] = {}
        self._reserved = {*(spec.name for spec in graph.inputs), *graph.outputs}
        placeholders = editor.fx.find_nodes(op="placeholder")
        entries = [node for node in placeholders if node not in self.constants]
        for entry, spec in zip(entries, graph.inputs, strict=True):
            value = Value((spec.name,), sequence=sequence)
            self.nodes[spec.name] = nir.Input(np.array(self.shape(entry, value)))
            self._values[entry] = value

    @property
    def timing(self) -> dict[str, Any]:
        """How the network is run, for the metadata."""
        if self.sequence:
            return {"input": "sequence", "decode": "mean" if self._averaged else "sequence"}
        return {"input": "constant", "decode": "mean", "steps": next(iter(self.steps))}

    def hold(self, call: Node, value: Value) -> None:
        """What a call gives, from here on."""
        self._values[call] = value

    def value(self, node: Any) -> Value:
        """What an operand is.

        Raises:
            EdgekitError: it is a constant.
        """
        if node not in self._values:
            raise EdgekitError(
                f"NIR cannot hold {node}, a constant that the model computes with.",
                "It has constants as weights and biases of linears and convolutions only.",
                FIX,
            )
        return self._values[node]

    def stored(self, node: Any) -> np.ndarray[Any, Any] | None:
        """A constant's array; None where there is none, as for a bias.

        Raises:
            EdgekitError: it is computed from inputs.
        """
        if node is None:
            return None
        if node not in self.constants:
            raise EdgekitError(
                f"NIR cannot hold {node}, a parameter that is computed from inputs.", "", FIX
            )
        array: np.ndarray[Any, Any] = self.constants[node].detach().numpy()
        return array

    def add(self, call: Node, made: Any, read: Value, part: str = "") -> Value:
        """A node that reads a value, for all or for a part of a call."""
        from edgekit.edit import module_path

        name = f"{call.name}{part}"
        name = f"{name}_node" if name in self._reserved else name
        made.metadata = {**made.metadata, "module": module_path(call)}
        self.nodes[name] = made
        self.edges += [(source, name) for source in read.sources]
        return replace(read, sources=(name,), factor=1.0)

    def fire(self, call: Node, made: Any, read: Value, amplitude: float, part: str = "") -> Value:
        """The same of neurons, whose spikes stand for the amplitude."""
        self.depth = max(self.depth, read.depth + 1)
        made.metadata = {**made.metadata, "amplitude": amplitude}
        found = self.add(call, made, read, part)
        return replace(found, factor=amplitude, depth=read.depth + 1)

    def scaled(self, call: Node, read: Value, part: str = "_scale") -> Value:
        """A value whose factor is 1: that of a node that multiplies by it."""
        import nir

        factor = np.full(self.shape(call, read), read.factor, np.float32)
        return self.add(call, nir.Scale(scale=factor), read, part)

    def shape(self, call: Node, value: Value) -> tuple[int, ...]:
        """Of one sample, at one step."""
        return tuple(int(size) for size in call.meta["val"].shape[2 if value.sequence else 1 :])

    def average(self, value: Value) -> Value:
        """The mean over a sequence, taken at the output: what follows is linear."""
        self._averaged = True
        return replace(value, sequence=False)

    def give(self, graph: Graph) -> None:
        """Add the outputs, once all else is there.

        Raises:
            EdgekitError: they are read in two ways, or units have several numbers of steps.
        """
        import nir

        results: Any = self.editor.fx.output_node().args[0]
        for name, node in zip(graph.outputs, results, strict=True):
            value = self.value(node)
            if value.factor != 1:
                value = self.scaled(node, value, "_output")
            self.nodes[name] = nir.Output(np.array(self.shape(node, value)))
            self.edges += [(source, name) for source in value.sources]
            if self._averaged and value.sequence:
                raise EdgekitError(
                    f"NIR cannot hold {name} beside a mean over the sequence.",
                    "A file has one way to read its outputs.",
                    "Export the model with one of them.",
                )
        if len(self.steps) > 1:
            raise EdgekitError(
                f"The model's spiking units have {', '.join(map(str, sorted(self.steps)))} steps.",
                "In NIR all neurons fire in the same steps.",
                "Convert the source with one number of steps.",
            )


def constants(editor: Editor) -> dict[Node, Tensor]:
    """Parameters, and what is computed from them alone, such as a time constant that is learned."""
    import torch
    from torch.fx.node import map_arg

    stored = {node: editor.tensor(node) for node in editor.fx.find_nodes(op="placeholder")}
    found = {node: tensor for node, tensor in stored.items() if tensor is not None}
    with torch.no_grad():
        for call in editor.calls():
            if call.all_input_nodes and all(node in found for node in call.all_input_nodes):
                compute: Any = call.target
                args = map_arg(call.args, found.__getitem__)
                found[call] = compute(*args, **map_arg(call.kwargs, found.__getitem__))
    return found
