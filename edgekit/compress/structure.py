"""Structure: how a compressed module differs from the one that its source makes.

A compressed model is saved as weights and a description of what was changed, in JSON: modules that
moved, went or were replaced by one of ours, and plain attributes (``num_heads``) with other values.
Nothing in it is code, so that a stranger's model is as safe to load as its weights are.

Each module remembers the path that it had in the source, its origin; ``copied`` sees to that, and
every pass changes such a copy.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from edgekit.errors import EdgekitError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from edgekit.model import Model

_ORIGIN = "_edgekit_origin"
_PLAIN = (int, float, bool, str, type(None))
#: Layers of torch that a pass may put in, and the attributes that they are made of again.
_CONVOLUTION = "in_channels out_channels kernel_size stride padding dilation groups padding_mode"
_LAYERS = {
    "Identity": "",
    "ModuleList": "",
    "Sequential": "",
    "Linear": "in_features out_features",
    "Conv1d": _CONVOLUTION,
    "Conv2d": _CONVOLUTION,
}


def copied(model: Model) -> Model:
    """A model that a pass may change: a copy whose modules know their origins."""
    module, traced = copy.deepcopy((model.module, model.traced))
    mark(module)
    return dataclasses.replace(model, module=module, traced=traced)


def mark(module: nn.Module) -> None:
    """Let every module remember its path, if none does yet."""
    if origin(module) is None:
        for path, each in module.named_modules():
            setattr(each, _ORIGIN, path)


def origin(module: nn.Module) -> str | None:
    """The path that a module had in its source; None for a new one."""
    found = vars(module).get(_ORIGIN)
    return found if isinstance(found, str) else None


def describe(original: nn.Module, module: nn.Module) -> dict[str, Any]:
    """How ``module``, a changed copy, differs from ``original``, as JSON values.

    Raises:
        EdgekitError: it holds a new module that is not one of ``edgekit.compress.modules``.
    """
    known = dict(original.named_modules())
    found: dict[str, Any] = {
        "modules": {}, "removed": [], "attributes": {}, "without": [], "with": []
    }  # fmt: skip
    for path, each in module.named_modules(remove_duplicate=False):
        before = origin(each)
        if before is None:
            found["modules"][path] = _made_of(each, path)
            continue
        if before != _expected(module, path):
            found["modules"][path] = {"origin": before}
        old = known[before]
        found["removed"] += [_join(path, n) for n in old._modules if n not in each._modules]
        changed = dict(_changes(old, each))
        if changed:
            found["attributes"][path] = changed
        here, there = _held(each), _held(old)
        found["without"] += [_join(path, name) for name in sorted(there - here)]
        found["with"] += [_join(path, name) for name in sorted(here - there)]
    return found


def restore(original: nn.Module, description: Mapping[str, Any]) -> nn.Module:
    """Change a freshly made module as described; weights are given with ``load``.

    Raises:
        EdgekitError: the description does not fit it, as where a library has changed.
    """
    import torch

    mark(original)
    known = dict(original.named_modules())
    try:
        for path, entry in sorted(description["modules"].items(), key=lambda e: e[0].count(".")):
            parent, _, name = path.rpartition(".")
            made = known[entry["origin"]] if "origin" in entry else _make(entry)
            original.get_submodule(parent)._modules[name] = made
        for path in description["removed"]:
            parent, _, name = path.rpartition(".")
            del original.get_submodule(parent)._modules[name]
        for path, changes in description["attributes"].items():
            module = original.get_submodule(path)
            for name, value in changes.items():
                setattr(module, name, _thawed(value))
        for path in description["without"]:
            parent, _, name = path.rpartition(".")
            original.get_submodule(parent).register_parameter(name, None)
        for path in description["with"]:
            parent, _, name = path.rpartition(".")
            empty = torch.nn.Parameter(torch.empty(0))
            original.get_submodule(parent).register_parameter(name, empty)
    except (KeyError, AttributeError, TypeError) as error:
        raise EdgekitError(
            "The compressed model does not fit its source.",
            f"{type(error).__name__}: {error}.",
            "Load it with the versions of the libraries that it was made with, or compress again.",
        ) from error
    return original


def tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """All parameters and buffers by name, those that a state dict leaves out among them."""
    held = (
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    )
    return {name: value.detach() for name, value in held}


def load(module: nn.Module, state: Mapping[str, torch.Tensor], source: str) -> None:
    """Give a restored module its tensors, of whatever shape.

    Args:
        source: what errors should call the state.

    Raises:
        EdgekitError: a tensor is missing, has no place, or is none that its module can have (its
            ``check`` says so).
    """
    from torch import nn

    own = tensors(module)
    missing, extra = sorted(set(own) - set(state)), sorted(set(state) - set(own))
    if missing or extra:
        raise EdgekitError(
            f"{source} does not fit its structure.",
            f"Missing: {', '.join(missing[:5]) or 'none'}; without a place: "
            f"{', '.join(extra[:5]) or 'none'}.",
            "Copy it again, or compress again.",
        )
    placed: dict[nn.Parameter, nn.Parameter] = {}
    for name, value in state.items():
        parent, _, leaf = name.rpartition(".")
        owner = module.get_submodule(parent)
        old = getattr(owner, leaf)
        if isinstance(old, nn.Parameter):
            fresh = placed.setdefault(old, nn.Parameter(value))
            owner._parameters[leaf] = fresh
        else:
            owner._buffers[leaf] = value
    for path, each in module.named_modules():
        if callable(check := getattr(each, "check", None)) and origin(each) is None:
            check(path)


def _expected(module: nn.Module, path: str) -> str | None:
    """The origin of what stands at ``path`` if nothing moved there."""
    if not path:
        return ""
    parent, _, name = path.rpartition(".")
    above = origin(module.get_submodule(parent))
    return None if above is None else _join(above, name)


def _changes(old: nn.Module, new: nn.Module) -> Iterator[tuple[str, Any]]:
    """Plain attributes with another value."""
    for name, value in vars(new).items():
        if name == _ORIGIN or name == "training" or not _plain(value):
            continue
        before = vars(old).get(name)
        if type(before) is not type(value) or before != value:
            yield name, _frozen(value)


def _plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(_plain(item) for item in value)
    return isinstance(value, _PLAIN)


def _frozen(value: Any) -> Any:
    """As JSON; a tuple is not a list."""
    if isinstance(value, tuple):
        return {"tuple": [_frozen(item) for item in value]}
    return [_frozen(item) for item in value] if isinstance(value, list) else value


def _thawed(value: Any) -> Any:
    if isinstance(value, dict):
        return tuple(_thawed(item) for item in value["tuple"])
    return [_thawed(item) for item in value] if isinstance(value, list) else value


def _held(module: nn.Module) -> set[str]:
    return {name for name, value in module._parameters.items() if value is not None}


def _kinds() -> set[str]:
    from edgekit.compress import modules

    return {file.name for file in pkgutil.iter_modules(modules.__path__)}


def _made_of(module: nn.Module, path: str) -> dict[str, Any]:
    """What a new module is made of again."""
    from torch import nn

    package, _, name = type(module).__module__.rpartition(".")
    if package == "edgekit.compress.modules" and name in _kinds():
        return {"kind": name, "arguments": module.arguments()}  # type: ignore[operator]
    layer = type(module).__name__
    if layer in _LAYERS and type(module) is getattr(nn, layer):
        arguments = {each: _frozen(getattr(module, each)) for each in _LAYERS[layer].split()}
        if arguments:
            arguments["bias"] = module.bias is not None
        return {"kind": f"torch.{layer}", "arguments": arguments}
    raise EdgekitError(
        f"{path} is a new {type(module).__name__}, which cannot be saved.",
        "A pass put it there, and it is not one of edgekit.compress.modules.",
        "Add a file for it there, with `make` and an `arguments` method.",
    )


def _make(entry: Mapping[str, Any]) -> nn.Module:
    from torch import nn

    kind = entry["kind"]
    arguments = {name: _thawed(value) for name, value in entry["arguments"].items()}
    if kind.startswith("torch.") and kind.removeprefix("torch.") in _LAYERS:
        layer: nn.Module = getattr(nn, kind.removeprefix("torch."))(**arguments)
        return layer
    if kind not in _kinds():
        raise KeyError(kind)
    made: nn.Module = importlib.import_module(f"edgekit.compress.modules.{kind}").make(**arguments)
    return made


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
