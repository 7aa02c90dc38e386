"""Subjects: the artifacts that a path holds, each with a runtime that can be timed here."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from edgekit.bundle import MANIFEST, Bundle, Row
from edgekit.errors import EdgekitError
from edgekit.find import find, names, unknown
from edgekit.latency.inputs import BUILT, Taken
from edgekit.model import Input
from edgekit.pipeline import SUFFIX, Plan, load
from edgekit.profiling import Profile, profile, profile_source
from edgekit.recipe import Recipe
from edgekit.single import format_of, load_reference, runtime_of
from edgekit.targets.runtimes import Runtime

if TYPE_CHECKING:
    from edgekit.model import Model
    from edgekit.targets.runtimes import Arrays

#: How the source of a bundle is run, beside the runtimes of artifacts.
SOURCES = ("torch", "torch.compile")


@dataclass(frozen=True)
class Candidate:
    """An artifact in a runtime.

    Attributes:
        artifact: as shown: its path in the bundle, or ``source``.
        target: whose artifact it is; None if it stands alone.
        absent: why it cannot be timed here, in a few words, or ``""``.
        path: None of a source.
        opens: gives a session with so many threads; None leaves them to the runtime.
        profiled: where one call spends its time; None where the runtime doesn't tell.
    """

    artifact: str
    target: str | None
    runtime: str
    absent: str
    path: Path | None
    opens: Callable[[int | None], Runtime]
    profiled: Callable[[Arrays, int | None], Profile | None]

    @property
    def on_host(self) -> bool:
        """Whether it computes on the CPU, with threads that can be chosen."""
        return self.runtime in SOURCES or bool(find("runtimes", self.runtime).THREADED)

    @property
    def module(self) -> ModuleType | None:
        """Of the runtime; None for a source."""
        return None if self.runtime in SOURCES else find("runtimes", self.runtime)

    def prepare(self) -> None:
        """Import what the runtime needs, so that it isn't counted as loading the artifact."""
        for name in getattr(self.module, "REQUIRES", ()):
            if importlib.util.find_spec(name) is not None:
                importlib.import_module(name)

    def taken(self) -> Taken:
        """What it takes in one call; opens it once."""
        with self.opens(1 if self.on_host else None) as session:
            batch, specs = session.batch, session.inputs
        strict = self.path is not None and self.path.suffix in BUILT
        return Taken(self.artifact, batch, specs or self._declared(), strict)

    def _declared(self) -> tuple[Input, ...]:
        """Inputs of a file whose runtime doesn't give them."""
        if self.path is None:
            return ()
        if self.path.suffix == SUFFIX:
            return tuple(Input.restore(spec) for spec in Plan.read(self.path).inputs)
        if self.path.suffix != ".onnx":
            return ()
        with find("runtimes", "onnxruntime").open(self.path, 1) as session:
            declared: tuple[Input, ...] = session.inputs
            return declared


class Subject:
    """What was named: a bundle or an artifact.

    Args:
        path: of it.
        reference: whose inputs to use; a bundle has its own.
        target: only this target's artifacts, of a bundle.
    """

    def __init__(
        self, path: Path, reference: Path | None = None, target: str | None = None
    ) -> None:
        self.path, self.target = path, target
        self.bundle = Bundle.open(path) if (path / MANIFEST).exists() else None
        if self.bundle is None and target is not None:
            raise EdgekitError(f"{path} is no bundle, so it has no target {target}.")
        if self.bundle is not None:
            known = dict.fromkeys(row.target for row in self.bundle.manifest.rows)
            if target is not None and target not in known:
                raise unknown(f"target of {path}", target, known)
        self.reference = path / "reference.npz" if self.bundle else reference

    @cached_property
    def base(self) -> Arrays | None:
        """The reference's inputs, or None where there is none."""
        return None if self.reference is None else load_reference(self.reference)[0]

    def candidates(self, runtimes: tuple[str, ...]) -> list[Candidate]:
        """Every artifact in its own runtime, or in each of those that were asked for.

        Raises:
            EdgekitError: there is no such runtime, or it can run nothing of the subject.
        """
        for name in runtimes:
            if name not in (*names("runtimes"), *SOURCES):
                raise unknown("runtime", name, [*names("runtimes"), *SOURCES])
        if not runtimes:
            return [self._own(*each) for each in self._files()]
        found: list[Candidate] = []
        for name in runtimes:
            made = [self._source(name)] if name in SOURCES else list(self._in(name))
            if not made:
                shown = ", ".join(str(path.name) for path, *_ in self._files())
                raise EdgekitError(
                    f"{name} runs nothing of {self.path}.",
                    f"It opens {', '.join(find('runtimes', name).OPENS)}; there is {shown}.",
                )
            found += made
        return found

    def _files(self) -> list[tuple[Path, str, str | None, str | None]]:
        """Path, name, target and runtime of each artifact."""
        if self.bundle is None:
            runtime = find("converters", format_of(self.path)).RUNTIME
            return [(self.path, self.path.name, None, runtime)]
        return [
            (self.path / str(row.path), str(row.path), row.target, runtime_of(self.bundle, row))
            for row in self._rows()
        ]

    def _rows(self) -> list[Row]:
        rows = [] if self.bundle is None else self.bundle.manifest.rows
        return [row for row in rows if row.path and self.target in (None, row.target)]

    def _own(self, path: Path, name: str, target: str | None, runtime: str | None) -> Candidate:
        absent = "on the device" if runtime is None else find("runtimes", runtime).untimed()
        used = runtime or "tensorrt"
        return Candidate(
            artifact=name,
            target=target,
            runtime=used,
            absent=absent,
            path=path,
            opens=lambda threads: load(used, path, threads),
            profiled=lambda inputs, threads: profile(path, used, inputs, threads),
        )

    def _in(self, runtime: str) -> list[Candidate]:
        """The artifacts that a runtime opens."""
        module, found = find("runtimes", runtime), []
        for path, name, target, _ in self._files():
            suffix = Path(path.stem).suffix if path.suffix == SUFFIX else path.suffix
            if suffix in module.OPENS:
                found.append(self._own(path, name, target, runtime))
        return found

    def _source(self, runtime: str) -> Candidate:
        """The model that a bundle was made of.

        Raises:
            EdgekitError: there is no bundle, or its source takes other calls or isn't there.
        """
        if self.bundle is None:
            raise EdgekitError(
                f"{self.path} cannot be run in {runtime}.",
                "It is not known from which model it was made.",
                "Give the bundle that it came in.",
            )
        recipe = self.bundle.manifest.recipe
        if recipe["mode"] == "stream":
            raise EdgekitError(
                f"{self.path} cannot be compared with its source in {runtime}.",
                "A stream's calls have no counterpart in the source, which takes whole sequences.",
            )
        source = _Source(recipe)
        return Candidate(
            artifact="source",
            target=None,
            runtime=runtime,
            absent="",
            path=None,
            opens=lambda threads: SourceSession(source.model, runtime, threads),
            profiled=lambda inputs, threads: source.profiled(runtime, inputs, threads),
        )


class _Source:
    """A bundle's source, loaded when it is first needed."""

    def __init__(self, recipe: dict[str, Any]) -> None:
        self._recipe = recipe

    @cached_property
    def model(self) -> Model:
        from edgekit.source import load_model

        return load_model(Recipe.model_validate(self._recipe))

    def profiled(self, runtime: str, inputs: Arrays, threads: int | None) -> Profile | None:
        return profile_source(self.model, inputs, threads or 1) if runtime == "torch" else None


class SourceSession(Runtime):
    """The source module, eager or compiled, with a number of threads."""

    def __init__(self, model: Model, runtime: str, threads: int | None) -> None:
        from edgekit.targets.runtimes.torch import Compiled, Eager, torch_threads

        self.model = model
        self._session = (Compiled if runtime == "torch.compile" else Eager)(model)
        self._threads = torch_threads(threads or 1)
        self._threads.__enter__()

    def close(self) -> None:
        """Give PyTorch its threads back."""
        self._threads.__exit__(None, None, None)

    @property
    def batch(self) -> int | None:
        """Samples that one call takes; None if any number."""
        first = self.model.inputs[0].shape[0]
        return first if isinstance(first, int) else None

    @property
    def inputs(self) -> tuple[Input, ...]:
        """What the model takes."""
        return self.model.inputs

    def infer(self, inputs: Arrays) -> Arrays:
        """Outputs by name for inputs by name, batch first."""
        return self._session.infer(inputs)
