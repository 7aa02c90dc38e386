"""Data: the samples that calibrate a model and that judge it.

A sample is a dict from input name to array, without its batch. Every sample is checked when it
is read, and an error names its file and index.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.errors import EdgekitError
from edgekit.model import Dim, Input, Preprocess
from edgekit.progress import say

if TYPE_CHECKING:
    import numpy as np

    Sample = dict[str, np.ndarray[Any, Any]]

FORMS = (
    "Give a folder of images (flat, or one folder a class), an .npy, .npz or .safetensors file, "
    "or in Python any iterable of samples."
)


@dataclass(frozen=True)
class Dataset:
    """Samples, read when they are asked for.

    Attributes:
        origin: where they come from, for people and for the manifest.
        fingerprint: of the contents (for an image folder, of its files' names, sizes and
            dates); equal data has an equal one.
        labels: the class of each sample, or None.
        size: how many there are.
        read: index -> sample, checked.
    """

    origin: str
    fingerprint: str
    labels: tuple[int, ...] | None
    size: int
    read: Callable[[int], Sample]

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[Sample]:
        return (self.read(index) for index in range(self.size))

    def take(self, n: int, seed: int) -> Dataset:
        """``n`` random samples in their own order, the same for the same seed; all if fewer.

        Raises:
            EdgekitError: ``n`` is below 1.
        """
        if n < 1:
            raise EdgekitError(
                f"{n} samples of {self.origin} were asked for.", "", "Take 1 or more."
            )
        if n > self.size:
            say(f"{self.origin}: has {self.size} samples, fewer than the {n} asked for.")
        return self._subset(random.Random(seed).sample(range(self.size), min(n, self.size)))

    def split(self, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
        """Two disjoint parts, the first with ``fraction`` of the samples, neither empty.

        Raises:
            EdgekitError: there are fewer than two samples, or ``fraction`` is not within (0, 1).
        """
        if self.size < 2 or not 0 < fraction < 1:
            raise EdgekitError(
                f"{self.origin} cannot be split at {fraction}.",
                f"It has {self.size} samples; a split needs two, and a fraction between 0 and 1.",
                "Give more data.",
            )
        order = random.Random(seed).sample(range(self.size), self.size)
        cut = min(max(round(fraction * self.size), 1), self.size - 1)
        return self._subset(order[:cut]), self._subset(order[cut:])

    def _subset(self, chosen: list[int]) -> Dataset:
        order, labels, read = sorted(chosen), self.labels, self.read
        return replace(
            self,
            fingerprint=digest(self.fingerprint, *map(str, order)),
            labels=tuple(labels[i] for i in order) if labels is not None else None,
            size=len(order),
            read=lambda index: read(order[index]),
        )


def open_data(
    source: str | Path | Mapping[str, Any] | Iterable[Any],
    model_inputs: tuple[Input, ...],
    preprocess: Preprocess | None,
) -> Dataset:
    """The samples in a folder, a file or a Python object.

    Args:
        source: one of

            - a folder of images, flat or one folder a class. A class's label is its place
              among the sorted folders, or its name where all names are integers;
            - ``.npy``, for a model with one input; ``.npz`` or ``.safetensors`` with one array
              an input, by name, and perhaps ``labels``. All are batch first;
            - a mapping like these, or any iterable of samples: dicts of arrays by input name,
              or bare arrays where the model has one input, each alone or as (sample, label).
        model_inputs: what the samples must match, shape and dtype.
        preprocess: for images; see ``edgekit.data.images`` for what is done, in which order.

    Raises:
        EdgekitError: nothing there, an unknown kind, or samples that do not match. Images and
            values are checked when they are read; shapes of arrays at once.
    """
    from edgekit.data import arrays, images

    if isinstance(source, Dataset):
        return source
    if not isinstance(source, (str, Path)):
        return arrays.from_python(source, model_inputs)
    path = Path(source).expanduser()
    if path.is_dir():
        return images.open_folder(path, model_inputs, preprocess)
    if not path.is_file():
        raise EdgekitError(f"Data {path} does not exist.", "", FORMS)
    if path.suffix in arrays.READERS:
        return arrays.open_file(path, model_inputs)
    raise EdgekitError(
        f"Data {path} is of an unknown kind.", f"{path.suffix or 'No'} suffix is not read.", FORMS
    )


def random_data(inputs: tuple[Input, ...], n: int, seed: int) -> Dataset:
    """Noise, for when no data can be had; its origin says that it is.

    Floats are normal (mean 0, deviation 1), integers 0 or 1 (within any vocabulary), and
    sizes that vary as usual. Sample ``i`` depends on the seed and ``i`` alone.
    """
    import numpy as np

    def read(index: int) -> Sample:
        generator = np.random.default_rng([seed, index])
        return {
            spec.name: generator.standard_normal(spec.concrete()[1:]).astype(spec.dtype)
            if np.issubdtype(np.dtype(spec.dtype), np.floating)
            else generator.integers(0, 2, spec.concrete()[1:]).astype(spec.dtype)
            for spec in inputs
        }

    origin = f"random numbers (seed {seed})"
    return Dataset(origin, digest(origin, str(n), repr(inputs)), None, n, read)


def check(sample: Sample, inputs: tuple[Input, ...], where: str) -> Sample:
    """The sample, if it is one of this model.

    Raises:
        EdgekitError: an input is missing, extra, of another shape or dtype, empty, or holds
            NaN or infinity. The message names ``where`` it is from, what was found and expected.
    """
    import numpy as np

    names = {spec.name for spec in inputs}
    if names != sample.keys():
        raise EdgekitError(
            f"{where} does not match the model's inputs.",
            f"Found {', '.join(sample) or 'nothing'}; expected {', '.join(sorted(names))}.",
            "Name the arrays as the model names its inputs.",
        )
    for spec in inputs:
        value = sample[spec.name]
        check_kind(value.shape, str(value.dtype), spec, where)
        if value.size == 0:
            raise EdgekitError(f"{where}: {spec.name} is empty.", f"Its shape is {value.shape}.")
        finite = np.isfinite(value)
        if not finite.all():
            raise EdgekitError(
                f"{where}: {spec.name} holds NaN or infinity.",
                f"{value.size - np.count_nonzero(finite)} of {value.size} values.",
                "Remove the sample or repair its values.",
            )
    return sample


def check_kind(shape: tuple[int, ...], dtype: str, spec: Input, where: str) -> None:
    """Raise unless a sample's shape and dtype are those of the input."""
    expected = spec.sample_shape
    fits = len(shape) == len(expected) and all(
        isinstance(size, Dim) or size == found for size, found in zip(expected, shape, strict=True)
    )
    if not fits:
        raise EdgekitError(
            f"{where}: {spec.name} has the wrong shape.",
            f"Found {_times(shape)}; expected {_times(expected)} (one sample, without its batch).",
            "Give samples as the model takes them.",
        )
    if dtype != spec.dtype:
        raise EdgekitError(
            f"{where}: {spec.name} has the wrong dtype.",
            f"Found {dtype}; expected {spec.dtype}.",
            f"Convert it, after any scaling: array.astype('{spec.dtype}').",
        )


def digest(*parts: str | bytes) -> str:
    """A short fingerprint of texts and bytes, in order."""
    total = hashlib.sha256()
    for part in parts:
        content = part.encode() if isinstance(part, str) else part
        total.update(len(content).to_bytes(8, "little") + content)
    return total.hexdigest()[:16]


def _times(shape: Iterable[object]) -> str:
    return "x".join(map(str, shape)) or "a single number"
