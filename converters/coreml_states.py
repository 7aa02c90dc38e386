"""How a Core ML program carries the states of a streaming model from call to call.

1. One that grows, a cache of keys or values, is an input and an output. Core ML has no tensor of
   size 0, which a cache is before the first call: so there is one position before all others,
   that is zero and never read, in what is given and in what comes back.
2. From iOS 18 and macOS 15 on, a program in half precision holds the others itself, as states of
   Core ML. These are float16 only: one that the graph computes in float32 is held as the sum
   of two, NAME and NAME_rest, which has 22 bits.
3. What is neither, such as a position, is an input and an output.
"""

from __future__ import annotations

import dataclasses
import operator
import sys
from typing import TYPE_CHECKING, Any

from edgekit.model import BATCH, Dim, State

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram
    from torch.fx import Node

    from edgekit.edit import Editor
    from edgekit.model import Graph


def growing(state: State) -> int | None:
    """The axis along which a state grows, if it does."""
    axes = [a for a, s in enumerate(state.shape) if not isinstance(s, int) and s.name != BATCH.name]
    return axes[0] if axes else None


def parts_of(graph: Graph) -> dict[str, tuple[str, ...]]:
    """By state, the names under which Core ML can hold it (case 2); the others are left out."""
    from edgekit.edit import IN_FLOAT32

    results = dict(zip(graph.outputs, graph.exported.graph.output_node().args[0], strict=True))
    found: dict[str, tuple[str, ...]] = {}
    for state in graph.states:
        if all(isinstance(size, int) for size in state.shape) and state.dtype == "float32":
            wide = IN_FLOAT32 in results[state.output].meta
            found[state.name] = (state.name, f"{state.name}_rest") if wide else (state.name,)
    return found


def never_empty(graph: Graph) -> Graph:
    """Case 1: the graph with one position before all others in every state that grows.

    Sizes that it reads of such an input are one too large from now on, and are corrected.
    """
    from edgekit.edit import Editor

    if all(growing(state) is None for state in graph.states):
        return graph
    editor = Editor(graph)
    nodes = dict(zip((i.name for i in graph.inputs), _user_inputs(editor, graph), strict=True))
    for state in graph.states:
        axis = growing(state)
        if axis is not None:
            place = graph.outputs.index(state.output)
            _lengthen(editor, nodes[state.name], axis, place)
    states = {state.name: _longer(state) for state in graph.states}
    return dataclasses.replace(
        editor.done(),
        inputs=tuple(states[i.name].input if i.name in states else i for i in graph.inputs),
        states=tuple(states.values()),
    )


def _longer(state: State) -> State:
    axis = growing(state)
    if axis is None:
        return state
    dim: Any = state.shape[axis]
    more = Dim(dim.name, dim.least + 1, dim.usual + 1, dim.most + 1)
    return State(state.name, (*state.shape[:axis], more, *state.shape[axis + 1 :]), state.dtype)


def _user_inputs(editor: Editor, graph: Graph) -> list[Node]:
    named = graph.exported.graph_signature.user_inputs
    nodes = {node.name: node for node in editor.fx.find_nodes(op="placeholder")}
    return [nodes[str(name)] for name in named]


def _lengthen(editor: Editor, node: Node, axis: int, place: int) -> None:
    """Let ``node`` and the graph's output at ``place`` have a first position to be passed over.

    It is cut off only after what is new has been put behind it: before, nothing may be left.
    """
    import torch

    aten = torch.ops.aten
    end = editor.fx.output_node()
    longer: dict[Any, Node] = {}
    for user in [user for user in node.users if user is not end]:
        if user.target is aten.cat.default and _begins_with(user, node, axis):
            cut = _after(editor, user, aten.slice.Tensor, user, axis, 1, sys.maxsize)
            longer[cut] = user
        elif user.target is aten.sym_size.int:
            if user.args[1] == axis:
                _after(editor, user, operator.sub, user, 1)
        else:
            cut = editor.call(aten.slice.Tensor, node, axis, 1, sys.maxsize, like=user)
            user.replace_input_with(node, cut)
    results: Any = list(end.args[0])
    found = results[place]
    if found not in longer:
        first = editor.call(aten.slice.Tensor, node, axis, 0, 1, like=end)
        longer[found] = editor.call(aten.cat.default, [first, found], axis, like=end)
    results[place] = longer[found]
    end.args = (tuple(results),)


def _after(editor: Editor, node: Node, operation: Any, *args: Any) -> Node:
    """A call of what takes ``node``, in its place for all others."""
    with editor.fx.inserting_after(node):
        made: Node = editor.fx.call_function(operation, args)
    made.meta = {key: value for key, value in node.meta.items() if key != "val"}
    node.replace_all_uses_with(made, delete_user_cb=lambda user: user is not made)
    return made


def _begins_with(cat: Node, node: Node, axis: int) -> bool:
    """Whether a concatenation puts others behind ``node``, along an axis."""
    parts: Any = cat.args[0]
    given: Any = cat.args[1] if len(cat.args) > 1 else cat.kwargs.get("dim", 0)
    return parts[0] is node and given % node.meta["val"].ndim == axis


def hold(
    program: ExportedProgram, graph: Graph, parts: dict[str, tuple[str, ...]]
) -> ExportedProgram:
    """Case 2: the program with these states as buffers that it changes.

    Args:
        program: takes and gives them as ``graph`` says.
        parts: from ``parts_of``.
    """
    from torch.export.exported_program import ExportedProgram
    from torch.export.graph_signature import (
        ExportGraphSignature,
        InputKind,
        InputSpec,
        OutputKind,
        OutputSpec,
        TensorArgument,
    )

    fx, old = program.graph, program.graph_signature
    inputs = {str(spec.arg.name): spec for spec in old.input_specs}
    named = dict(zip((i.name for i in graph.inputs), old.user_inputs, strict=True))
    placeholders = {node.name: node for node in fx.find_nodes(op="placeholder")}
    results: Any = fx.output_node().args[0]
    outputs = dict(zip(graph.outputs, results, strict=True))
    given = dict(zip(graph.outputs, old.output_specs, strict=True))
    changed: list[tuple[Node, OutputSpec]] = []
    state_dict = dict(program.state_dict)
    for name, names in parts.items():
        reads, writes = _parts(fx, placeholders[str(named[name])], outputs[f"{name}_next"], names)
        del inputs[str(named[name])], given[f"{name}_next"]
        for part, read, write in zip(names, reads, writes, strict=True):
            state_dict[part] = _zeros(read)
            argument = TensorArgument(read.name)
            inputs[read.name] = InputSpec(InputKind.BUFFER, argument, part, persistent=True)
            argument = TensorArgument(write.name)
            changed.append((write, OutputSpec(OutputKind.BUFFER_MUTATION, argument, part)))
    kept = [(outputs[name], spec) for name, spec in given.items()]
    fx.output_node().args = (tuple(node for node, _ in [*changed, *kept]),)
    ordered = [inputs[node.name] for node in fx.find_nodes(op="placeholder")]
    program.graph_module.recompile()
    return ExportedProgram(
        root=program.graph_module,
        graph=fx,
        graph_signature=ExportGraphSignature(ordered, [spec for _, spec in [*changed, *kept]]),
        state_dict=state_dict,
        range_constraints=program.range_constraints,
        module_call_graph=program.module_call_graph,
        constants=program.constants,
    )


def _zeros(node: Node) -> torch.Tensor:
    import torch

    return torch.zeros(tuple(node.meta["val"].shape))


def _parts(
    fx: Any, read: Node, write: Node, names: tuple[str, ...]
) -> tuple[list[Node], list[Node]]:
    """Placeholders of a state's parts, and what they become; ``read`` is the first of them."""
    import torch

    from edgekit.edit import IN_FLOAT32

    aten = torch.ops.aten
    read.name = f"b_{names[0]}"
    with fx.inserting_before(fx.output_node()):
        # coremltools has lost the size of a slice of the last few steps of any number.
        shape = list(read.meta["val"].shape)
        write = fx.call_function(aten.reshape.default, (write, shape))
    write.meta = {"val": read.meta["val"]}
    if len(names) == 1:
        return [read], [write]
    with fx.inserting_after(read):
        rest = fx.placeholder(f"b_{names[1]}")
    with fx.inserting_before(next(node for node in fx.nodes if node.op != "placeholder")):
        whole = fx.call_function(aten.add.Tensor, (read, rest))
    read.replace_all_uses_with(whole, delete_user_cb=lambda user: user is not whole)
    with fx.inserting_before(fx.output_node()):
        half = fx.call_function(aten._to_copy.default, (write,), {"dtype": torch.float16})
        rounded = fx.call_function(aten._to_copy.default, (half,), {"dtype": torch.float32})
        left = fx.call_function(aten.sub.Tensor, (write, rounded))
    for node in (rest, write, whole, rounded, left):
        node.meta = {"val": read.meta["val"], IN_FLOAT32: True}
    half.meta = {"val": read.meta["val"].half(), IN_FLOAT32: True}
    return [read, rest], [rounded, left]
