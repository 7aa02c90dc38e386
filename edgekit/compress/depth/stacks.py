"""Stacks: lists of blocks of which each takes what the one before it gave.

They are found by running the model once. What links two blocks is that the very tensor which one
returns is handed to the next; so the streams of a block are known, one or several, by whatever
names and in whatever order, and parallel branches or experts are not taken for a stack.
"""

from __future__ import annotations

import fnmatch
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from edgekit.compress.modules.skip import Form, Skip, make
from edgekit.errors import EdgekitError
from edgekit.families import probe
from edgekit.model import Model

#: Where a tensor is in what a block returns: () for itself, (1,) for the second of a tuple.
_Place = tuple[int, ...]


@dataclass(frozen=True)
class Stack:
    """A list of blocks in a module.

    Attributes:
        path: of the list, such as ``blocks`` or ``model.layers``.
        skips: by place in the list, what can stand there instead.
        fixed: places of the others, which change a shape or give something else than they take.
    """

    path: str
    skips: dict[int, Skip]
    fixed: tuple[int, ...] = ()

    def blocks(self, module: nn.Module) -> nn.ModuleList:
        """The list itself, in a module like the one that it was found in."""
        return module.get_submodule(self.path)  # type: ignore[return-value]

    def __str__(self) -> str:
        return f"{self.path} ({len(self.skips)} blocks)"


@dataclass
class _Call:
    """A call of a block: its tensors by name, and what it gave."""

    inputs: dict[str, Tensor]
    output: Any


def find(model: Model) -> list[Stack]:
    """All stacks of two blocks or more, those inside a block of another among them.

    Weights may be on the meta device.

    Raises:
        EdgekitError: the model does not run.
    """
    lists = _lists(model.module)
    calls = _run(model, {block for blocks in lists.values() for block in blocks})
    found = (_stack(path, blocks, calls) for path, blocks in lists.items())
    return [stack for stack in found if stack is not None]


def chosen(model: Model, pattern: str) -> list[Stack]:
    """The stacks whose paths match a glob; of those inside one another, the inmost.

    Raises:
        EdgekitError: there is none; those that there are, are named.
    """
    found = find(model)
    matching = [stack for stack in found if fnmatch.fnmatch(stack.path, pattern)]
    if not matching:
        raise _none(model, pattern, found)
    return [
        stack
        for stack in matching
        if not any(other.path.startswith(f"{stack.path}.") for other in matching)
    ]


def _none(model: Model, pattern: str, found: list[Stack]) -> EdgekitError:
    called = "" if pattern == "*" else f" called {pattern!r}"
    lists = ", ".join(list(_lists(model.module))[:8]) or "none"
    return EdgekitError(
        f"{model.source} has no stack of blocks{called}.",
        f"Found: {', '.join(map(str, found))}."
        if found
        else f"In none of its lists of modules ({lists}) do two blocks give on what they take.",
        "Give the path of one as stack=PATH." if found else "Use another pass.",
    )


def _lists(module: nn.Module) -> dict[str, list[nn.Module]]:
    """What may be a stack, by path."""
    return {
        path: list(each)
        for path, each in module.named_modules()
        if isinstance(each, nn.ModuleList | nn.Sequential) and len(each) > 1
    }


def _run(model: Model, blocks: set[nn.Module]) -> dict[nn.Module, list[_Call]]:
    """Every call of the blocks while the model runs on zeros, batch 1."""
    calls: dict[nn.Module, list[_Call]] = {block: [] for block in blocks}

    def note(block: nn.Module, args: Any, named: dict[str, Any], output: Any) -> None:
        given = dict(zip(_parameters(block), args, strict=False)) | named
        calls[block].append(_Call(dict(_tensors(given)), output))

    hooks = [block.register_forward_hook(note, with_kwargs=True) for block in blocks]
    weight = next(model.module.parameters(), None)
    device = torch.device("cpu") if weight is None else weight.device
    zeros = {
        spec.name: torch.zeros(spec.concrete(), dtype=getattr(torch, spec.dtype), device=device)
        for spec in model.inputs
    }
    try:
        with torch.no_grad():
            model.module(**zeros)
    except Exception as error:
        raise probe.failed(
            f"{model.source} does not run on {device}, so its stacks of blocks are not known.",
            error,
            "Give the inputs that it takes with --input.",
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _stack(path: str, blocks: list[nn.Module], calls: dict[nn.Module, list[_Call]]) -> Stack | None:
    """The stack that a list of modules is, if it is one."""
    if any(len(calls[block]) != 1 for block in blocks):
        return None
    called = [calls[block][0] for block in blocks]
    streams: dict[_Place, str] = {}
    for before, after in pairwise(called):
        links = _links(before, after)
        if not links:
            return None
        streams |= links
    possible = {i: _skip(blocks[i], called[i], streams) for i in range(len(blocks))}
    skips = {place: skip for place, skip in possible.items() if skip is not None}
    others = (i for i in possible if i not in skips and not isinstance(blocks[i], Skip))
    return Stack(path, skips, tuple(others)) if len(skips) > 1 else None


def _links(before: _Call, after: _Call) -> dict[_Place, str]:
    """Which of a block's outputs are which inputs of the next."""
    return {
        place: name
        for place, tensor in _leaves(before.output)
        for name, taken in after.inputs.items()
        if taken is tensor
    }


def _skip(block: nn.Module, call: _Call, streams: dict[_Place, str]) -> Skip | None:
    """What gives the block's streams on, if it gives what it takes and is made of layers."""
    made_of_layers = any(True for _ in block.children()) and any(True for _ in block.parameters())
    if isinstance(block, Skip) or not made_of_layers:
        return None
    names = dict(streams)
    for place, tensor in _leaves(call.output):
        if place not in names:
            alike = [
                name
                for name, taken in call.inputs.items()
                if taken.shape == tensor.shape and name not in names.values()
            ]
            if len(alike) != 1:
                return None
            names[place] = alike[0]
        taken = call.inputs.get(names[place])
        if taken is None or taken.shape != tensor.shape or taken.dtype != tensor.dtype:
            return None
    if any(_at(call.output, place) is None for place in streams):
        return None  # a last block, which lets a stream end
    form = _form(call.output, (), names)
    return None if form is _UNKNOWN else make(_parameters(block), form, _attributes(block))


_UNKNOWN = object()


def _form(output: Any, place: _Place, names: dict[_Place, str]) -> Form:
    """What a block gives, as ``Skip`` wants it."""
    if output is None:
        return None
    if isinstance(output, Tensor):
        return names[place]
    if type(output) not in (tuple, list):
        return _UNKNOWN
    items = [_form(item, (*place, i), names) for i, item in enumerate(output)]
    return _UNKNOWN if _UNKNOWN in items else [type(output).__name__, *items]


def _leaves(output: Any, place: _Place = ()) -> Iterator[tuple[_Place, Tensor]]:
    if isinstance(output, Tensor):
        yield place, output
    elif isinstance(output, tuple | list):
        for number, item in enumerate(output):
            yield from _leaves(item, (*place, number))


def _at(output: Any, place: _Place) -> Any:
    for number in place:
        output = output[number] if isinstance(output, tuple | list) else None
    return output


def _tensors(given: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Arguments that are tensors, and tensors that arguments hold."""
    for name, value in given.items():
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, tuple | list):
            held = enumerate(value)
            yield from ((f"{name}.{i}", item) for i, item in held if isinstance(item, Tensor))


def _parameters(block: nn.Module) -> list[str]:
    """Names of what can be given by place."""
    if isinstance(block, Skip):
        return list(block.arguments()["parameters"])
    kinds = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    found = inspect.signature(block.forward).parameters
    return [name for name, each in found.items() if each.kind in kinds]


def _attributes(block: nn.Module) -> list[tuple[str, Any]]:
    """A block's own plain values: some models ask a layer for its type."""
    return [
        (name, value)
        for name, value in vars(block).items()
        if not name.startswith("_") and name != "training" and isinstance(value, bool | int | str)
    ]
