"""Session: a streaming artifact and what it has seen, step by step or many at a time.

    session = edgekit.Session("bundle")               # of a language model
    scores = session.prefill(prompt)                  # (tokens,) or (batch, tokens)
    scores = session.step(scores.argmax(-1))          # (batch,)

    session = edgekit.Session("keywords")             # of a model that takes frames
    scores = session.prefill(frames)                  # (frames, features) or (batch, frames, ...)
    scores = session.step(frame)                      # (features,) or (batch, features)

A token or a frame is one position of a sequence. Many are taken in pieces, so their number does
not show in the memory of a model whose states have fixed shapes. Prefill and steps together equal
one pass over the whole sequence.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from edgekit.bundle import MANIFEST, Bundle, Row
from edgekit.errors import EdgekitError
from edgekit.find import find
from edgekit.model import Dim, Input, State
from edgekit.targets.runtimes import Arrays, Runtime

Array = np.ndarray[Any, Any]
#: Positions in one call of a prefill; a longer prompt takes several.
PIECE = 256
_SEEN = "seen"


class Session:
    """One stream through an artifact. Use it in a ``with`` block, or close it."""

    def __init__(
        self,
        path: str | Path,
        target: str | None = None,
        threads: int | None = None,
        piece: int = PIECE,
    ) -> None:
        """Open a bundle made with ``--mode stream``, or one of its artifacts.

        Args:
            target: whose artifact in the bundle; None takes the first that runs here.
            threads: None takes all cores.
            piece: positions in one call of a prefill at most.

        Raises:
            EdgekitError: no such bundle or target, nothing that runs here, or an artifact that
                carries no state.
        """
        artifact, runtime = _artifact(Path(path), target)
        self._runtime: Runtime = find("runtimes", runtime).open(artifact, threads)
        self._start(str(artifact), piece)

    @classmethod
    def of(cls, runtime: Runtime, name: str, piece: int = PIECE) -> Self:
        """A session on an open artifact."""
        made = cls.__new__(cls)
        made._runtime = runtime
        made._start(name, piece)
        return made

    def _start(self, name: str, piece: int) -> None:
        self.name = name
        self.specs = self._runtime.states
        if not self.specs:
            raise EdgekitError(
                f"{name} carries no state from call to call.",
                "It takes whole sequences only.",
                "Build it with --mode stream.",
            )
        self._lengths = {spec.shape[1] for spec in self._runtime.inputs}
        self._piece = min([piece, *(d.most if isinstance(d, Dim) else d for d in self._lengths)])
        self._states: Arrays = {}
        self.seen = 0

    def prefill(self, tokens: Any) -> Any:
        """Take in a prompt, or more of it, and give the outputs at its last position.

        Args:
            tokens: (tokens,) or (batch, tokens); frames have their features behind. Or such
                arrays by input name.

        Returns:
            (batch, ...): an array, or arrays by name where the model has several outputs.

        Raises:
            EdgekitError: it is empty, of another batch than before, of frames of another size,
                longer than the caches, or no multiple of a length that the artifact is built for.
        """
        last: Arrays = {}
        for outputs in self.feed(tokens):
            last = outputs
        return _last(last)

    def feed(self, tokens: Any) -> Iterator[Arrays]:
        """As ``prefill``, giving the outputs at all positions, (batch, length, ...), by pieces."""
        inputs = self._inputs(tokens)
        length = next(iter(inputs.values())).shape[1]
        self._check_length(length)
        for start in range(0, length, self._piece):
            yield self._call({n: v[:, start : start + self._piece] for n, v in inputs.items()})

    def step(self, token: Any) -> Any:
        """Take in one token or frame of each sequence, and give the outputs at it, as ``prefill``.

        Args:
            token: a number, (batch,) or (batch, 1); a frame has its features behind. Or such
                arrays by input name.

        Raises:
            EdgekitError: nothing was prefilled, of tokens, another batch or size than before, a
                cache is full, or the artifact takes more than one at once.
        """
        frames = any(len(spec.shape) > 2 for spec in self._runtime.inputs)
        if not self._states and not frames:
            raise EdgekitError(
                f"{self.name}: a step was asked for before a prefill.",
                "There is no state that it could go on from.",
                "Call prefill with the prompt first, or load a state.",
            )
        self._check_length(1)
        given = token if isinstance(token, Mapping) else {self._only(): token}
        specs = {spec.name: spec for spec in self._runtime.inputs}
        columns = {name: self._column(specs[name], v) for name, v in given.items() if name in specs}
        return _last(self._call(self._inputs(columns)))

    def reset(self) -> None:
        """Forget all that was seen."""
        self._states, self.seen = {}, 0

    @property
    def batch(self) -> int:
        """Sequences in the stream; 0 before the first prefill."""
        return len(next(iter(self._states.values()))) if self._states else 0

    @property
    def state(self) -> Arrays:
        """What is carried to the next call, by name."""
        return dict(self._states)

    def save(self, path: str | Path) -> None:
        """Write the state to an ``.npz``; ``load`` goes on from it."""
        from edgekit import files

        with files.atomic(Path(path)) as room, room.open("wb") as stream:
            np.savez(stream, allow_pickle=False, **{**self._states, _SEEN: np.array(self.seen)})

    def load(self, path: str | Path) -> None:
        """Go on from a saved state.

        Raises:
            EdgekitError: the file cannot be read, or is of another model: the state that does not
                fit is named, with its shape and the one expected.
        """
        try:
            with np.load(path, allow_pickle=False) as found:
                states = {name: found[name] for name in found.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise EdgekitError(
                f"{path} cannot be read as a state.", str(error), "Give what Session.save wrote."
            ) from error
        seen = states.pop(_SEEN, None)
        names = {spec.name for spec in self.specs}
        if names != states.keys() or seen is None:
            raise EdgekitError(
                f"{path} holds no state of {self.name}.",
                f"It has {', '.join(states) or 'nothing'}; expected {', '.join(sorted(names))}.",
                "Give what Session.save wrote for the same model.",
            )
        for spec in self.specs:
            _check(spec, states[spec.name], str(path))
        self._states, self.seen = states, int(seen)

    def _inputs(self, tokens: Any) -> Arrays:
        """Arrays (batch, length, ...) by name, of one length."""
        given = tokens if isinstance(tokens, Mapping) else {self._only(): tokens}
        inputs = {}
        for spec in self._runtime.inputs:
            if spec.name not in given:
                raise EdgekitError(f"{self.name} takes {spec.name}, which was not given.")
            value = np.asarray(given[spec.name])
            value = value[None] if value.ndim == len(spec.shape) - 1 else value
            if not _fits(value.shape[2:], spec.shape[2:]) or value.ndim < 2 or value.size == 0:
                raise self._misshapen(spec, np.asarray(given[spec.name]), "length")
            inputs[spec.name] = value.astype(spec.dtype)
        batch = len(next(iter(inputs.values())))
        if self._states and batch != self.batch:
            raise EdgekitError(
                f"{self.name}: {batch} sequences were given to a stream of {self.batch}.",
                "Each goes on from a state of its own.",
                "Give as many as before, or call reset.",
            )
        return inputs

    def _column(self, spec: Input, value: Any) -> Array:
        """One position of each sequence, as a sequence of one: (batch, 1, ...)."""
        value, rest = np.asarray(value), spec.shape[2:]
        batch = self.batch or (value.shape[0] if value.ndim > len(rest) else 1)
        allowed = [(batch, *rest), (batch, 1, *rest)] + ([rest] if batch == 1 else [])
        if not any(_fits(value.shape, shape) for shape in allowed):
            raise self._misshapen(spec, value, "1")
        column: Array = value.reshape(batch, 1, *value.shape[value.ndim - len(rest) :])
        return column

    def _misshapen(self, spec: Input, value: Array, length: str) -> EdgekitError:
        batch = str(self.batch) if self.batch else "batch"
        expected = ", ".join((batch, length, *map(str, spec.shape[2:])))
        return EdgekitError(
            f"{self.name}: {spec.name} has the wrong shape.",
            f"Found {value.shape}; expected ({expected}), not empty.",
        )

    def _check_length(self, length: int) -> None:
        """Raise unless so many positions can be taken in calls that the artifact is built for."""
        fixed = [size for size in self._lengths if isinstance(size, int) and length % size]
        if fixed:
            raise EdgekitError(
                f"{self.name} cannot take a length of {length}.",
                f"It is built for calls of {fixed[0]}.",
                f"Give a multiple of {fixed[0]}, or build it for lengths that vary.",
            )

    def _only(self) -> str:
        names = [spec.name for spec in self._runtime.inputs]
        if len(names) != 1:
            raise EdgekitError(f"{self.name} takes {', '.join(names)}: give arrays by name.")
        return names[0]

    def _call(self, inputs: Arrays) -> Arrays:
        batch, length = next(iter(inputs.values())).shape[:2]
        self._room(length)
        states = self._states or {spec.name: spec.start(batch) for spec in self.specs}
        found = self._runtime.infer({**inputs, **states})
        self._states = {spec.name: found.pop(spec.output) for spec in self.specs}
        self.seen += length
        return found

    def _room(self, length: int) -> None:
        """Raise if a cache that grows would not hold so many tokens more."""
        for dim in (size for spec in self.specs for size in spec.shape if isinstance(size, Dim)):
            if dim.name == "past" and self.seen + length > dim.most:
                raise EdgekitError(
                    f"{self.name} cannot take {length} tokens more.",
                    f"It has seen {self.seen}, and its caches hold {dim.most}.",
                    "Call reset, or build it for a longer context.",
                )

    def close(self) -> None:
        """Free the artifact."""
        self._runtime.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _artifact(path: Path, target: str | None) -> tuple[Path, str]:
    """What a path and a target's name mean, and what runs it."""
    from edgekit.single import format_of, runtime_of

    if not (path / MANIFEST).exists():
        runtime: str | None = find("converters", format_of(path)).RUNTIME
        return path, _running(str(path), runtime)
    bundle = Bundle.open(path)
    rows = [row for row in bundle.manifest.rows if row.path and target in (None, row.target)]
    if not rows:
        known = ", ".join(bundle.manifest.targets)
        raise EdgekitError(f"{path} has nothing for {target}.", f"Its targets are {known}.")
    found = [(row, runtime_of(bundle, row)) for row in rows]
    here = [(row, r) for row, r in found if r and not find("runtimes", r).unavailable()]
    row, runtime = here[0] if here else found[0]
    return path / str(row.path), _running(_named(path, row), runtime)


def _running(name: str, runtime: str | None) -> str:
    absent = "on the device" if runtime is None else find("runtimes", runtime).unavailable()
    if runtime is None or absent:
        raise EdgekitError(f"{name} cannot run here.", f"It runs {absent}.")
    return runtime


def _named(path: Path, row: Row) -> str:
    return f"{row.path} of {path}"


def _check(spec: State, value: Array, where: str) -> None:
    """Raise unless a state has its shape and dtype."""
    if not _fits(value.shape, spec.shape) or str(value.dtype) != spec.dtype:
        expected = "x".join(str(size) for size in spec.shape)
        raise EdgekitError(
            f"{where}: the state {spec.name} does not fit.",
            f"Found {'x'.join(map(str, value.shape))} {value.dtype}; "
            f"expected {expected} {spec.dtype}.",
            "Give what Session.save wrote for the same model.",
        )


def _fits(found: tuple[int, ...], expected: tuple[int | Dim, ...]) -> bool:
    """Whether a shape is the one expected, where that does not vary."""
    return len(found) == len(expected) and all(
        isinstance(size, Dim) or size == n for n, size in zip(found, expected, strict=True)
    )


def _last(outputs: Arrays) -> Any:
    """Of each output the last position's; the array itself where there is one output."""
    last = {name: value[:, -1] for name, value in outputs.items()}
    return next(iter(last.values())) if len(last) == 1 else last
