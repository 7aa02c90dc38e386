"""The kit's files: read with checks, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Sequence

from .problem import Problem

if TYPE_CHECKING:
    from .engine import Arrays


def digest(paths: Sequence[Path]) -> str:
    """SHA-256 of the files' contents, one after the other."""
    sha = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                sha.update(block)
    return sha.hexdigest()


def write(path: Path, content: Any) -> None:
    """Write bytes, or an object as JSON; the file is complete or not there."""
    if isinstance(content, dict):
        content = (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    except OSError as error:
        raise Problem(f"{path} cannot be written.", str(error), "Free some disk space.") from error
    finally:
        if partial.exists():
            partial.unlink()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Problem(f"{path} cannot be read.", str(error), "Copy the whole kit again.") from error
    if not isinstance(content, dict):
        raise Problem(f"{path} is not a JSON object.", "", "Copy the whole kit again.")
    return content


def check_model(folder: Path, kit: dict[str, Any]) -> None:
    """Raise unless the model's files are those that the kit was made with."""
    files = [folder / name for name in kit["model"]["files"]]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise Problem(f"Missing: {', '.join(missing)}.", "", "Copy the whole kit again.")
    if digest(files) != kit["model"]["sha256"]:
        raise Problem(
            "The model is not the one this kit was made with.",
            f"The SHA-256 of {', '.join(kit['model']['files'])} differs from kit.json.",
            "Copy the whole kit again.",
        )


def load_reference(folder: Path, kit: dict[str, Any]) -> tuple[Arrays, Arrays]:
    """(inputs, expected outputs) by name, batch first; states have none."""
    import numpy as np

    path = folder / "reference.npz"
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (OSError, ValueError) as error:
        raise Problem(f"{path} cannot be read.", str(error), "Copy the whole kit again.") from error
    carried = {name for pair in kit["states"] for name in pair}
    inputs, outputs = (
        [spec["name"] for spec in kit[kind] if spec["name"] not in carried]
        for kind in ("inputs", "outputs")
    )
    wanted = [*(f"input/{name}" for name in inputs), *(f"output/{name}" for name in outputs)]
    missing = [key for key in wanted if key not in arrays]
    if missing:
        raise Problem(f"{path} lacks {', '.join(missing)}.", f"It has {', '.join(arrays)}.")
    expected = {name: arrays[f"output/{name}"] for name in outputs}
    return {name: arrays[f"input/{name}"] for name in inputs}, expected
