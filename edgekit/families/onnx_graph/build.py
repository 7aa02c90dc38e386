"""Building the module: each node is run once on samples while it becomes a step.

Running tells what is known and what is data, proves each node, and names the one that fails.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from edgekit.errors import EdgekitError
from edgekit.families import probe
from edgekit.families.onnx_graph import layers
from edgekit.families.onnx_graph.module import Argument, Group, OnnxModule, Parameter, Step, named
from edgekit.families.onnx_graph.names import layer_path, tensor_path
from edgekit.families.onnx_graph.reading import File, Node
from edgekit.families.onnx_graph.table import Known, Operator, operators, tensor

ABSENT = Argument("fixed", None)


def build(
    file: File, parameters: Sequence[Parameter], samples: dict[str, torch.Tensor]
) -> OnnxModule:
    """The module that computes what the file does.

    Args:
        parameters: of its ``forward``.
        samples: a tensor for each input, by its name in the file.

    Raises:
        EdgekitError: a node cannot be computed; it is named.
    """
    with torch.no_grad():
        return _Builder(file, parameters, samples).run()


class _Builder:
    def __init__(
        self, file: File, parameters: Sequence[Parameter], samples: dict[str, torch.Tensor]
    ) -> None:
        self.file, self.parameters = file, parameters
        self.module = named(parameters)
        self.constants = dict(file.constants)
        self.values: dict[str, Any] = dict(samples)
        self.steps: list[Step] = []
        self.stored: dict[str, str] = {}
        self.weights: dict[str, torch.nn.Parameter] = {}
        self.linears: dict[str, int] = {}  # output -> step, while it may yet get a bias
        self.uses = Counter(name for node in file.nodes for name in node.inputs)
        self.uses.update(file.outputs)
        self.left = Counter(self.uses)
        self.added = {  # value -> what an Add puts to it
            name: other
            for node in file.nodes
            if node.kind == "Add"
            for name, other in (node.inputs, reversed(node.inputs))
        }

    def run(self) -> OnnxModule:
        """All nodes."""
        for node in self.file.nodes:
            try:
                self._node(node)
            except EdgekitError as error:
                what = f"{self.file.path}, {node}: {error.what}"
                raise EdgekitError(what, error.why, error.fix) from error
            except Exception as error:
                raise probe.failed(
                    f"{self.file.path}: {node} cannot be computed.",
                    error,
                    "Check the file in ONNX Runtime; if it runs there, report the node.",
                ) from error
            self._free(node)
        results = [self._tensor_argument(name) for name in self.file.outputs]
        self.module.setup(self.parameters, self.steps, results)
        return self.module.eval()

    def _node(self, node: Node) -> None:
        if node.kind == "Constant":
            self.constants[node.outputs[0]] = _constant(node)
            return
        if all(name in self.constants for name in node.inputs if name):
            self._fold(node)
        elif not (self._bias(node) or self._linear(node) or self._conv(node)):
            self._plain(node)

    def _fold(self, node: Node) -> None:
        """Inputs that are all constant make a constant."""
        run, attributes = self._operator(node)
        results = run([self.constants.get(name) for name in node.inputs], attributes)
        several = results if isinstance(results, tuple) else (results,)
        for name, value in zip(node.outputs, several, strict=False):
            self.constants[name] = value if isinstance(value, np.ndarray) else value.numpy()

    def _plain(self, node: Node) -> None:
        run, attributes = self._operator(node)
        if node.kind == "Gather":
            node = self._counted_from_start(node)
        arguments = tuple(self._argument(node, run, place) for place in range(len(node.inputs)))
        self._add(Step(run, arguments, attributes, node.outputs))
        absent = [name for name in node.outputs if self.uses[name] and name not in self.values]
        if absent:
            raise EdgekitError(f"Its output {absent[0]!r} is not computed by edgekit.")

    def _operator(self, node: Node) -> tuple[Operator, dict[str, Any]]:
        run = operators()[node.kind]
        for name in node.attributes:
            if name not in run.keywords:
                raise EdgekitError(
                    f"Its attribute {name!r} is not read by edgekit.",
                    f"{node.kind} has here: {', '.join(sorted(run.keywords))}.",
                    "Export the model without it.",
                )
        extra = {"opset": self.file.opset, "count": len(node.outputs)}
        return run, node.attributes | {k: v for k, v in extra.items() if k in run.keywords}

    def _argument(self, node: Node, run: Operator, place: int) -> Argument:
        name = node.inputs[place]
        if not name:
            return ABSENT
        constant = self.constants.get(name)
        if constant is None:
            return Argument("value", name)
        values = [self.values.get(other) for other in node.inputs]
        live = any(isinstance(x, torch.Tensor) and x.dtype != torch.bool for x in values)
        shapes_only = not any(isinstance(x, torch.Tensor) for x in values)
        learned = constant.dtype.kind == "f" and constant.ndim > 1
        if place in run.known or (run.shortcut and shapes_only and not learned):
            return Argument("fixed", constant)
        if run.takes_number(constant, live):
            return Argument("fixed", constant.item())
        return self._tensor_argument(name)

    def _tensor_argument(self, name: str) -> Argument:
        """A value, or a constant as a parameter or buffer."""
        constant = self.constants.get(name)
        if constant is None:
            return Argument("value", name)
        if name not in self.stored:
            value = tensor(constant)
            statistic = name.endswith(("running_mean", "running_var"))
            learned = value.is_floating_point() and value.numel() > 1 and not statistic
            path = tensor_path(name, folded=name not in self.file.constants)
            self.stored[name] = self._place(path, value, learned)
        return Argument("stored", self.stored[name])

    def _bias(self, node: Node) -> bool:
        """An Add of a constant vector to a linear layer's output is the layer's bias."""
        if node.kind != "Add":
            return False
        for name, other in (node.inputs, reversed(node.inputs)):
            place, bias = self.linears.get(name), self.constants.get(other)
            if place is None or bias is None or self.uses[name] != 1:
                continue
            step = self.steps[place]
            layer: Any = self.module.get_submodule(str(step.run))
            width = layer.out_features
            if bias.size != width or bias.ndim > self.values[name].dim() or bias.shape[-1] != width:
                continue
            layer.bias = torch.nn.Parameter(tensor(bias.reshape(-1)))
            self.steps[place] = dataclasses.replace(step, outputs=node.outputs)
            self.values[node.outputs[0]] = self.values[name] + layer.bias
            return True
        return False

    def _linear(self, node: Node) -> bool:
        if node.kind not in ("MatMul", "Gemm"):
            return False
        matrix = layers.weight_matrix(node, self.constants)
        if matrix is None:
            return False
        bias = None
        if node.kind == "Gemm":
            bias = layers.gemm_bias(node, self.constants, matrix.shape[0])
        shared = f"{node.inputs[1]}/{sorted(node.attributes.items())}"
        weight = self._weight(shared, matrix)
        path = self._layer(node, layers.linear(weight, bias))
        if bias is None:
            self.linears[node.outputs[0]] = len(self.steps)
        self._add(Step(path, (Argument("value", node.inputs[0]),), {}, node.outputs))
        return True

    def _conv(self, node: Node) -> bool:
        name, *more = (*node.inputs[1:], "")
        weight, bias = self.constants.get(name), self.constants.get(more[0] if more else "")
        if node.kind != "Conv" or weight is None or (more and more[0] and bias is None):
            return False
        x = node.inputs[0]
        stored = self._weight(name, weight)
        layer, pads = layers.convolution(node, stored, bias, self.values[x].shape[2:])
        if pads:
            amounts = [before for before, _ in pads] + [after for _, after in pads]
            axes = tuple(range(2, 2 + len(pads)))
            both = (Argument("value", x), Argument("fixed", np.array(amounts)))
            options = {"axes": axes}
            x = f"{node.outputs[0]}/padded"
            self._add(Step(operators()["Pad"], both, options, (x,)))
        path = self._layer(node, layer)
        self._add(Step(path, (Argument("value", x),), {}, node.outputs, (x,) if pads else ()))
        return True

    def _weight(self, name: str, value: Known) -> torch.nn.Parameter:
        """One parameter for all layers that share a weight."""
        if name not in self.weights:
            self.weights[name] = torch.nn.Parameter(tensor(value))
        return self.weights[name]

    def _layer(self, node: Node, layer: torch.nn.Module) -> str:
        bias = node.inputs[2] if len(node.inputs) > 2 else self.added.get(node.outputs[0], "")
        return self._place(layer_path(node, node.inputs[1], bias, self.uses), layer, False)

    def _counted_from_start(self, node: Node) -> Node:
        """Constant indices that count from the end: torch's gathers count from the start."""
        name, x = node.inputs[1], self.values.get(node.inputs[0])
        indices = self.constants.get(name)
        if indices is None or not isinstance(x, torch.Tensor) or not (indices < 0).any():
            return node
        length = x.shape[node.attributes.get("axis", 0)]
        self.constants[f"{name}/{length}"] = np.where(indices < 0, indices + length, indices)
        return dataclasses.replace(node, inputs=(node.inputs[0], f"{name}/{length}"))

    def _add(self, step: Step) -> None:
        self.steps.append(step)
        step(self.module, self.values)

    def _free(self, node: Node) -> None:
        """Forget the values that this node was the last to use."""
        self.left.subtract(node.inputs)
        done = tuple(
            name for name in set(node.inputs) if name in self.values and not self.left[name]
        )
        for name in done:
            self.values.pop(name, None)
        if self.steps and done:
            last = self.steps[-1]
            self.steps[-1] = dataclasses.replace(last, frees=(*last.frees, *done))

    def _place(self, path: str, item: torch.nn.Module | torch.Tensor, learned: bool) -> str:
        """Put a module or tensor where its path says; returns the path that was free."""
        home: torch.nn.Module = self.module
        *groups, leaf = path.split(".")
        walked: list[str] = []
        for name in groups:
            while hasattr(home, name) and not isinstance(getattr(home, name), torch.nn.Module):
                name += "_"
            if not hasattr(home, name):
                home.add_module(name, Group())
            walked.append(name)
            home = home.get_submodule(name)
        free, number = leaf, 1
        while hasattr(home, free):
            number += 1
            free = f"{leaf}_{number}"
        if isinstance(item, torch.nn.Module):
            home.add_module(free, item)
        elif learned:
            home.register_parameter(free, torch.nn.Parameter(item))
        else:
            home.register_buffer(free, item)
        return ".".join([*walked, free])


def _constant(node: Node) -> Known:
    """The value of a Constant node, in whichever form it is given."""
    name, value = next(iter(node.attributes.items()))
    if name == "value":
        return np.asarray(value)
    kinds = dict.fromkeys(("value_float", "value_floats"), "float32")
    kinds |= dict.fromkeys(("value_int", "value_ints"), "int64")
    if name not in kinds:
        raise EdgekitError(f"Its constant is in {name!r}, which edgekit does not read.")
    return np.array(value, dtype=kinds[name])
