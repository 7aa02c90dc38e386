"""Blocks: modules that are one layer, or one layer and what follows it, become just that.

A module's forward is traced with its children as single steps, and each step is evaluated on affine
maps (see ``affine``) rather than on tensors: sums of branches, batch norms, layer scales and
residual connections all give one map. So no library's block has to be known.
"""

from __future__ import annotations

import copy
import operator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from edgekit.compress.reparameterization import affine
from edgekit.compress.reparameterization.affine import INPUT, Affine, Convolved, Scaled


@dataclass(frozen=True)
class _Flat:
    """A linear layer's outputs with batch and tokens as one axis."""

    value: Convolved


class _Unknown:
    """Anything that is no affine map of the input."""


UNKNOWN = _Unknown()
_ADD = (operator.add, operator.iadd, torch.add, "add", "add_")
_SUBTRACT = (operator.sub, operator.isub, torch.sub, "sub", "sub_")
_MULTIPLY = (operator.mul, operator.imul, torch.mul, "mul", "mul_")


class _Tracer(fx.Tracer):
    """Takes every child as one step."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


@dataclass
class Folder:
    """Folds the blocks of one module.

    Attributes:
        done: blocks that became one layer, by path: what was there, and what is.
        left: paths of blocks whose single layer would hold more weights than they do.
    """

    done: dict[str, tuple[nn.Module, nn.Module]] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)
    _graphs: dict[int, fx.Graph | None] = field(default_factory=dict)

    def fold(self, module: nn.Module, path: str = "") -> None:
        """Replace what can be replaced below a module, the largest blocks first."""
        for name, child in list(module.named_children()):
            where = f"{path}.{name}" if path else name
            made = self._single(child, where)
            if made is None:
                self.fold(child, where)
            else:
                self.done[where] = (child, made)
                module._modules[name] = made

    def _single(self, block: nn.Module, path: str) -> nn.Module | None:
        """A layer in a block's place, with what follows it; None where it must stay."""
        layers = [m for m in block.modules() if isinstance(m, affine.LAYERS + affine.NORMS)]
        if isinstance(block, affine.LAYERS + affine.NORMS) or len(layers) < 2:
            return None
        graph = self._traced(block)
        if graph is None:
            return None
        values = self._values(block, graph, INPUT)
        value, names = _end(graph, values)
        summed = any(node.target in (*_ADD, *_SUBTRACT) for node in graph.nodes)
        # A norm within a layer's activation is left to ``norms``, which keeps the block.
        if not isinstance(value, Convolved) or (names and not summed):
            return None
        follow = [block.get_submodule(name) for name in names]
        held = _count(block) - sum(map(_count, follow))
        if value.weight.numel() + value.bias.numel() > max(held, 1):
            self.left.append(path)
            return None
        layer = affine.module(value, next(block.parameters()).dtype)
        return nn.Sequential(layer, *follow).eval() if follow else layer

    def _traced(self, module: nn.Module) -> fx.Graph | None:
        if id(module) not in self._graphs:
            self._graphs[id(module)] = _trace(module)
        return self._graphs[id(module)]

    def _values(self, module: nn.Module, graph: fx.Graph, given: Affine) -> dict[fx.Node, Any]:
        """What every step gives, as a map of the module's input."""
        values: dict[fx.Node, Any] = {}
        for node in graph.nodes:
            arguments = fx.map_arg(node.args, values.__getitem__)
            options = fx.map_arg(node.kwargs, values.__getitem__)
            if node.op == "placeholder":
                values[node] = given if not values else UNKNOWN
            elif node.op == "get_attr":
                values[node] = operator.attrgetter(node.target)(module)
            elif node.op == "call_module":
                child = module.get_submodule(node.target)
                values[node] = self._called(child, arguments, options)
            elif node.op == "output":
                values[node] = arguments[0]
            else:
                maps = (Scaled, Convolved, _Flat, _Unknown)
                plain = not any(isinstance(values[n], maps) for n in node.all_input_nodes)
                values[node] = _step(node, arguments, options, plain)
        return values

    def _called(self, module: nn.Module, arguments: Any, options: Any) -> Any:
        given = arguments[0] if len(arguments) == 1 and not options else UNKNOWN
        if isinstance(module, nn.Identity | nn.modules.dropout._DropoutNd):
            return given
        if type(module) in affine.NORMS:
            rank = 2 if type(module) is nn.BatchNorm2d else None
            return _normed(given, _norm(module, rank))
        if not isinstance(given, Scaled | Convolved):
            return UNKNOWN
        if type(module) in affine.LAYERS:
            layer = affine.of_layer(module)
            fits = layer is not None and isinstance(given, Scaled)
            return (affine.after(layer, given) if fits else None) or UNKNOWN  # type: ignore[arg-type]
        graph = self._traced(module)
        if graph is None:
            return UNKNOWN
        return self._values(module, graph, given)[next(n for n in graph.nodes if n.op == "output")]


def _trace(module: nn.Module) -> fx.Graph | None:
    """The steps of a forward; None where it cannot be followed, as where it looks at values."""
    # A copy, but for its tensors: what a forward keeps for its next call, it shall not keep here.
    held = (*module.parameters(), *module.buffers())
    seen = copy.deepcopy(module, {id(tensor): tensor for tensor in held})
    try:
        return _Tracer().trace(seen)
    except Exception:  # noqa: BLE001 - a stranger's forward may raise anything
        return None


def replace(root: nn.Module | None, old: nn.Module, new: nn.Module) -> None:
    """Put a module in another's place, wherever that is held."""
    for holder in [] if root is None else list(root.modules()):
        for name, child in holder._modules.items():
            if child is old:
                holder._modules[name] = new


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _end(graph: fx.Graph, values: dict[fx.Node, Any]) -> tuple[Any, list[str]]:
    """The last map before the output, and the modules that come after it, one after another."""
    node = next(n for n in graph.nodes if n.op == "output").args[0]
    names: list[str] = []
    while isinstance(node, fx.Node) and not isinstance(values[node], Convolved):
        if node.op != "call_module" or len(node.args) != 1 or node.kwargs:
            return None, []
        names.insert(0, str(node.target))
        node = node.args[0]
    once = len(set(names)) == len(names)
    return (values[node], names) if isinstance(node, fx.Node) and once else (None, [])


def _step(node: fx.Node, arguments: Any, options: Any, plain: bool) -> Any:
    """A function or method; ``plain`` if it is given parameters and numbers only."""
    target: Any = node.target
    if plain:
        called = getattr(arguments[0], target) if node.op == "call_method" else target
        rest = arguments[1:] if node.op == "call_method" else arguments
        with torch.no_grad():
            return called(*rest, **options)
    if target is F.batch_norm:
        return _functional_norm(*arguments, **options)
    if target in ("flatten", "reshape_as"):
        return _reshaped(target, arguments)
    if len(arguments) != 2 or options:
        return UNKNOWN
    first, second = arguments
    if target in _SUBTRACT:
        return _binary(_ADD[0], first, _binary(operator.mul, second, -1))
    if target in _ADD or target in _MULTIPLY:
        return _binary(operator.add if target in _ADD else operator.mul, first, second)
    return UNKNOWN


def _functional_norm(
    value: Any, mean: Any, variance: Any, weight: Any = None, bias: Any = None,
    training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> Any:  # fmt: skip
    if training:
        return UNKNOWN
    return _normed(value, affine.of_norm(mean, variance, weight, bias, eps, None))


def _norm(norm: Any, rank: int | None) -> Scaled | None:
    return affine.of_norm(
        norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.eps, rank
    )


def _normed(value: Any, norm: Scaled | None) -> Any:
    if norm is None:
        return UNKNOWN
    if isinstance(value, _Flat):
        made = affine.scaled(value.value, norm)
        return _Flat(made) if isinstance(made, Convolved) else UNKNOWN
    # A batch norm's channels are the second axis; a linear layer's outputs are the last.
    if not isinstance(value, Scaled | Convolved) or _is_linear(value):
        return UNKNOWN
    return affine.scaled(value, norm) or UNKNOWN


def _is_linear(value: Affine) -> bool:
    return isinstance(value, Convolved) and value.rank == 0


def _reshaped(name: str, arguments: Any) -> Any:
    """A linear layer's tokens put on the batch axis, for a batch norm, and back."""
    value = arguments[0]
    if name == "flatten" and tuple(arguments[1:]) == (0, 1) and _is_linear(value):
        return _Flat(value)
    if name == "reshape_as" and isinstance(value, _Flat) and _is_linear(arguments[1]):
        return value.value
    return UNKNOWN


def _binary(function: Any, first: Any, second: Any) -> Any:
    if not isinstance(first, Scaled | Convolved):
        first, second = second, first
    if not isinstance(first, Scaled | Convolved):
        return UNKNOWN
    if isinstance(second, Scaled | Convolved):
        return (affine.plus(first, second) if function is operator.add else None) or UNKNOWN
    by = _channels(second, first)
    if by is None:
        return UNKNOWN
    vector, rank = by
    one, zero = torch.ones_like(vector), torch.zeros_like(vector)
    step = Scaled(one, vector, rank) if function is operator.add else Scaled(vector, zero, rank)
    return affine.scaled(first, step) or UNKNOWN


def _channels(value: Any, of: Affine) -> tuple[Tensor, int | None] | None:
    """A number, or a tensor with one a channel, as a vector and the axes after the channels."""
    if isinstance(value, int | float):
        return torch.tensor([float(value)], dtype=torch.float64), None
    if not isinstance(value, Tensor):
        return None
    if value.numel() == 1:
        return value.detach().double().reshape(1), None
    shape = list(value.shape)
    rank = len(shape) - 1 - next(i for i, size in enumerate(shape) if size > 1)
    if value.numel() != max(shape) or (isinstance(of, Convolved) and rank != of.rank):
        return None
    return value.detach().double().reshape(-1), rank
