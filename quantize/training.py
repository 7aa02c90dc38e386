"""Training: the sites of a scale table as quantizers that learn, with the weights they quantize.

LSQ: S. K. Esser et al., "Learned Step Size Quantization", ICLR 2020. What is trained is what
ships: without gradients, a forward pass has the numbers of the placed graph, bit for bit.

>>> module = trainable(graph, quantized)                            # doctest: +SKIP
>>> optimizer = torch.optim.Adam(groups(module, 1e-4))              # doctest: +SKIP
>>> ...                                                             # doctest: +SKIP
>>> finish(module, graph, quantized).save(Path("scales.json"))      # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from edgekit.converters.rewrites.attention import is_static, scale_of, write_out
from edgekit.edit import Editor, quiet_copies
from edgekit.errors import EdgekitError
from edgekit.operators.few_levels import is_few_levels
from edgekit.quantize.fake_quantizer import FakeQuantizer
from edgekit.quantize.place import fitting_sites
from edgekit.quantize.post_training import Quantized, changed_tensors
from edgekit.quantize.sites import Site
from edgekit.quantize.spiking.units import unit_behind

if TYPE_CHECKING:
    from torch.fx import Node

    from edgekit.model import Graph
    from edgekit.quantize.scales import ScaleTable


def trainable(graph: Graph, made: Quantized, attention: bool = False) -> torch.fx.GraphModule:
    """The graph as a module that trains, quantized at every site of the table.

    It takes and returns what the graph does. Its parameters are copies of the graph's, of the
    same names, and the steps, ``MODULE.KIND_quantizer.step``; sites that share a tensor and a
    scale share a quantizer. Batch norms and dropout are as in evaluation, in ``train`` too.

    Args:
        graph: in fp32, as ``made`` was found on; a dynamic batch takes batches.
        made: its scales are the first steps.
        attention: whether its products are quantized too, as some runtimes' rules do; else
            their scales stay as they are.

    Raises:
        EdgekitError: ``made`` is of another model, or lacks half of a layer.
    """
    editor = Editor(made.applied(graph))
    marker = _Marker(editor, made.table)
    sites = fitting_sites(editor, made.table)
    calls = {node.name: node for node in editor.calls()}
    for name, site in sites.items():
        call = calls[site.node]
        if name not in made.table.sites:
            continue
        if site.kind in ("input", "weight"):
            marker.layer(call, site)
        elif attention and site.kind == "query" and is_static(call):
            marker.attention(call, site)
    marked = editor.done()
    module = _copied(marked, marker.tensors)
    _put(module, {node.name: quantizer for node, quantizer in marker.marks.items()})
    return module


def groups(module: torch.nn.Module, rate: float, step_rate: float = 0.001) -> list[dict[str, Any]]:
    """Parameter groups for Adam, which moves each value by about its rate in an update.

    Args:
        rate: of weights, biases and norms.
        step_rate: of steps, as a share of the mean step of their quantizer.
    """
    quantizers = [each for each in _quantizers(module) if each.step.requires_grad]
    steps = {id(each.step) for each in _quantizers(module)}
    weights = [each for each in module.parameters() if id(each) not in steps]
    return [
        {"params": weights, "lr": rate},
        *(
            {"params": [q.step], "lr": step_rate * float(q.exact().mean()), "weight_decay": 0.0}
            for q in quantizers
        ),
    ]


def finish(module: torch.nn.Module, graph: Graph, made: Quantized) -> Quantized:
    """What was trained, as post-training quantization would have given it.

    Args:
        module: from ``trainable`` of the same graph and ``made``.

    Raises:
        EdgekitError: a tensor is not finite, or the graph is of another model.
    """
    learned = {site: each.entry for each in _quantizers(module) for site in each.sites}
    sites = {name: learned.get(name, entry) for name, entry in made.table.sites.items()}
    table = made.table.model_copy(update={"method": "lsq", "sites": sites})
    editor = Editor(made.applied(graph))
    for name, value in module.named_parameters(remove_duplicate=False):
        if not value.isfinite().all():
            raise EdgekitError(
                f"Training has diverged: {name} is not finite.",
                "The rate is too high for this model, or its data holds NaN or infinity.",
                "Train with a lower rate.",
            )
        if not isinstance(module.get_submodule(name.rpartition(".")[0]), FakeQuantizer):
            editor.assign(name, value.cpu())
    return Quantized(table, changed_tensors(graph, editor.done(), table) | made.factors)


def _quantizers(module: torch.nn.Module) -> Iterator[FakeQuantizer]:
    return (each for each in module.modules() if isinstance(each, FakeQuantizer))


@dataclass
class _Marker:
    """Puts a copy at each site, to become a quantizer, since a program holds operators only.

    Attributes:
        marks: what each copy becomes.
        tensors: names of the weights and biases that marked layers read.
    """

    editor: Editor
    table: ScaleTable
    marks: dict[Node, FakeQuantizer] = field(default_factory=dict)
    tensors: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._shared: dict[object, Node] = {}

    def layer(self, call: Node, site: Site) -> None:
        """Mark what enters a linear or convolution, or its weight, as ``place`` shares it."""
        index = 1 if site.kind == "weight" else 0
        operand: Any = call.args[index]
        scale = None if site.kind == "weight" else self.table.sites[site.name].scale
        key = (operand, site.kind, scale)
        if key not in self._shared:
            self._shared[key] = self._mark(operand, site.name, like=call)
        mark = self._shared[key]
        self.marks[mark].sites.append(site.name)
        call.update_arg(index, mark)
        if site.kind == "weight":
            stored: list[Any] = [operand, *call.args[2:3]]
            learns = [each for each in stored if each and not self._is_few_levels(each)]
            self.tensors.update(self.editor.tensor_name(each) for each in learns)

    def attention(self, call: Node, site: Site) -> None:
        """Write an attention out and mark the operands of its products."""

        def marked(kind: str, operand: Node) -> Node:
            name = f"{site.module}.{kind}"
            mark = self._mark(operand, name, call, scale_of(call) if kind == "query" else 1.0)
            self.marks[mark].sites.append(name)
            return mark

        self.editor.replace(call, write_out(self.editor, call, marked))

    def _is_few_levels(self, operand: Node) -> bool:
        """Whether it is a weight whose levels are all that it may hold."""
        value = self.editor.tensor(operand)
        return value is not None and is_few_levels(value)

    def _mark(self, operand: Node, name: str, like: Node, factor: float = 1.0) -> Node:
        mark = self.editor.call(torch.ops.aten.clone.default, operand, like=like)
        fixed = unit_behind(operand) is not None or self._is_few_levels(operand)
        self.marks[mark] = FakeQuantizer(self.table.sites[name], factor, fixed)
        return mark


def _copied(graph: Graph, names: set[str]) -> torch.fx.GraphModule:
    """The graph as a module whose parameters, and the buffers of these names, are its own."""
    with quiet_copies():
        source = graph.exported.module(check_guards=False)
    module = torch.fx.GraphModule(source, source.graph)
    copies: dict[int, torch.nn.Parameter] = {}
    state = graph.exported.state_dict
    for name in sorted(names.union(graph.exported.graph_signature.parameters) & set(state)):
        value = state[name]
        if not value.is_floating_point():
            continue
        copy = copies.setdefault(id(value), torch.nn.Parameter(value.detach().clone()))
        path, _, leaf = name.rpartition(".")
        owner = module.get_submodule(path)
        delattr(owner, leaf)
        owner.register_parameter(leaf, copy)
    return module


def _put(module: torch.fx.GraphModule, marks: Mapping[str, FakeQuantizer]) -> None:
    """Call each quantizer in the place of the node of its name."""
    for node in list(module.graph.nodes):
        if node.name not in marks:
            continue
        quantizer = marks[node.name]
        path = f"{quantizer.sites[0]}_quantizer"
        module.add_submodule(path, quantizer)
        with module.graph.inserting_before(node):
            call = module.graph.call_module(path, node.args)
        node.replace_all_uses_with(call)
        module.graph.erase_node(node)
    module.graph.lint()
    module.recompile()
