"""onnx: a file, such as ``model.onnx``, for those who have nothing else.

Its input and output names, dtypes and shapes are the file's; the first dimension of each input
is the batch. Other dynamic dimensions are fixed with ``--input ids:1x128:int64``.

A file does not say how images are prepared. Give prepared samples (``.npy``, or ``.npz`` with one
array an input), or, for one image input ``[batch, channels, height, width]``, say it::

    --set mean=[0.485,0.456,0.406] --set std=[0.229,0.224,0.225]
    --set resize=256                # the shorter edge, or [height, width]; the input's size
    --set interpolation=bicubic     # bilinear if it is not given

``mean`` and ``std`` are of values in [0, 1]; one number stands for all channels.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import files
from edgekit.errors import EdgekitError
from edgekit.families import Options
from edgekit.find import unknown
from edgekit.model import BATCH, Input, Model, Preprocess, run_module
from edgekit.progress import say

if TYPE_CHECKING:
    import numpy as np

    from edgekit.families.onnx_graph.module import OnnxModule
    from edgekit.families.onnx_graph.reading import Interface

    Arrays = dict[str, np.ndarray[Any, Any]]

REQUIRES = {"onnx": "onnx", "onnxruntime": "onnxruntime"}
ARGUMENTS = ("mean", "std", "resize", "interpolation")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")


def load(name: str, options: Options) -> Model:
    """The model in an ONNX file, found equal to what ONNX Runtime computes with it.

    Args:
        name: the file's path; its external data lie beside it.

    Raises:
        EdgekitError: it is missing, invalid, quantized already, or holds what edgekit does not
            read (operators are named); or an option has no meaning for a file.
    """
    from edgekit.families.onnx_graph.build import build
    from edgekit.families.onnx_graph.module import Parameter
    from edgekit.families.onnx_graph.reading import read

    _refuse(name, options)
    path = Path(name).expanduser()
    file = read(path)
    inputs = _inputs(name, file.inputs, options.inputs)
    parameters = [
        Parameter(spec.name, declared.name, declared.shape)
        for spec, declared in zip(inputs, file.inputs, strict=True)
    ]
    samples = _samples(inputs)
    module = build(file, parameters, _by_value(samples, parameters))
    _prove(str(path), module, samples, parameters, file.outputs)
    preprocess = _preprocess(name, inputs, options.arguments)
    return Model(module, inputs, file.outputs, name, "checkpoint", preprocess)


def fingerprint(path: Path) -> list[str]:
    """Of the file and of the files that hold its weights.

    Raises:
        EdgekitError: there is nothing at ``path``.
    """
    import onnx
    from onnx.external_data_helper import ExternalDataInfo, uses_external_data

    found = [files.fingerprint(path)]
    try:
        graph = onnx.load(str(path), load_external_data=False).graph
    except Exception:  # noqa: BLE001 - loading the model says what is wrong with the file
        return found
    stored = {ExternalDataInfo(t).location for t in graph.initializer if uses_external_data(t)}
    beside = [path.parent / location for location in sorted(stored)]
    return found + [files.fingerprint(other) for other in beside if other.is_file()]


def _refuse(name: str, options: Options) -> None:
    if options.checkpoint or options.random_weights:
        flag = "--checkpoint" if options.checkpoint else "--random-weights"
        raise EdgekitError(
            f"{flag} has no meaning for {name}.", "An ONNX file holds its weights.", "Drop it."
        )
    for argument in options.arguments:
        if argument not in ARGUMENTS:
            raise unknown("--set argument of an ONNX file", argument, ARGUMENTS)


def _inputs(
    name: str, declared: tuple[Interface, ...], given: tuple[Input, ...]
) -> tuple[Input, ...]:
    """The file's inputs, their dynamic dimensions fixed by ``--input``."""
    labels: list[str] = []
    for interface in declared:
        labels.append(_identifier(interface.name, labels))
    if not labels:
        raise EdgekitError(f"{name} has no inputs.", "It computes a constant.")
    wanted = {spec.name: spec for spec in given}
    for other in wanted.keys() - set(labels):
        raise unknown(f"input of {name}", other, labels)
    pairs = zip(labels, declared, strict=True)
    return tuple(_input(name, label, each, wanted.get(label)) for label, each in pairs)


def _identifier(name: str, taken: list[str]) -> str:
    """A name that a parameter can have."""
    label = re.sub(r"\W", "_", name)
    if label[:1].isdigit() or keyword.iskeyword(label) or label == "self":
        label = f"input_{label}"
    while label in taken:
        label += "_"
    if label != name:
        say(f"Input {name!r} is called {label!r} here.")
    return label


def _input(name: str, label: str, declared: Interface, given: Input | None) -> Input:
    if not declared.shape:
        raise EdgekitError(
            f"Input {label} of {name} is a single number.",
            "edgekit feeds samples in batches, and the first dimension is the batch.",
            "Export the model with an input of shape [batch, ...], or with a constant there.",
        )
    shape = given.shape if given else declared.shape
    fits = len(shape) == len(declared.shape) and all(
        isinstance(want, str) or want == size
        for size, want in zip(shape[1:], declared.shape[1:], strict=True)
    )
    if not fits or (given and given.dtype != declared.dtype):
        raise EdgekitError(
            f"--input {given} does not fit {name}.",
            f"The file has {'x'.join(str(s or '?') for s in declared.shape)}:{declared.dtype}.",
            "Give sizes to its dynamic dimensions only.",
        )
    if not all(isinstance(size, int) for size in shape[1:]):
        example = "x".join(str(s) if isinstance(s, int) else "128" for s in (1, *shape[1:]))
        raise EdgekitError(
            f"Input {label} of {name} has dynamic dimensions besides its batch.",
            f"Its shape is {'x'.join(str(s or '?') for s in shape)}; engines need fixed sizes.",
            f"Fix them, for example with --input {label}:{example}:{declared.dtype}.",
        )
    batch = declared.shape[0]
    return Input(label, (batch if isinstance(batch, int) else BATCH, *shape[1:]), declared.dtype)


def _samples(inputs: tuple[Input, ...]) -> Arrays:
    """Random numbers to try the model on; integers are 0 or 1, within any vocabulary."""
    import numpy as np

    random = np.random.default_rng(0)
    return {
        spec.name: random.standard_normal(spec.concrete()).astype(spec.dtype)
        if spec.dtype.startswith("float")
        else random.integers(0, 2, spec.concrete()).astype(spec.dtype)
        for spec in inputs
    }


def _by_value(samples: Arrays, parameters: Any) -> dict[str, Any]:
    import torch

    return {p.value: torch.from_numpy(samples[p.name]) for p in parameters}


def _prove(
    name: str, module: OnnxModule, samples: Arrays, parameters: Any, outputs: tuple[str, ...]
) -> None:
    """Raise unless the module gives what ONNX Runtime gives, within the tolerance of a precision.

    All later checks compare with the module, so it must be the file.
    """
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    from edgekit.drift import TOLERANCES, compare

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    unable = (state.Fail, state.InvalidGraph, state.NotImplemented, state.RuntimeException)
    try:
        session = onnxruntime.InferenceSession(name, settings, providers=["CPUExecutionProvider"])
        results = session.run(list(outputs), {p.value: samples[p.name] for p in parameters})
    except unable as error:
        say(f"{name} was not compared with ONNX Runtime, which cannot run it: {error}")
        return
    reference = dict(zip(outputs, results, strict=True))
    half = any(value.dtype == "float16" for value in (*samples.values(), *results))
    tolerance = TOLERANCES["fp16" if half else "fp32"]
    failure = tolerance.failure(compare(*_finite(reference, run_module(module, samples, outputs))))
    if failure:
        raise EdgekitError(
            f"edgekit does not read {name} rightly.",
            f"On random inputs it gives other numbers than ONNX Runtime: {failure}.",
            "This is a fault of edgekit; please report it with the file.",
        )


def _finite(reference: Arrays, actual: Arrays) -> tuple[list[Arrays], list[Arrays]]:
    """Both without the values that are the same NaN or infinity: noise may be out of a domain."""
    import numpy as np

    kept = {
        name: (value != actual[name]) & ~(np.isnan(value) & np.isnan(actual[name]))
        | np.isfinite(value)
        for name, value in reference.items()
    }
    sides = [
        {n: np.atleast_1d(np.where(kept[n], side[n], 0)) for n in kept}
        for side in (reference, actual)
    ]
    return [sides[0]], [sides[1]]


def _preprocess(
    name: str, inputs: tuple[Input, ...], arguments: Mapping[str, Any]
) -> Preprocess | None:
    """What ``--set`` says of images; None if it says nothing."""
    first, *others = inputs
    image = not others and len(first.shape) == 4 and first.shape[1] in (1, 3)
    if not arguments:
        if image:
            say(
                f"{name} does not say how images are prepared: give .npy or .npz data, or "
                "--set mean=[...] --set std=[...]."
            )
        return None
    if not image:
        shapes = ", ".join(map(str, inputs))
        raise EdgekitError(
            f"--set {next(iter(arguments))} has no meaning for {name}.",
            f"It prepares one image of 1 or 3 channels; the file takes {shapes}.",
            "Drop it, and give prepared arrays as .npz.",
        )
    channels, *size = first.concrete()[1:]
    spread = {key: _floats(key, arguments.get(key), channels) for key in ("mean", "std")}
    if 0.0 in spread["std"]:
        raise EdgekitError("--set std holds a zero.", "Images are divided by it.")
    interpolation = arguments.get("interpolation", "bilinear")
    if interpolation not in INTERPOLATIONS:
        raise unknown("interpolation", str(interpolation), INTERPOLATIONS)
    resize = _resize(arguments.get("resize", size))
    return Preprocess((size[0], size[1]), resize, interpolation, **spread, channels=channels)


def _floats(key: str, value: Any, channels: int) -> tuple[float, ...]:
    """One number a channel."""
    given = value if isinstance(value, list) else [value]
    numbers = [float(v) for v in given if isinstance(v, (int, float))]
    if len(numbers) != len(given) or len(numbers) not in (1, channels):
        raise EdgekitError(
            f"--set {key} is {'missing' if value is None else f'not right: {value!r}'}.",
            f"The image has {channels} channels, and each is (value - mean) / std.",
            f"Write --set {key}={[0.5] * channels}.".replace(" ", "").replace("Write", "Write "),
        )
    return tuple(numbers) * (channels if len(numbers) == 1 else 1)


def _resize(value: Any) -> int | tuple[int, int]:
    sizes = value if isinstance(value, list) else [value]
    if not all(isinstance(s, int) and s > 0 for s in sizes) or len(sizes) not in (1, 2):
        raise EdgekitError(
            f"--set resize={value!r} is not right.",
            "It is what an image is resized to before its centre is taken, in pixels.",
            "Write --set resize=256 (the shorter edge) or --set resize=[256,256].",
        )
    return sizes[0] if len(sizes) == 1 else (sizes[0], sizes[1])
