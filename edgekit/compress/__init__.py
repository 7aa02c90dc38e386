"""Compress: passes that make a model smaller or win its accuracy back, one file each.

A pass is a frozen dataclass whose fields are its options, and its file names it in ``PASS``:

>>> from edgekit.compress import apply                       # doctest: +SKIP
>>> from edgekit.compress.prune import Prune                 # doctest: +SKIP
>>> smaller = apply(Prune(ratio=0.5), model, context)        # doctest: +SKIP

``call(model, context)`` gives a new Model and leaves the old one as it is. ``requires(model,
context)``, where a pass has it, raises an EdgekitError before any work is done.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from edgekit.errors import EdgekitError

if TYPE_CHECKING:
    from edgekit.data import Dataset
    from edgekit.model import Model
    from edgekit.targets import Target


@runtime_checkable
class Pass(Protocol):
    """What every pass has."""

    def call(self, model: Model, context: Context) -> Model:
        """The model after the pass."""
        ...


@dataclass(frozen=True)
class Cost:
    """How long a call of a model takes.

    Attributes:
        milliseconds: of one call with the model's own batch.
        source: how it was found; begins with ``measured`` or ``predicted``.
    """

    milliseconds: float
    source: str


@dataclass(frozen=True)
class Context:
    """What a pass may need besides the model.

    Attributes:
        data: samples that importance and effects are measured on.
        training: samples that distillation learns from; None takes ``data``.
        teacher: the model before any pass; None is the model that the pass is given.
        target: the device that it is for.
        latency: what a call takes on the target.
        folder: where a pass keeps what it needs to go on after it was stopped; None keeps nothing.
        seed: of every random choice.
    """

    data: Dataset | None = None
    training: Dataset | None = None
    teacher: Model | None = None
    target: Target | None = None
    latency: Callable[[Model], Cost] | None = None
    folder: Path | None = None
    seed: int = 0

    def samples(self, purpose: str) -> Dataset:
        """``data``, which ``purpose`` is measured on.

        Raises:
            EdgekitError: there is none.
        """
        if self.data is None:
            raise EdgekitError(
                f"There is no data for {purpose}.",
                "It is measured on samples that the model is meant for.",
                "Pass --calibration DATA (a folder of images, .npz, ...).",
            )
        return self.data


def apply(step: Pass, model: Model, context: Context) -> Model:
    """One pass on a model; the result is in evaluation mode, and its history names the pass.

    Raises:
        EdgekitError: it cannot be done; the message names the pass and those before it.
    """
    try:
        requires = getattr(step, "requires", None)
        if requires is not None:
            requires(model, context)
        made = step.call(model, context)
    except EdgekitError as error:
        before = f"Before it: {', '.join(model.history)}." if model.history else ""
        why = " ".join(part for part in (error.why, before) if part)
        raise type(error)(f"{name_of(step)}: {error.what}", why, error.fix) from error
    made.module.eval()
    return dataclasses.replace(made, history=(*model.history, describe(step)))


def name_of(step: Pass) -> str:
    """The pass's name in recipes: its file's."""
    return type(step).__module__.rpartition(".")[2]


def entry_of(step: Pass) -> dict[str, dict[str, Any]]:
    """The pass as a recipe has it: its name, and the options that are not the usual ones."""
    options = {
        field.name: getattr(step, field.name)
        for field in dataclasses.fields(step)  # type: ignore[arg-type]
        if getattr(step, field.name) != field.default
    }
    return {name_of(step): {name: _plain(value) for name, value in options.items()}}


def describe(step: Pass) -> str:
    """The pass as ``--pass`` takes it."""
    ((name, options),) = entry_of(step).items()
    listed = ",".join(f"{option}={_shown(value)}" for option, value in options.items())
    return f"{name}:{listed}" if listed else name


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(_shown, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def parse(entry: str | Mapping[str, Any]) -> Pass:
    """A pass from a recipe (``{prune: {ratio: 0.5}}``) or a flag (``prune:ratio=0.5``).

    Raises:
        EdgekitError: unknown pass or option (the nearest are named), or a value of another kind.
    """
    name, options = options_of(entry)
    from pydantic import TypeAdapter, ValidationError

    from edgekit.find import find, unknown

    kind = find("passes", name).PASS
    fields = {field.name for field in dataclasses.fields(kind)}
    for option in options:
        if option not in fields:
            raise unknown(f"option of {name}", option, fields)
    try:
        made: Pass = TypeAdapter(kind).validate_python(options)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or name
        raise EdgekitError(
            f"{name}: {place} is not right.",
            f"{first['msg']}; it is {first['input']!r}.",
            f"`edgekit passes {name}` lists its options.",
        ) from error
    return made


def options_of(entry: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """A pass's name and options as they were given, unchecked.

    Raises:
        EdgekitError: it has neither of the forms that ``parse`` takes.
    """
    if isinstance(entry, str):
        name, _, rest = entry.partition(":")
        return name.strip(), dict(_options(rest))
    if len(entry) != 1:
        raise EdgekitError(
            f"{dict(entry)!r} is not a pass.", "", "Write one name a pass: {prune: {ratio: 0.5}}."
        )
    ((name, options),) = entry.items()
    if options is None:
        options = {}
    if not isinstance(options, Mapping):
        raise EdgekitError(
            f"The options of {name} are {options!r}.", "", "Write {prune: {ratio: 0.5}}."
        )
    return str(name), dict(options)


def _options(text: str) -> Iterator[tuple[str, Any]]:
    """``a=1,b=[x,y]`` as pairs, the values as YAML reads them."""
    import re

    for part in re.findall(r"(?:[^,\[\]]|\[[^\]]*\])+", text):
        name, equals, value = part.partition("=")
        if not equals:
            raise EdgekitError(
                f"{part!r} is not NAME=VALUE.", "", "Write --pass prune:ratio=0.5,round_to=8."
            )
        yield name.strip(), _value(value)


def _value(text: str) -> Any:
    """As YAML reads it; a glob that YAML takes for something else is text."""
    import yaml

    text = text.strip()
    if text.startswith("[") and text.endswith("]"):
        return [_value(item) for item in text[1:-1].split(",") if item.strip()]
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


@dataclass(frozen=True)
class Option:
    """A field of a pass: its name, what it takes, and its value if it is not given."""

    name: str
    kind: str
    usual: str


@dataclass(frozen=True)
class Entry:
    """A pass as the catalogue shows it."""

    name: str
    text: str
    options: tuple[Option, ...]


def catalogue(name: str | None = None) -> list[Entry]:
    """All passes, or the one of that name, with their options.

    Raises:
        EdgekitError: there is none of that name.
    """
    from edgekit.find import find, names

    found = []
    for each in names("passes") if name is None else [name]:
        kind = find("passes", each).PASS
        options = tuple(
            Option(field.name, str(field.type), _usual(field)) for field in dataclasses.fields(kind)
        )
        found.append(Entry(each, inspect.getdoc(kind) or "", options))
    return found


def _usual(field: dataclasses.Field[Any]) -> str:
    return "needed" if field.default is dataclasses.MISSING else str(field.default)
