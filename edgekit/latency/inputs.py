"""Inputs: what the measured calls are given, in the sizes that were asked for.

They are the reference's own samples; where a call is larger than these, they are repeated along
the axis. So token numbers stay in the vocabulary and images stay images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.errors import EdgekitError
from edgekit.latency.plan import parse_shapes
from edgekit.latency.settings import batch_of
from edgekit.model import Dim, Input

if TYPE_CHECKING:
    from edgekit.targets.runtimes import Arrays

#: Files whose ranges of sizes are fixed when they are built.
BUILT = (".plan", ".mlpackage")
#: Different calls that single-stream mode goes through at most.
VARIED = 16


@dataclass(frozen=True)
class Point:
    """One combination of sizes.

    Attributes:
        calls: inputs by name of several calls; all have the same sizes.
    """

    calls: tuple[Arrays, ...]

    @property
    def batch(self) -> int:
        """Samples in one call."""
        return batch_of(self.calls[0])

    @property
    def shapes(self) -> dict[str, list[int]]:
        """By input."""
        return {name: list(value.shape) for name, value in self.calls[0].items()}


@dataclass(frozen=True)
class Taken:
    """What an artifact takes.

    Attributes:
        name: of the artifact, for errors.
        batch: samples in one call; None if any number.
        specs: its declared inputs; none if it doesn't say.
        strict: whether calls beyond the declared ranges are refused.
    """

    name: str
    batch: int | None
    specs: tuple[Input, ...]
    strict: bool

    def random(self) -> Arrays:
        """Seeded random numbers of the usual sizes, one sample.

        Raises:
            EdgekitError: the inputs are not known.
        """
        if not self.specs:
            raise EdgekitError(
                f"There are no inputs for {self.name}.", "", "Pass --reference reference.npz."
            )
        generator = np.random.default_rng(0)
        drawn: Arrays = {}
        for spec in self.specs:
            shape = tuple(
                (size.usual if size.most < 2**31 else 1) if isinstance(size, Dim) else size
                for size in spec.shape
            )
            drawn[spec.name] = (
                generator.standard_normal(shape).astype(spec.dtype)
                if spec.dtype.startswith("float")
                else np.zeros(shape, dtype=spec.dtype)
            )
        return drawn

    def sized(self, base: Arrays, batches: Sequence[int], shapes: Sequence[str]) -> list[Point]:
        """A point for each batch or shape that was asked for.

        Raises:
            EdgekitError: the artifact doesn't take such calls.
        """
        if shapes:
            return [self._shaped(base, text) for text in shapes]
        wanted = batches or (self.batch or 1,)
        for batch in wanted:
            self._check_batch(batch)
        return [self._point(base, {}, batch) for batch in wanted]

    def _shaped(self, base: Arrays, text: str) -> Point:
        asked = parse_shapes(text)
        for name, shape in asked.items():
            if name not in base:
                raise EdgekitError(
                    f"--shape {text!r}: {self.name} has no input {name!r}.",
                    f"It takes {', '.join(base)}.",
                )
            self._check_shape(name, shape, base[name].shape)
        batches = {shape[0] for shape in asked.values()}
        if len(batches) > 1:
            raise EdgekitError(f"--shape {text!r} has several batches: {sorted(batches)}.")
        (batch,) = batches
        self._check_batch(batch)
        return self._point(base, {**self._following(asked, text), **asked}, batch)

    def _check_batch(self, batch: int) -> None:
        if self.batch is not None and batch != self.batch:
            raise EdgekitError(
                f"{self.name} takes {_samples(self.batch)} a call, not {batch}.",
                "It was made for a fixed batch.",
                "Make it with --batch dynamic, or drop --batch.",
            )
        first = self.specs[0].shape[0] if self.specs else None
        if self.strict and isinstance(first, Dim) and not first.least <= batch <= first.most:
            raise EdgekitError(
                f"{self.name} takes {first.least} to {first.most} samples a call, not {batch}.",
                "It was built for that range.",
            )

    def _check_shape(self, name: str, shape: tuple[int, ...], found: tuple[int, ...]) -> None:
        """Raise unless an input may have the shape."""
        declared: Mapping[str, tuple[int | Dim, ...]] = {s.name: s.shape for s in self.specs}
        sizes = declared.get(name, (Dim("batch", 1, 1, 2**31), *found[1:]))
        text = "x".join(str(size) for size in shape)
        if len(shape) != len(sizes):
            known = "x".join(s.name if isinstance(s, Dim) else str(s) for s in sizes)
            raise EdgekitError(
                f"{self.name} cannot take {name} as {text}.", f"It has {len(sizes)} sizes: {known}."
            )
        for axis, (size, wanted) in enumerate(zip(sizes, shape, strict=True)):
            if isinstance(size, int) and size != wanted:
                raise EdgekitError(
                    f"{self.name} cannot take {name} as {text}.",
                    f"Its size on axis {axis} is fixed: {size}.",
                    "Make it with a size that varies there: --input NAME:1x1..128..512.",
                )
            if self.strict and isinstance(size, Dim) and not size.least <= wanted <= size.most:
                raise EdgekitError(
                    f"{self.name} cannot take {name} as {text}.",
                    f"It was built for {size.least} to {size.most} on axis {axis}.",
                )

    def _following(
        self, asked: Mapping[str, tuple[int, ...]], text: str
    ) -> dict[str, tuple[int | None, ...]]:
        """Shapes of the other inputs, by the sizes that they share; None keeps a size."""
        known: dict[str, int] = {}
        for spec in self.specs:
            for size, wanted in zip(spec.shape, asked.get(spec.name, ()), strict=False):
                if isinstance(size, Dim) and known.setdefault(size.name, wanted) != wanted:
                    raise EdgekitError(
                        f"--shape {text!r} gives {size.name} two sizes: "
                        f"{known[size.name]} and {wanted}."
                    )
        return {
            spec.name: tuple(known.get(s.name) if isinstance(s, Dim) else s for s in spec.shape)
            for spec in self.specs
            if spec.name not in asked
        }

    def _point(
        self, base: Arrays, shapes: Mapping[str, tuple[int | None, ...]], batch: int
    ) -> Point:
        count = min(VARIED, max(1, batch_of(base) // batch))
        calls = []
        for call in range(count):
            rows = np.arange(call * batch, (call + 1) * batch)
            taken = {name: value.take(rows % len(value), axis=0) for name, value in base.items()}
            calls.append({n: _resized(v, shapes.get(n, ())[1:]) for n, v in taken.items()})
        return Point(tuple(calls))


def _resized(value: np.ndarray[Any, Any], sizes: tuple[int | None, ...]) -> np.ndarray[Any, Any]:
    """With other sizes after the first: cut, or repeated."""
    for axis, size in enumerate(sizes, start=1):
        if size is not None and size != value.shape[axis]:
            value = value.take(np.arange(size) % value.shape[axis], axis=axis)
    return np.ascontiguousarray(value)


def _samples(count: int) -> str:
    return f"{count} sample{'s' if count > 1 else ''}"
