"""diffusers: a folder with one of its transformers, or a pipeline's with ``transformer/`` in it.

A folder holds ``config.json``, whose ``_class_name`` is the class, and weights (safetensors,
sharded or not). Nothing is downloaded, and the class is diffusers' own: no code of a folder runs.
"""

from __future__ import annotations

import inspect
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
from edgekit.model import Input, Model

if TYPE_CHECKING:
    import torch

REQUIRES = {"diffusers": "diffusers"}
CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
#: The folder of a pipeline that holds its transformer.
PART = "transformer"


def load(name: str, options: Options) -> Model:
    """A transformer of diffusers in float32, whatever its checkpoint's dtype.

    Its inputs are called as in diffusers, batch first, and their sizes follow from the
    configuration and from the sizes of a call (``height``, ``text_tokens``...), which stay fixed.
    ``--set`` changes both; ``--input`` replaces an input of that name, or adds one that
    ``forward`` may take.

    Raises:
        EdgekitError: no such folder, a class or argument that is not known (the known are named),
            no weights, a checkpoint of another model, or an input that the class does not take.
    """
    source, folder = f"diffusers/{name}", _folder(name)
    config = _read(folder)
    kind = _kind(config, source)
    fields, sizes = _settings(kind, config, options.arguments, source)
    own = _make(kind, fields, source)
    weights = _fill(own, folder, options, source)
    module = kind.Call(own, sizes).eval()
    inputs = _inputs(module, kind.inputs(own.config, sizes), options.inputs, source)
    probe.tensors(probe.run(module, inputs, source), source)
    exported = getattr(kind, "Exported", None)
    traced = exported(own, sizes).eval() if exported else None
    streams = getattr(kind, "STREAMS", ())
    return Model(module, inputs, kind.OUTPUTS, source, weights, traced=traced, streams=streams)


def _folder(name: str) -> Path:
    """The folder with the transformer's configuration."""
    path = Path(name).expanduser()
    for folder in (path, path / PART):
        if (folder / CONFIG).is_file():
            return folder
    raise EdgekitError(
        f"diffusers/{name} is not a transformer's folder.",
        f"Neither {path / CONFIG} nor {path / PART / CONFIG} exists.",
        "Save the model with model.save_pretrained(FOLDER), or give a downloaded pipeline.",
    )


def _read(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise EdgekitError(
            f"{path} is not a configuration.", f"It should hold a JSON object ({error})."
        ) from error


def _kind(config: Mapping[str, Any], source: str) -> ModuleType:
    """The file of ``families/diffusion`` for the class that a configuration names."""
    from edgekit.families import diffusion

    files = [file.name for file in pkgutil.iter_modules(diffusion.__path__)]
    modules = [import_module(f"{diffusion.__name__}.{name}") for name in files]
    known = {module.CLASS: module for module in modules if hasattr(module, "CLASS")}
    name = config.get("_class_name")
    if name not in known:
        error = unknown("transformer of diffusers", str(name), known)
        raise EdgekitError(f"{source}: {error.what}", error.why, error.fix)
    return known[str(name)]


def _settings(
    kind: ModuleType, config: Mapping[str, Any], arguments: Mapping[str, Any], source: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the class is made with, and the sizes of a call.

    Raises:
        EdgekitError: an argument that is neither.
    """
    import diffusers

    parameters = inspect.signature(getattr(diffusers, kind.CLASS).__init__).parameters
    defaults = {name: p.default for name, p in parameters.items() if name != "self"}
    fields = {k: v for k, v in {**config, **arguments}.items() if k in defaults}
    sizes = kind.sizes({**defaults, **fields})
    for name in arguments:
        if name not in defaults and name not in sizes:
            raise unknown(f"argument of {source}", name, [*defaults, *sizes])
    return fields, {name: arguments.get(name, usual) for name, usual in sizes.items()}


def _make(kind: ModuleType, fields: Mapping[str, Any], source: str) -> Any:
    import diffusers

    try:
        return getattr(diffusers, kind.CLASS)(**fields).float().eval()
    except Exception as error:
        raise probe.failed(
            f"{source} cannot be made.", error, f"Check {CONFIG} and the --set arguments."
        ) from error


def _fill(own: torch.nn.Module, folder: Path, options: Options, source: str) -> str:
    """Load the weights, if any are wanted; where they came from."""
    if options.random_weights:
        return "random"
    path = options.checkpoint or _weights(folder, source)
    checkpoint.apply(own, checkpoint.load_state(path), str(path), options.allow_partial)
    return "checkpoint"


def _weights(folder: Path, source: str) -> Path:
    for name in (f"{WEIGHTS}.index.json", WEIGHTS):
        if (folder / name).is_file():
            return folder / name
    raise EdgekitError(
        f"{source} has no weights.",
        f"Neither {WEIGHTS} nor its index is in {folder}.",
        "Pass --checkpoint FILE, or --random-weights.",
    )


def _inputs(
    module: torch.nn.Module, usual: tuple[Input, ...], given: tuple[Input, ...], source: str
) -> tuple[Input, ...]:
    """The usual inputs, and those given in their place or beside them, in ``forward``'s order."""
    names = list(inspect.signature(module.forward).parameters)
    for spec in given:
        if spec.name not in names:
            raise unknown(f"input of {source}", spec.name, names)
    found = {spec.name: spec for spec in (*usual, *given)}
    return tuple(found[name] for name in names if name in found)
