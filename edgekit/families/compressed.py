"""compressed: a folder that ``edgekit compress`` wrote, or the ``compressed`` folder of a bundle.

It holds ``compressed.json`` (the source, the passes, what they changed), ``model.safetensors`` and,
where the source was a folder, its configuration files in ``source/``. The module is made as the
source's family makes it, changed as described, and given its weights. No code comes from it.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import families, files
from edgekit.errors import EdgekitError
from edgekit.families import Options, probe
from edgekit.model import Input, Model

if TYPE_CHECKING:
    import torch

REQUIRES: dict[str, str] = {}
CONFIG, WEIGHTS, SOURCE = "compressed.json", "model.safetensors", "source"
SCHEMA_VERSION = 1


def load(name: str, options: Options) -> Model:
    """A compressed model, as its last pass left it.

    Args:
        name: the folder.

    Raises:
        EdgekitError: no such folder, one that is damaged, or options that its source has fixed.
    """
    folder = Path(name).expanduser()
    held = read(folder)
    given = [
        flag
        for flag, value in (
            ("--checkpoint", options.checkpoint),
            ("--random-weights", options.random_weights),
            ("--set", options.arguments),
            ("--mode stream", options.mode == "stream"),
        )
        if value
    ]
    if given:
        raise EdgekitError(
            f"compressed/{name} does not take {' or '.join(given)}.",
            "Its structure belongs to the weights and arguments that it was compressed with.",
            "Drop it, or compress the source again.",
        )
    original = load_source(folder, held["source"])
    return _filled(original, folder, held, options.inputs)


def read(folder: Path) -> dict[str, Any]:
    """What a compressed model's folder says of it.

    Raises:
        EdgekitError: it is no such folder, or was written by another version.
    """
    path = folder / CONFIG
    try:
        held: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version = held["schema_version"]
    except OSError as error:
        raise EdgekitError(
            f"{folder} is not a compressed model.",
            f"It has no readable {CONFIG}.",
            "Make one with `edgekit compress MODEL --pass NAME -o FOLDER`.",
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise EdgekitError(f"{path} is malformed.", str(error), "Copy it again.") from error
    if version != SCHEMA_VERSION:
        raise EdgekitError(
            f"{path} has schema {version}; this edgekit reads {SCHEMA_VERSION}.",
            "",
            "Compress again, or use the edgekit that it was made with.",
        )
    return held


def load_source(folder: Path, made_from: dict[str, Any]) -> Model:
    """The source of a compressed model, uncompressed and with random weights."""
    name = str(made_from["model"])
    family, _, rest = name.partition("/")
    if rest == SOURCE:
        name = f"{family}/{folder / SOURCE}"
    return families.load(
        name,
        Options(
            random_weights=True,
            arguments=made_from["arguments"],
            inputs=tuple(Input.parse(text) for text in made_from["inputs"]),
        ),
    )


def save(
    model: Model,
    original: torch.nn.Module,
    made_from: dict[str, Any],
    folder: Path,
    facts: dict[str, Any],
) -> None:
    """Write a compressed model to a folder that is not there yet.

    Args:
        original: the module as the source makes it.
        made_from: ``model``, ``arguments`` and ``inputs`` of the source, as in a recipe.
        facts: what else is to be known of it, as JSON values.

    Raises:
        EdgekitError: it holds a module that cannot be described.
    """
    from safetensors.torch import save_file

    from edgekit.compress import structure

    described = structure.describe(original, model.module)
    family, _, rest = str(made_from["model"]).partition("/")
    folder.mkdir(parents=True)
    if rest and Path(rest).expanduser().is_dir():
        _copy_configuration(Path(rest).expanduser(), folder / SOURCE)
        made_from = {**made_from, "model": f"{family}/{SOURCE}"}
    held = {
        "schema_version": SCHEMA_VERSION,
        "source": made_from,
        "named": model.source,
        "weights": model.weights,
        "inputs": [dataclasses.asdict(spec) for spec in model.inputs],
        "history": list(model.history),
        **facts,
        "structure": described,
    }
    state, alike = _distinct(structure.tensors(model.module))
    save_file(state, folder / WEIGHTS)
    held["alike"] = alike
    (folder / CONFIG).write_text(json.dumps(held, indent=1) + "\n", encoding="utf-8")


def _filled(
    original: Model, folder: Path, held: dict[str, Any], inputs: tuple[Input, ...]
) -> Model:
    from safetensors import SafetensorError
    from safetensors.torch import load as load_tensors

    from edgekit.compress import structure

    path = folder / WEIGHTS
    module = structure.restore(original.module, held["structure"])
    try:
        # Read, not mapped: a mapped file keeps its disk busy.
        state = load_tensors(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise EdgekitError(
            f"{path} is missing, truncated or no safetensors file.", str(error), "Copy it again."
        ) from error
    state |= {name: state[first] for name, first in held["alike"].items()}
    structure.load(module, state, str(path))
    recorded = tuple(Input.restore(fields) for fields in held["inputs"])
    model = dataclasses.replace(
        original,
        source=f"compressed/{folder}",
        weights=held["weights"],
        inputs=inputs or recorded,
        history=tuple(held["history"]),
    )
    probe.tensors(probe.run(model.module, model.inputs, model.source), model.source)
    return model


def _copy_configuration(source: Path, folder: Path) -> None:
    """A source's files without its weights."""
    for path in source.rglob("*.json"):
        if path.name.endswith(".index.json"):
            continue
        place = folder / path.relative_to(source)
        files.make_folder(place.parent)
        shutil.copy2(path, place)


def _distinct(
    state: dict[str, torch.Tensor],
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Each tensor once, and the names of tied ones: name -> the name that it is stored under."""
    first: dict[int, str] = {}
    kept: dict[str, torch.Tensor] = {}
    alike: dict[str, str] = {}
    for name, value in state.items():
        key = value.data_ptr() if value.numel() else id(value)
        known = first.setdefault(key, name)
        if known != name and state[known].shape == value.shape:
            alike[name] = known
        else:
            kept[name] = value.contiguous().clone()
    return kept, alike
