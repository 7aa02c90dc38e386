"""Arrays: files that hold prepared samples, and Python objects that give them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.data import Dataset, check, check_kind, digest
from edgekit.errors import EdgekitError
from edgekit.model import Input

if TYPE_CHECKING:
    import numpy as np

    from edgekit.data import Sample

    Arrays = dict[str, np.ndarray[Any, Any]]

LABELS = "labels"


def open_file(path: Path, inputs: tuple[Input, ...]) -> Dataset:
    """The samples in an ``.npy``, ``.npz`` or ``.safetensors`` file, batch first.

    Raises:
        EdgekitError: the file is corrupt, or its arrays are not of this model.
    """
    found = read(path, inputs)
    with path.open("rb") as file:
        content = hashlib.file_digest(file, "sha256").digest()
    return _dataset(found, inputs, str(path), digest(content))


def read(path: Path, inputs: tuple[Input, ...]) -> Arrays:
    """A file's arrays by name; the one array of an ``.npy`` has the name of the one input.

    Raises:
        EdgekitError: the file is corrupt.
    """
    if path.stat().st_size == 0:
        raise EdgekitError(f"Data {path} is empty.", "The file has 0 bytes.", "Make it again.")
    try:
        return READERS[path.suffix](path, inputs)
    except EdgekitError:
        raise
    except Exception as error:  # damaged bytes make the readers raise almost anything
        raise EdgekitError(
            f"Data {path} cannot be read.",
            f"{type(error).__name__}: {error}",
            "Save plain numbers (no Python objects) with numpy or safetensors, and copy it whole.",
        ) from error


def from_python(source: Any, inputs: tuple[Input, ...]) -> Dataset:
    """The samples of a mapping of batch-first arrays, or of an iterable of samples.

    Raises:
        EdgekitError: it cannot be iterated, is empty, or a sample is not of this model.
    """
    if isinstance(source, Mapping):
        arrays = {str(name): _array(value, str(name)) for name, value in source.items()}
        return _dataset(arrays, inputs, "arrays in memory", _hash([arrays]))
    if not isinstance(source, Iterable):
        raise EdgekitError(
            f"Data of type {type(source).__name__} cannot be used.",
            "It cannot be iterated.",
            "Give a path, a dict of arrays, or an iterable of samples.",
        )
    origin = f"{type(source).__name__} in memory"
    pairs = [_pair(item, inputs, f"{origin}, index {i}") for i, item in enumerate(source)]
    if not pairs:
        raise EdgekitError(f"Data ({origin}) is empty.", "It gave no sample.", "Give one or more.")
    samples = [sample for sample, _ in pairs]
    labels = [label for _, label in pairs if label is not None]
    if labels and len(labels) < len(pairs):
        raise EdgekitError(
            f"Data ({origin}) has labels for some samples only.",
            f"{len(labels)} of {len(pairs)} are labelled.",
            "Label all or none.",
        )
    return Dataset(
        origin,
        digest(_hash(samples), repr(labels)),
        tuple(labels) or None,
        len(samples),
        lambda index: check(samples[index], inputs, f"{origin}, index {index}"),
    )


def _pair(item: Any, inputs: tuple[Input, ...], where: str) -> tuple[Sample, int | None]:
    """(sample, label or None) of what an iterable gave."""
    import numpy as np

    label = None
    if isinstance(item, tuple) and len(item) == 2 and np.ndim(item[1]) == 0:
        item, label = item[0], _label(item[1], where)
    if isinstance(item, Mapping):
        return {str(k): _array(v, f"{where}: {k}") for k, v in item.items()}, label
    return {_only(inputs, where).name: _array(item, where)}, label


def _label(value: Any, where: str) -> int:
    import numpy as np

    array = np.asarray(value)
    if not np.issubdtype(array.dtype, np.integer):
        raise EdgekitError(
            f"{where}: the label is not an integer.", f"Found {value!r}.", "Give class indices."
        )
    return int(array)


def _array(value: Any, where: str) -> np.ndarray[Any, Any]:
    import numpy as np

    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:
        raise EdgekitError(f"{where} is not an array.", str(error), "Give NumPy arrays.") from error
    if array.dtype.kind not in "biuf":
        raise EdgekitError(
            f"{where} is not an array of numbers.",
            f"Found {type(value).__name__} ({array.dtype}).",
            "Give NumPy arrays.",
        )
    return array


def _dataset(found: Arrays, inputs: tuple[Input, ...], origin: str, fingerprint: str) -> Dataset:
    """Check batch-first arrays against the inputs, and serve them sample by sample."""
    arrays = {name: value for name, value in found.items() if name != LABELS}
    expected = {spec.name for spec in inputs}
    if arrays.keys() != expected:
        raise EdgekitError(
            f"{origin} does not hold the model's inputs.",
            f"Found {', '.join(sorted(arrays)) or 'nothing'}; expected "
            f"{', '.join(sorted(expected))} (and labels, if there are any).",
            "Name the arrays as the model names its inputs.",
        )
    count = _count(found, origin)
    for spec in inputs:
        value = arrays[spec.name]
        check_kind(value.shape[1:], str(value.dtype), spec, f"{origin} (all samples, batch first)")

    def read(index: int) -> Sample:
        import numpy as np

        sample = {name: np.array(value[index]) for name, value in arrays.items()}
        return check(sample, inputs, f"{origin}, index {index}")

    return Dataset(origin, fingerprint, _labels(found, origin), count, read)


def _count(found: Arrays, origin: str) -> int:
    counts = {name: len(value) if value.ndim else 0 for name, value in found.items()}
    if len(set(counts.values())) != 1:
        raise EdgekitError(
            f"{origin} has arrays of different lengths.",
            ", ".join(f"{name}: {count}" for name, count in counts.items()),
            "Give each one entry a sample, batch first.",
        )
    count = next(iter(counts.values()))
    if count == 0:
        raise EdgekitError(f"{origin} is empty.", "Its arrays hold no sample.", "Give one or more.")
    return count


def _labels(found: Arrays, origin: str) -> tuple[int, ...] | None:
    if LABELS not in found:
        return None
    labels = found[LABELS]
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise EdgekitError(
            f"{origin}: labels are not class indices.",
            f"Found {labels.dtype} {labels.shape}; expected one integer a sample.",
            "Save them as int64.",
        )
    return tuple(int(label) for label in labels)


def _only(inputs: tuple[Input, ...], where: str) -> Input:
    if len(inputs) != 1:
        raise EdgekitError(
            f"{where} has one array without a name.",
            f"The model has {len(inputs)} inputs: {', '.join(i.name for i in inputs)}.",
            "Give arrays by input name: .npz, .safetensors or dicts.",
        )
    return inputs[0]


def _hash(samples: list[Arrays]) -> str:
    return digest(
        *(
            part
            for sample in samples
            for name, value in sorted(sample.items())
            for part in (name, str(value.dtype), repr(value.shape), value.tobytes())
        )
    )


def _read_npy(path: Path, inputs: tuple[Input, ...]) -> Arrays:
    import numpy as np

    return {_only(inputs, str(path)).name: np.lib.format.open_memmap(path, mode="r")}


def _read_npz(path: Path, inputs: tuple[Input, ...]) -> Arrays:
    import numpy as np

    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _read_safetensors(path: Path, inputs: tuple[Input, ...]) -> Arrays:
    from safetensors.numpy import load_file

    arrays: Arrays = load_file(path)
    return arrays


#: suffix -> reader
READERS: dict[str, Callable[[Path, tuple[Input, ...]], Arrays]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".safetensors": _read_safetensors,
}
