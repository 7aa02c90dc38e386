"""Your own code: ``package.module:factory``, called with the arguments of ``--set``.

The factory returns a ``torch.nn.Module``, or an ``edgekit.model.Model`` that states all by
itself. A module's inputs are given by ``--input NAME:1x3x224x224[:dtype]``, or by its attribute
``example_inputs``: a dict from the name of a parameter of ``forward`` to a tensor, batch first.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from edgekit import checkpoint
from edgekit.errors import EdgekitError
from edgekit.families import Options, probe
from edgekit.model import Input, Model

if TYPE_CHECKING:
    import torch

#: A factory needs what its own module imports.
REQUIRES: dict[str, str] = {}


def load(name: str, options: Options) -> Model:
    """The model that a factory makes.

    Args:
        name: ``package.module:factory``; the current folder is searched first.

    Raises:
        EdgekitError: no such module or factory, the user's code raised (the message says what
            and where), it returned something else, or its inputs are unknown.
    """
    made = _call(name, options.arguments)
    model = _model(made, name, options)
    if options.checkpoint:
        state = checkpoint.load_state(options.checkpoint)
        checkpoint.apply(model.module, state, str(options.checkpoint), options.allow_partial)
        model = dataclasses.replace(model, weights="checkpoint")
    elif options.random_weights:
        model = dataclasses.replace(model, weights="random")
    return model


def _call(name: str, arguments: Mapping[str, Any]) -> Any:
    factory = find_code(name, "a function or class that returns a torch.nn.Module")
    try:
        return factory(**arguments)
    except Exception as error:
        called = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        raise probe.failed(
            f"{name}({called}) failed.", error, "Correct it, or its --set arguments."
        ) from error


def code_file(name: str) -> Path | None:
    """The file that defines the factory's module; None if there is none (``load`` says why)."""
    if _is_file(name):
        return Path(name.rpartition(":")[0])
    _see_current_folder()
    try:
        spec = importlib.util.find_spec(name.partition(":")[0])
    except ImportError:
        return None
    return Path(spec.origin) if spec and spec.origin else None


def _see_current_folder() -> None:
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    importlib.invalidate_caches()


def find_code(name: str, wanted: str) -> Any:
    """The user's own function or class, by its place in their code.

    Args:
        name: ``package.module:name``, where the current folder is searched first, or
            ``file.py:name``.
        wanted: what it should be, for the error if it is none.

    Raises:
        EdgekitError: no such module or name, its code raised, or it cannot be called.
    """
    place, _, attribute = name.rpartition(":")
    _see_current_folder()
    try:
        module = _run_file(Path(place)) if _is_file(name) else importlib.import_module(place)
    except Exception as error:
        raise probe.failed(
            f"{place} cannot be imported for {name}.",
            error,
            "Run edgekit in the folder that holds it, or install it.",
        ) from error
    try:
        found: Any = functools.reduce(getattr, attribute.split("."), module)
    except AttributeError as error:
        public = ", ".join(n for n in vars(module) if not n.startswith("_"))
        raise EdgekitError(
            f"{place} has no {attribute!r}.",
            f"{module.__file__} defines: {public or 'nothing'}.",
            f"Write {place}:NAME.",
        ) from error
    if not callable(found):
        raise EdgekitError(
            f"{name} is a {type(found).__name__}, which cannot be called.", "", f"Name {wanted}."
        )
    return found


def _is_file(name: str) -> bool:
    return name.rpartition(":")[0].endswith(".py")


def _run_file(path: Path) -> ModuleType:
    """The module that a file defines, under a name that hides no other module."""
    name = f"edgekit_own_code.{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if spec is None or spec.loader is None:
        raise FileNotFoundError(path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _model(made: Any, name: str, options: Options) -> Model:
    import torch

    if isinstance(made, Model):
        model = dataclasses.replace(made, source=name, inputs=options.inputs or made.inputs)
        probe.tensors(probe.run(model.module, model.inputs, name), name)
        return model
    if not isinstance(made, torch.nn.Module):
        raise EdgekitError(
            f"{name} returned a {type(made).__name__}.",
            "",
            "Return a torch.nn.Module or an edgekit.model.Model.",
        )
    inputs = options.inputs or _examples(made, name)
    count = len(probe.tensors(probe.run(made, inputs, name), name))
    outputs = ("output",) if count == 1 else tuple(f"output_{i}" for i in range(count))
    return Model(made.eval(), inputs, outputs, name)


def _examples(module: torch.nn.Module, name: str) -> tuple[Input, ...]:
    import torch

    examples = getattr(module, "example_inputs", None)
    if not isinstance(examples, Mapping) or not examples:
        raise EdgekitError(
            f"The inputs of {name} are not known.",
            "A module does not tell their shapes.",
            "Pass --input NAME:1x3x224x224[:dtype], or give the module the attribute "
            "example_inputs = {'NAME': tensor}.",
        )
    for key, value in examples.items():
        if not isinstance(value, torch.Tensor) or value.ndim == 0:
            raise EdgekitError(
                f"example_inputs[{key!r}] of {name} is not a tensor with a batch.",
                f"Found {type(value).__name__}.",
                "Give a tensor, batch first.",
            )
    return tuple(
        Input(key, tuple(value.shape), str(value.dtype).removeprefix("torch."))
        for key, value in examples.items()
    )
