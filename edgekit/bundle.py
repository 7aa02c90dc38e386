"""Bundle: the folder the user ships, and Draft: the same folder while it is being built.

A draft is a hidden sibling that becomes the bundle by one rename. Each finished step is
recorded in it with a key, the digest of all that the step depends on: a build that was killed
goes on at its first unfinished step, and a changed build takes over from the old bundle every
step whose key is unchanged.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError

from edgekit import files, interrupt
from edgekit.errors import EdgekitError

MANIFEST = "manifest.json"
_STEPS = ".steps.json"
_LOCK = ".lock"


class Step(BaseModel):
    """A finished piece of work: what it depended on, wrote and found."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    files: dict[str, str]
    result: dict[str, Any]


class Row(BaseModel):
    """One artifact for one target, as the summary table shows it.

    Attributes:
        status: ``verified``, ``built, not run: ...``, ``drift: ...`` or ``failed: ...``.
        size: bytes.
        drift: the figures of ``edgekit.drift.Drift``, or None where nothing ran.
        top1: share of correct labels, or None without labels.
        latency: one entry a way of running it; see ``edgekit.latency``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: str
    format: str
    path: str | None
    sha256: str | None
    size: int | None
    status: str
    ok: bool
    details: dict[str, Any] = {}
    drift: dict[str, Any] | None = None
    top1: float | None = None
    latency: list[dict[str, Any]] = []


class Manifest(BaseModel):
    """What a bundle is, how it was made, and its proof."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    status: Literal["ok", "failed"]
    request: str
    created: str
    recipe: dict[str, Any]
    model: dict[str, Any]
    data: dict[str, Any]
    targets: dict[str, dict[str, Any]]
    versions: dict[str, str]
    environment: dict[str, Any]
    baseline: list[dict[str, Any]]
    rows: list[Row]
    steps: dict[str, Step]


class Bundle:
    """A finished bundle on disk."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path, self.manifest = path, manifest

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read a bundle's manifest.

        Raises:
            EdgekitError: there is no bundle at ``path``, or its manifest is malformed.
        """
        try:
            text = (path / MANIFEST).read_text(encoding="utf-8")
            return cls(path, Manifest.model_validate_json(text))
        except OSError as error:
            raise EdgekitError(
                f"{path} is not a bundle.",
                f"It has no readable {MANIFEST}.",
                "Make one with `edgekit build MODEL --target T -o BUNDLE`.",
            ) from error
        except ValidationError as error:
            raise EdgekitError(f"{path / MANIFEST} is malformed.", str(error)) from error

    def damaged(self) -> list[str]:
        """Files, and folders that are artifacts, missing or no longer what was built."""
        built = {n: sha for step in self.manifest.steps.values() for n, sha in step.files.items()}
        return [name for name, sha256 in built.items() if not _same(self.path / name, sha256)]

    def with_row(self, row: Row) -> Self:
        """The bundle, on disk too, with a row in place of that of the same artifact."""
        rows = [row if r.path == row.path else r for r in self.manifest.rows]
        status = "ok" if all(r.ok for r in rows) else "failed"
        manifest = self.manifest.model_copy(update={"rows": rows, "status": status})
        files.write_text(self.path / MANIFEST, manifest.model_dump_json(indent=1))
        return type(self)(self.path, manifest)


class Draft:
    """A bundle in the making. Use it in a ``with`` block; one process at a time.

    Args:
        like: other bundles, whose finished steps are taken over as those of an older one are.
    """

    def __init__(self, out: Path, like: Iterable[Path] = ()) -> None:
        self.out, self._like = out, like
        self.path = out.parent / f".{out.name}.building"
        self._done: dict[str, Step] = {}
        self._older: list[Bundle] = []

    def __enter__(self) -> Self:
        out = self.out
        occupied = out.exists() and (not out.is_dir() or any(out.iterdir()))
        if occupied and not (self.out / MANIFEST).exists():
            raise EdgekitError(
                f"{self.out} exists and is not a bundle.",
                "edgekit does not overwrite what it did not make.",
                "Choose another --output, or remove it.",
            )
        made = (path for path in (self.out, *self._like) if (path / MANIFEST).exists())
        self._older = [Bundle.open(path) for path in made]
        self._made = files.make_folder(self.path)
        self._lock = FileLock(self.path / _LOCK)
        try:
            self._lock.acquire(blocking=False)
        except Timeout as error:
            raise EdgekitError(f"{self.out} is being built by another process.") from error
        if (self.path / _STEPS).exists():
            saved = json.loads((self.path / _STEPS).read_text(encoding="utf-8"))
            self._done = {name: Step.model_validate(step) for name, step in saved.items()}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lock.release()
        if not self._done or isinstance(error, EdgekitError):
            shutil.rmtree(self.path, ignore_errors=True)
            files.remove_empty(self._made[1:])

    def step(
        self,
        name: str,
        inputs: Mapping[str, Any],
        run: Callable[[Path], dict[str, Any]],
        produces: str | None = None,
    ) -> Step:
        """Do a step, or take it as done if its inputs are those of a finished one.

        Args:
            name: unique in the bundle.
            inputs: everything that the result depends on, as JSON values.
            run: does the work, writing to the path it is given; returns facts as JSON values.
            produces: the file or folder that ``run`` writes, relative to the bundle.
        """
        interrupt.check()
        key = files.digest(inputs)
        if self._reuse(name, key):
            return self._done[name]
        if produces is None:
            step = Step(key=key, files={}, result=run(self.path))
        else:
            folder = Path(produces).parent
            with files.atomic(self.path / produces) as room:
                result = run(room)
                written = [folder / entry.name for entry in room.parent.iterdir()]
            hashes = {path.as_posix(): files.sha256(self.path / path) for path in written}
            step = Step(key=key, files=hashes, result=result)
        self._record(name, step)
        return step

    def _reuse(self, name: str, key: str) -> bool:
        here = self._done.get(name)
        if here is not None and here.key == key and _intact(self.path, here):
            return True
        return any(self._taken(older, name, key) for older in self._older)

    def _taken(self, older: Bundle, name: str, key: str) -> bool:
        """Take a finished step over from an older bundle, if it has it."""
        there = older.manifest.steps.get(name)
        if there is None or there.key != key or not _intact(older.path, there):
            return False
        for produced in there.files:
            source = older.path / produced
            with files.atomic(self.path / produced) as room:
                (shutil.copytree if source.is_dir() else shutil.copy2)(source, room)
        self._record(name, there)
        return True

    def _record(self, name: str, step: Step) -> None:
        self._done[name] = step
        steps = {name: step.model_dump() for name, step in self._done.items()}
        files.write_text(self.path / _STEPS, json.dumps(steps))

    def finish(self, manifest: Manifest, used: set[str]) -> Bundle:
        """Become the bundle: what no used step wrote is left out."""
        for name in set(self._done) - used:
            for produced in self._done.pop(name).files:
                if not any(produced in step.files for step in self._done.values()):
                    _remove(self.path / produced)
        manifest = manifest.model_copy(update={"steps": dict(self._done)})
        files.write_text(self.path / MANIFEST, manifest.model_dump_json(indent=1))
        for leftover in (_STEPS, _LOCK):
            (self.path / leftover).unlink(missing_ok=True)
        old = self.out.with_name(f".{self.out.name}.old")
        if self.out.exists():
            files.replace(self.out, old)
        files.replace(self.path, self.out)
        shutil.rmtree(old, ignore_errors=True)
        return Bundle(self.out, manifest)


def _same(path: Path, sha256: str) -> bool:
    return path.exists() and files.sha256(path) == sha256


def _intact(root: Path, step: Step) -> bool:
    return all(_same(root / name, sha256) for name, sha256 in step.files.items())


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    if path.parent.exists() and not any(path.parent.iterdir()):
        path.parent.rmdir()
