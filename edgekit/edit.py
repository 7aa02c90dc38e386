"""Editing an ExportedProgram: the one place that rewires graphs and their signature.

>>> editor = Editor(graph)                                      # doctest: +SKIP
>>> for node in editor.calls("aten.linear.default"): ...        # doctest: +SKIP
>>> graph = editor.done()                                       # doctest: +SKIP
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.utils._pytree as pytree
from torch._dispatch.python import enable_python_dispatcher
from torch.export.exported_program import (
    ExportedProgram,
    ModuleCallEntry,
    ModuleCallSignature,
)
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
    TensorArgument,
)
from torch.fx import Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

from edgekit.errors import EdgekitError

if TYPE_CHECKING:
    from edgekit.model import Graph, Input

_TENSORS = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
#: What the metadata of a node says that is computed in float32 in half precision, too.
IN_FLOAT32 = "float32"


class Editor:
    """A private copy of a graph's program, open for changes until ``done``.

    New nodes inherit the metadata of the node they stand beside, so that a report can
    still name the module in the user's code.
    """

    def __init__(self, graph: Graph) -> None:
        self._origin = graph
        program = graph.exported
        with quiet_copies():
            self._module = copy.deepcopy(program.graph_module)
        self.fx = self._module.graph
        self._state: dict[str, torch.Tensor] = dict(program.state_dict)
        self._constants = dict(program.constants)
        self._specs = {
            node.name: copy.copy(spec)
            for node, spec in zip(
                self.fx.find_nodes(op="placeholder"),
                program.graph_signature.input_specs,
                strict=True,
            )
        }
        self._results = list(program.graph_signature.output_specs)
        self._calls = program.module_call_graph
        self._example = program.example_inputs

    def calls(self, *operators: str) -> Iterator[Node]:
        """Calls of the named operators (``aten.linear.default``), or all calls, in order."""
        for node in list(self.fx.nodes):
            if node.op == "call_function" and (not operators or str(node.target) in operators):
                yield node

    def tensor(self, node: Any) -> torch.Tensor | None:
        """The parameter, buffer or constant behind a placeholder, else None."""
        spec = self._specs.get(node.name) if isinstance(node, Node) else None
        if spec is None or spec.target is None:
            return None
        stored = self._state.get(spec.target, self._constants.get(spec.target))
        return stored if isinstance(stored, torch.Tensor) else None

    def tensor_name(self, node: Node) -> str:
        """The state dict's name of the tensor behind a placeholder."""
        return str(self._specs[node.name].target)

    def assign(self, name: str, value: torch.Tensor) -> None:
        """Give a parameter, buffer or constant another value of the same shape.

        Raises:
            EdgekitError: there is none of that name, or it has another shape.
        """
        store = self._state if name in self._state else self._constants
        old = store.get(name)
        if not isinstance(old, torch.Tensor) or old.shape != value.shape:
            found = "none" if not isinstance(old, torch.Tensor) else str(tuple(old.shape))
            raise EdgekitError(
                f"The changed tensors belong to another model: {name} does not fit.",
                f"It is {tuple(value.shape)}; the model has {found}.",
                "Calibrate this model: build without the table.",
            )
        fresh = value.detach().to(old.dtype).contiguous()
        parameter = isinstance(old, torch.nn.Parameter)
        store[name] = torch.nn.Parameter(fresh, requires_grad=False) if parameter else fresh

    def buffer(self, name: str, value: torch.Tensor) -> Node:
        """A placeholder for a new constant; asked for again by name, the same one."""
        known: list[Node] = self.fx.find_nodes(op="placeholder")
        for old in known:
            if self._specs[old.name].target == name:
                return old
        first = next(iter(self.fx.nodes))
        with self.fx.inserting_before(first):
            node: Node = self.fx.placeholder(f"b_{name.replace('.', '_')}")
        self._state[name] = value.detach().contiguous()
        self._specs[node.name] = InputSpec(
            InputKind.BUFFER, TensorArgument(node.name), name, persistent=True
        )
        return node

    def call(self, operator: Any, *args: Any, like: Node, **options: Any) -> Node:
        """A new call before ``like``, with its metadata."""
        with self.fx.inserting_before(like):
            node: Node = self.fx.call_function(operator, args, options)
        node.meta = {key: value for key, value in like.meta.items() if key != "val"}
        return node

    def arguments(self, node: Node) -> list[Any]:
        """All that an operator is called with, in its schema's order, defaults among them."""
        operator: Any = node.target
        parameters = operator._schema.arguments
        given = dict(zip((p.name for p in parameters), node.args, strict=False))
        return [{**given, **node.kwargs}.get(p.name, p.default_value) for p in parameters]

    def trace(
        self,
        form: Callable[..., Any],
        *args: Any,
        like: Node,
        half: frozenset[str] | None = None,
    ) -> list[Node]:
        """Write what a function computes, in plain operators, before ``like``.

        Args:
            form: of tensors, and of other arguments as they are; returns a tensor or several.
            args: a node stands for its tensor.
            like: whose metadata the new nodes have.
            half: the operators that may run in half precision, the others being marked
                ``IN_FLOAT32``; None is all, by ``quantize.fp16``'s rules.

        Returns:
            A node for each result.
        """
        nodes = [arg for arg in args if isinstance(arg, Node)]
        values, mode = self._fakes(nodes), self._mode()

        def on_tensors(*tensors: torch.Tensor) -> Any:
            given = iter(tensors)
            return form(*(next(given) if isinstance(arg, Node) else arg for arg in args))

        with _unguarded(mode), mode:
            traced = make_fx(on_tensors, pre_dispatch=True)(*values)
        traced.graph.eliminate_dead_code()
        copies = dict(zip(traced.graph.find_nodes(op="placeholder"), nodes, strict=True))
        for node in traced.graph.nodes:
            if node.op != "call_function":
                continue
            with self.fx.inserting_before(like):
                copies[node] = self.fx.node_copy(node, copies.__getitem__)
            copies[node].meta = {**like.meta, "val": node.meta["val"]}
            if half is not None and str(node.target) not in half:
                copies[node].meta[IN_FLOAT32] = True
        results: Any = traced.graph.output_node().args[0]
        return [copies[r] for r in (results if isinstance(results, tuple | list) else [results])]

    def replace_results(self, old: Node, new: list[Node]) -> None:
        """``replace`` for a call of several results: each ``getitem`` of ``old``, and ``old``."""
        for user in list(old.users):
            place: Any = user.args[1]
            self.replace(user, new[place])
        self.fx.erase_node(old)

    def restore_names(self) -> None:
        """Call each node as that of the previous graph which it came from.

        ``run_decompositions`` numbers nodes anew: its ``add_2`` may be another addition. Where
        one node became several, the last one holds its value and has its name.
        """
        calls = list(self.calls())
        came = {n: n.meta["from_node"][-1].name for n in calls if n.meta.get("from_node")}
        last = {origin: node for node, origin in came.items()}
        for node in calls:
            origin = came.get(node)
            if origin is not None and last[origin] is node:
                node.name = origin
            elif node.name in last:
                node.name = f"{node.name}_part"

    def replace(self, old: Node, new: Node) -> None:
        """Give every user of ``old`` the value of ``new``, and drop ``old``.

        A call takes over the name with the value, so that traces of both graphs can be compared.
        """
        old.replace_all_uses_with(new)
        self.fx.erase_node(old)
        if new.op == "call_function":
            new.name = old.name

    def cut(self, given: Mapping[Node, Input], results: Mapping[str, Node]) -> None:
        """Keep no more than what computes ``results``.

        Args:
            given: values that are inputs from here on, after those of the graph's own inputs that
                are still needed; nodes keep their names where the input is called the same.
            results: what is given, by name, in the graph's place.
        """
        for node, spec in given.items():
            last = self.fx.find_nodes(op="placeholder")[-1]
            with self.fx.inserting_after(last):
                entry: Node = self.fx.placeholder(spec.name)
            # An array that comes from elsewhere has its axes in order.
            entry.meta = {**node.meta, "val": node.meta["val"].contiguous()}
            node.replace_all_uses_with(entry)
        names = {spec.name for spec in given.values()}
        self.fx.output_node().args = (tuple(results.values()),)
        # Claims about sizes have no users either, and would keep alive what they are about.
        for node in reversed(list(self.fx.nodes)):
            if node.op not in ("placeholder", "output") and not node.users:
                self.fx.erase_node(node)
        own = self._own_inputs()
        for node in self.fx.find_nodes(op="placeholder"):
            if node.target in names:
                node.name = node.target
                arg = TensorArgument(node.name)
                self._specs[node.name] = InputSpec(InputKind.USER_INPUT, arg, None)
            elif node in own and not node.users:
                self._specs.pop(node.name)
                self.fx.erase_node(node)
                del own[node]
        inputs = (*own.values(), *given.values())
        self._origin = dataclasses.replace(
            self._origin, inputs=inputs, outputs=tuple(results), states=()
        )
        self._results = [
            OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(node.name), None)
            for node in results.values()
        ]
        self._calls, self._example = _called(inputs, len(results)), None

    def _own_inputs(self) -> dict[Node, Input]:
        """The graph's inputs, by what stands for them."""
        kinds = {n: self._specs.get(n.name) for n in self.fx.find_nodes(op="placeholder")}
        own = [n for n, spec in kinds.items() if spec and spec.kind == InputKind.USER_INPUT]
        return dict(zip(own, self._origin.inputs, strict=True))

    def done(self, precision: str | None = None) -> Graph:
        """Check the program, infer every shape and dtype anew, and return it as a Graph."""
        self.fx.eliminate_dead_code()
        for node in self.fx.find_nodes(op="placeholder"):
            if not node.users and self._specs[node.name].kind in _TENSORS:
                self._specs.pop(node.name)
                self.fx.erase_node(node)
        self.fx.lint()
        self._module.recompile()
        self._infer()
        signature = ExportGraphSignature(self._input_specs(), self._output_specs())
        kept = {spec.target for spec in signature.input_specs}
        origin = self._origin.exported
        program = ExportedProgram(
            root=self._module,
            graph=self.fx,
            graph_signature=signature,
            state_dict={k: v for k, v in self._state.items() if k in kept},
            range_constraints=origin.range_constraints,
            module_call_graph=self._calls,
            example_inputs=self._example,
            constants={k: v for k, v in self._constants.items() if k in kept},
        )
        return self._origin.replace(program, precision)

    def _infer(self) -> None:
        values = self._fakes(self.fx.find_nodes(op="placeholder"))
        mode = self._mode()
        # Shapes are known to hold for every size; an operator's question about strides, answered
        # for the traced size, must not pin a dynamic dimension to it.
        with _unguarded(mode):
            FakeTensorProp(self._module, mode).propagate_dont_convert_inputs(*values)

    def _mode(self) -> Any:
        """What the values of the graph are fakes of."""
        placeholders = self.fx.find_nodes(op="placeholder")
        known = [n.meta["val"] for n in placeholders if isinstance(n.meta.get("val"), torch.Tensor)]
        return known[0].fake_mode

    def _fakes(self, nodes: list[Node]) -> list[Any]:
        """What stands for the nodes' values; for those of new constants, made here."""
        mode = self._mode()
        values = []
        for node in nodes:
            stored = self.tensor(node)
            fresh = "val" not in node.meta and stored is not None
            values.append(
                mode.from_tensor(stored, static_shapes=True) if fresh else node.meta.get("val")
            )
        return values

    def _input_specs(self) -> list[InputSpec]:
        """In the placeholders' order; copying a graph renames some, such as ``input``."""
        specs = [(self._specs[n.name], n.name) for n in self.fx.find_nodes(op="placeholder")]
        return [
            dataclasses.replace(spec, arg=TensorArgument(name))
            if isinstance(spec.arg, TensorArgument)
            else spec
            for spec, name in specs
        ]

    def _output_specs(self) -> list[Any]:
        results = self.fx.output_node().args[0]
        return [
            dataclasses.replace(spec, arg=TensorArgument(result.name))
            if spec.kind == OutputKind.USER_OUTPUT and isinstance(result, Node)
            else spec
            for spec, result in zip(self._results, results, strict=True)
        ]


def _called(inputs: tuple[Input, ...], outputs: int) -> list[ModuleCallEntry]:
    """How a program is called: its inputs by keyword, its outputs a tuple."""
    given = pytree.tree_structure(((), {spec.name: 0 for spec in inputs}))
    found = pytree.tree_structure((0,) * outputs)
    signature = ModuleCallSignature(inputs=[], outputs=[], in_spec=given, out_spec=found)
    return [ModuleCallEntry(fqn="", signature=signature)]


@contextlib.contextmanager
def _unguarded(mode: Any) -> Iterator[None]:
    """Let no question about a dynamic size become a condition on it.

    Nor an answer: torch's own kernels, such as that of a pad, read the traced size as a number
    where its Python dispatcher, which export itself runs under, keeps the symbol.
    """
    suppressed = mode.shape_env.suppress_guards() if mode.shape_env else contextlib.nullcontext()
    with suppressed, enable_python_dispatcher():
        yield


@contextlib.contextmanager
def quiet_copies() -> Iterator[None]:
    """Silence what torch says of its own pytrees whenever it copies a graph that holds one."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)
        yield


def module_path(node: Node) -> str:
    """The path of the user's module that a node belongs to; '' for the model itself."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [str(path) for path, _ in stack.values()]
    return paths[-1].removeprefix("L['self'].") if paths else ""
