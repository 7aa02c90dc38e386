"""Places: activations that can become spiking units, found in the exported graph.

1. An activation becomes a unit if it is a module, called once, and its values reach linears and
   convolutions only, moved but not changed: they then add up spikes. A product with a gate, a
   normalisation or an addition would make real numbers of them.
2. A convolution that a float input of the model reaches first gets a signed unit in front.
3. Thresholds are one a channel where each channel can be followed to weights that nothing else
   reads: these take up what a level of it stands for. Else one threshold is all the place's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from edgekit.compress.layers import Layers
from edgekit.edit import Editor, module_path
from edgekit.quantize.channels import READERS, Producer, traced_shape
from edgekit.quantize.follow import follow
from edgekit.quantize.spiking.units import moved_from

if TYPE_CHECKING:
    from torch.fx import Node

    from edgekit.model import Model

#: Activations that are close to x where it is large and to nothing where it is small, by the names
#: of their classes in torch, timm and transformers.
RECTIFIERS = frozenset(
    "ReLU ReLU6 LeakyReLU PReLU RReLU ELU CELU SELU GELU GELUTanh GELUActivation NewGELUActivation "
    "FastGELUActivation QuickGELU QuickGELUActivation AccurateGELUActivation PytorchGELUTanh SiLU "
    "SiLUActivation Swish Mish MishActivation HardMish Hardswish HardSwish Softplus".split()
)
#: What they are as functions.
_FUNCTIONS = {
    f"aten.{name}.default"
    for name in "relu relu6 leaky_relu prelu elu celu selu gelu silu mish hardswish".split()
}
#: Operators that read the size of a value, and not what it holds.
_SIZES = {
    "aten.sym_size.int",
    *(f"aten.new_{name}.default" for name in ("zeros", "ones", "full", "empty")),
    *(f"aten.{name}_like.default" for name in ("zeros", "ones", "full", "empty")),
}
#: Why an operator that changes the values cannot read spikes.
_WHY = {
    "aten.mul.Tensor": "which are multiplied by a gate or a scale",
    "aten.add.Tensor": "which an addition reads",
    "aten.cat.default": "which are joined with other values",
    "aten.layer_norm.default": "which a normalisation reads",
    "aten.batch_norm.default": "which a normalisation reads",
    "aten.group_norm.default": "which a normalisation reads",
    "output": "which are outputs of the model",
}


@dataclass(frozen=True)
class Reader:
    """A linear or convolution behind a unit.

    Attributes:
        path: of the module.
        channels: for each of its inputs the unit's channel; None where its weights stay as they
            are, for they are read elsewhere too or channels cannot be followed.
    """

    path: str
    layer: Any
    channels: Tensor | None


@dataclass(frozen=True)
class Place:
    """Where a unit goes.

    Attributes:
        path: of the activation, or of the convolution that it stands before.
        module: that one.
        signed: whether it stands before a convolution.
        axis: of its channels; -1 is the last.
        channels: how many; 1 where a single threshold must do.
    """

    path: str
    module: Any
    signed: bool
    axis: int
    channels: int
    readers: tuple[Reader, ...]

    @property
    def followed(self) -> bool:
        """Whether weights can take up what a level of each channel stands for."""
        return all(reader.channels is not None for reader in self.readers)


def find(model: Model, kinds: tuple[str, ...]) -> Layers:
    """The places of these kinds, ``activations`` or ``patch_embedding``, in the graph's order.

    What is left are activations that cannot become units.
    """
    finder = _Finder(model)
    found = Layers()
    if "patch_embedding" in kinds:
        for place in finder.encoders():
            found.chosen[place.path] = place
    if "activations" in kinds:
        finder.activations(found)
    return found


def root_of(model: Model) -> nn.Module:
    """What is exported."""
    return model.traced or model.module


class _Finder:
    """One exported model."""

    def __init__(self, model: Model) -> None:
        self.graph = model.export()
        self.editor = Editor(self.graph)
        self.modules = dict(root_of(model).named_modules())
        self.held = set(model.module.modules())

    def activations(self, found: Layers) -> None:
        """Choose activations, or leave them and say why."""
        for path, nodes in self._called().items():
            place = self._activation(path, nodes)
            if isinstance(place, str):
                found.leave(path, place)
            else:
                found.chosen[path] = place
        for node in self.editor.calls(*_FUNCTIONS):
            path = module_path(node)
            if not is_rectifier(self.modules.get(path)):
                where = f"{path}.{node.name}" if path else node.name
                found.leave(where, "functions that a forward calls, where a pass replaces modules")

    def encoders(self) -> Iterator[Place]:
        """The convolutions that the model's float inputs reach first."""
        for node in self._first():
            path = module_path(node)
            layer = self.modules.get(path)
            if isinstance(layer, nn.Conv1d | nn.Conv2d) and layer in self.held:
                # Followed from what enters as if it were made for the convolution alone.
                owned = self._owned(node)
                numbers = torch.arange(layer.in_channels) if owned else None
                reader = Reader(path, layer, numbers)
                yield Place(path, layer, True, 1, layer.in_channels if owned else 1, (reader,))

    def _called(self) -> dict[str, list[Node]]:
        """The nodes of each module that is a rectifier; those of two calls are not told apart."""
        calls: dict[str, list[Node]] = {}
        for node in self.editor.calls():
            path = module_path(node)
            if is_rectifier(self.modules.get(path)):
                calls.setdefault(path, []).append(node)
        return calls

    def _activation(self, path: str, nodes: list[Node]) -> Place | str:
        """The place of an activation, or why there is none."""
        if len({list(node.meta["nn_module_stack"])[-1] for node in nodes}) > 1:
            return "activations that are called more than once"
        if self.modules[path] not in self.held:
            return "activations that are only in what is exported"
        results = [node for node in nodes if any(user not in nodes for user in node.users)]
        if len(results) != 1:
            return "activations of several results"
        readers, others = _reached(results[0])
        if others:
            first = others[0]
            key = "output" if first.op == "output" else str(first.target)
            return f"activations {_WHY.get(key, f'which {key} reads')}"
        if not readers:
            return "activations that nothing reads"
        modules = [self.modules.get(module_path(node)) for node in readers]
        if not all(isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d) for m in modules):
            return "activations before a layer that is not torch's"
        return self._place(path, results[0], readers)

    def _place(self, path: str, node: Node, calls: list[Node]) -> Place:
        """With as many channels as can be followed."""
        shape = traced_shape(node)
        for axis in (1, -1):  # a flattened image could be followed along its rows, too
            if isinstance(node.meta["val"].shape[axis], int) and shape[axis] > 1:
                reach = follow(self.editor, Producer(node, axis, shape[axis], ()))
                if bool(reach.free.all()) and all((r.channels >= 0).all() for r in reach.readers):
                    readers = tuple(self._reader(r.node, r.channels) for r in reach.readers)
                    return Place(path, self.modules[path], False, axis, shape[axis], readers)
        readers = tuple(self._reader(call, None) for call in calls)
        return Place(path, self.modules[path], False, -1, 1, readers)

    def _reader(self, node: Node, channels: Tensor | None) -> Reader:
        path = module_path(node)
        return Reader(path, self.modules[path], channels if self._owned(node) else None)

    def _owned(self, node: Node) -> bool:
        """Whether a layer's weight is read here only."""
        weight: Any = node.args[1]
        return self.editor.tensor(weight) is not None and len(weight.users) == 1

    def _first(self) -> Iterator[Node]:
        """Convolutions, in order, with nothing learned between them and a float input."""
        names = {spec.name for spec in self.graph.inputs if spec.dtype.startswith("float")}
        reached = {n for n in self.editor.fx.find_nodes(op="placeholder") if n.name in names}
        for node in self.editor.calls():
            if not any(source in reached for source in node.all_input_nodes):
                continue
            if str(node.target).startswith("aten.conv"):
                yield node
            elif str(node.target) not in {"aten.linear.default", *_SIZES}:
                reached.add(node)


def is_rectifier(module: nn.Module | None) -> bool:
    """Whether a module is an activation that a unit can stand for."""
    return any(kind.__name__ in RECTIFIERS for kind in type(module).__mro__)


def _reached(node: Node) -> tuple[list[Node], list[Node]]:
    """The layers that read a value, moved but not changed, and what else does."""
    readers: list[Node] = []
    others: list[Node] = []
    queue, seen = [node], {node}
    while queue:
        value = queue.pop(0)
        for user in value.users:
            if str(user.target) in _SIZES:
                continue
            if str(user.target) in READERS and user.args[0] is value:
                readers.append(user)
            elif user.op != "call_function" or moved_from(user) is user:
                others.append(user)
            elif user not in seen:
                seen.add(user)
                queue.append(user)
    return readers, others
