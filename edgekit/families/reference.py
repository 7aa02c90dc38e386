"""reference: models of papers that no library has, written by us; by name, or a folder of ours.

A folder holds ``config.json`` (the model's name and arguments) and ``model.safetensors``, as
``save`` writes them. The models are in ``edgekit/families/references/``, one file each.
"""

from __future__ import annotations

import dataclasses
import json
import pkgutil
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from edgekit import checkpoint
from edgekit.errors import EdgekitError
from edgekit.families import Options, probe
from edgekit.find import unknown
from edgekit.model import Model

if TYPE_CHECKING:
    import torch

REQUIRES: dict[str, str] = {}
CONFIG, WEIGHTS = "config.json", "model.safetensors"


def load(name: str, options: Options) -> Model:
    """A reference model; ``--set`` changes the fields of its ``Config``.

    Args:
        name: of a file in ``edgekit/families/references/`` (``vision_mamba``), or a folder.

    Raises:
        EdgekitError: unknown model or argument (the known are named), an argument of another
            type, no weights, a checkpoint of another model, or a stream of one that cannot.
    """
    source, folder = f"reference/{name}", Path(name).expanduser()
    local = (folder / CONFIG).is_file()
    model_name, arguments = _saved(folder) if local else (name, {})
    model = make(model_name, {**arguments, **options.arguments})
    model = dataclasses.replace(model, source=source)
    path = options.checkpoint or (folder if local else None)
    if options.random_weights:
        weights = "random"
    elif path:
        state = checkpoint.load_state(path)
        checkpoint.apply(model.module, state, str(path), options.allow_partial)
        weights = "checkpoint"
    else:
        raise EdgekitError(
            f"{source} has no published weights.", "", "Pass --checkpoint FILE or --random-weights."
        )
    if options.mode == "stream":
        from edgekit.families.references import streaming

        model = streaming.attach(model)
    model = dataclasses.replace(model, weights=weights, inputs=options.inputs or model.inputs)
    probe.tensors(probe.run(model.module, model.inputs, source), source)
    return model


def make(name: str, arguments: Mapping[str, Any]) -> Model:
    """The untrained model of that name.

    Raises:
        EdgekitError: unknown model or argument, or an argument of another type.
    """
    known = _members()
    if name not in known:
        raise unknown("reference model", name, known)
    member = known[name]
    fields = {field.name: field.default for field in dataclasses.fields(member.Config)}
    for key in arguments:
        if key not in fields:
            raise unknown(f"argument of {name}", key, fields)
    checked = {key: _like(fields[key], value, name, key) for key, value in arguments.items()}
    model: Model = member.make(member.Config(**checked))
    return model


def save(name: str, arguments: Mapping[str, Any], module: torch.nn.Module, folder: Path) -> None:
    """Write what ``reference/FOLDER`` loads: the module's weights, and how it was made."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in module.state_dict().items()}, folder / WEIGHTS)
    text = json.dumps({"model": name, "arguments": dict(arguments)}, indent=2) + "\n"
    (folder / CONFIG).write_text(text, encoding="utf-8")


def _members() -> dict[str, ModuleType]:
    """The reference models by name; a file that has ``make`` is one."""
    from edgekit.families import references

    files = [file.name for file in pkgutil.iter_modules(references.__path__)]
    modules = {name: import_module(f"{references.__name__}.{name}") for name in files}
    return {name: module for name, module in modules.items() if hasattr(module, "make")}


def _saved(folder: Path) -> tuple[str, dict[str, Any]]:
    """(model, arguments) of a folder."""
    path = folder / CONFIG
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return str(found["model"]), dict(found["arguments"])
    except (ValueError, KeyError, TypeError) as error:
        raise EdgekitError(
            f"{path} does not name a reference model.",
            f"It should hold a JSON object with 'model' and 'arguments' ({error}).",
            "Save the model with edgekit.families.reference.save.",
        ) from error


def _like(default: Any, value: Any, name: str, key: str) -> Any:
    """The value, if it is of the default's kind; a list stands for a tuple."""
    if isinstance(default, tuple) and isinstance(value, list | tuple):
        return tuple(_like(default[0], item, name, key) for item in value)
    if isinstance(default, float) and type(value) is int:
        return float(value)
    if type(value) is not type(default):
        raise EdgekitError(
            f"--set {key}={value} does not suit {name}.",
            f"It is a {type(value).__name__}; {default!r} is the default.",
            "Give a value of the same kind.",
        )
    return value
