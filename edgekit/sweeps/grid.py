"""Grid: what is swept. Its file is a recipe whose four axes are lists."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgekit import files
from edgekit.errors import EdgekitError
from edgekit.find import unknown
from edgekit.recipe import Recipe, beside
from edgekit.targets import load

#: A field of a grid -> the field of a recipe that it gives.
AXES = {"models": "model", "precisions": "precision", "targets": "targets", "batches": "batch"}
#: Fields of a recipe that all cells share, or that an entry of ``models`` gives its own.
COMMON = tuple(name for name in Recipe.model_fields if name not in AXES.values())
#: Letters of a model's name that a cell's name has at most; file systems allow 255 in all.
_LETTERS = 80


class Cell(BaseModel):
    """One point of a grid: a model for one target, in one precision and batch.

    Attributes:
        name: unique in its grid; its files are called so.
        model, precision, target, batch: as the grid has them.
        recipe: what to build.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    model: str
    precision: str
    target: str
    batch: int | str
    recipe: Recipe


class Grid(BaseModel):
    """The axes, and what all cells have in common.

    Attributes:
        models: names as ``Recipe.model`` takes them; or fields of a recipe that belong to one
            model, such as ``{model: timm/NAME, checkpoint: F, name: ours}``, where ``name`` is
            what results call it.
        precisions, targets, batches: the other axes.
        common: the other fields of a recipe.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    models: tuple[str | dict[str, Any], ...] = Field(min_length=1)
    precisions: tuple[str, ...] = Field(default=("fp32",), min_length=1)
    targets: tuple[str, ...] = Field(min_length=1)
    batches: tuple[int | str, ...] = Field(default=(1,), min_length=1)
    common: dict[str, Any] = {}

    @classmethod
    def check(cls, fields: dict[str, Any], origin: str, folder: Path | None = None) -> Self:
        """A grid from plain values, its axes and the fields of a recipe side by side.

        Args:
            origin: what errors call it.
            folder: what paths are relative to; None is the current one.

        Raises:
            EdgekitError: an unknown or malformed field, named, or two models of one name.
        """
        folder = folder or Path()
        known = (*AXES, *COMMON)
        for name in fields:
            if name not in known:
                raise unknown(f"field of {origin}", str(name), known)
        axes = {
            name: fields[name] if isinstance(fields[name], list | tuple) else [fields[name]]
            for name in AXES
            if fields.get(name) is not None
        }
        common = {name: value for name, value in fields.items() if name not in AXES}
        models = [_entry(given, origin, folder) for given in axes.get("models", ())]
        try:
            grid = cls.model_validate({**axes, "models": models, "common": beside(common, folder)})
        except ValidationError as error:
            first = error.errors()[0]
            raise EdgekitError(
                f"{origin}: {first['loc'][0]} is not right.",
                f"{first['msg']}; it is {first['input']!r}.",
                "Give models and targets at least; see docs/sweep.md.",
            ) from error
        grid.cells()
        return grid

    @classmethod
    def read(cls, path: Path, overrides: dict[str, Any] | None = None) -> Self:
        """A grid file; its paths are relative to it. ``overrides`` replace its fields.

        Raises:
            EdgekitError: missing, not YAML, or malformed.
        """
        try:
            fields = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise EdgekitError(f"The grid {path} cannot be read.", str(error)) from error
        if not isinstance(fields, dict):
            raise EdgekitError(f"The grid {path} is not a list of 'name: value' lines.")
        grid = cls.check(fields, str(path), path.parent)
        if not overrides:
            return grid
        held = {**grid.model_dump(exclude={"common"}), **grid.common}
        return cls.check({**held, **overrides}, str(path))

    def cells(self) -> list[Cell]:
        """All cells: for each model each precision, for each of these each target and batch.

        Raises:
            EdgekitError: a recipe that is malformed, an unknown target, two models of one name.
        """
        for target in self.targets:
            load(target)
        entries = [_named(given) for given in self.models]
        names = [name for name, _ in entries]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise EdgekitError(
                f"Two models of the grid are called {twice[0]}.",
                "Results could not be told apart.",
                "Give each a name, as in {name: tuned, model: ..., checkpoint: ...}.",
            )
        axes = (dict.fromkeys(self.precisions), dict.fromkeys(self.targets))
        points = itertools.product(entries, *axes, dict.fromkeys(self.batches))
        return [self._cell(*entry, *point) for entry, *point in points]

    def _cell(
        self, name: str, own: dict[str, Any], precision: str, target: str, batch: int | str
    ) -> Cell:
        fields = {**self.common, **own}
        fields |= {"precision": precision, "targets": (target,), "batch": batch}
        return Cell(
            name=f"{_slug(name)}-{precision}-{target}-b{batch}",
            model=name,
            precision=precision,
            target=target,
            batch=batch,
            recipe=Recipe.check(fields, f"the grid's {name}"),
        )


def _entry(given: Any, origin: str, folder: Path) -> dict[str, Any]:
    """An entry of ``models`` as fields, with its name."""
    entry = dict(given) if isinstance(given, dict) else {"model": str(given)}
    known = ("name", "model", *COMMON)
    for field in entry:
        if field not in known:
            raise unknown(f"field of a model of {origin}", str(field), known)
    if "model" not in entry:
        raise EdgekitError(f"{origin}: a model has no 'model'.", f"It is {given!r}.")
    name = str(entry.pop("name", entry["model"]))
    return {"name": name, **beside(entry, folder)}


def _named(given: str | dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name of an entry of ``models``, and its fields of a recipe."""
    if isinstance(given, str):
        return given, {"model": given}
    own = {field: value for field, value in given.items() if field != "name"}
    return str(given.get("name", own.get("model"))), own


def _slug(name: str) -> str:
    """A file's name for a model's; one that had to be changed has a digest, to be unique."""
    plain = re.sub(r"[^A-Za-z0-9._]+", "_", name).strip("_.")
    if plain == name and len(plain) <= _LETTERS:
        return plain
    return f"{plain[-_LETTERS:].lstrip('_.')}-{files.digest(name)[:6]}"
