"""Model: a module with its contract. Graph: the same, exported.

``Model.export`` is the only call to ``torch.export``; the ``ExportedProgram`` it gives is
the only graph format in edgekit. Passes on graphs take a Graph and return a new one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from edgekit.errors import EdgekitError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch.export import ExportedProgram


DTYPES = ("float32", "float16", "int64", "int32", "bool")


@dataclass(frozen=True)
class Dim:
    """A size that varies; dimensions of one name vary together.

    Attributes:
        name: ``batch``, ``length``, ``past``...
        least, usual, most: what engines are built for; ``usual`` is what they are tuned for.
    """

    name: str
    least: int
    usual: int
    most: int

    def __str__(self) -> str:
        """As ``Input.parse`` takes it.

        >>> str(Dim("length", 1, 128, 2048))
        '1..128..2048'
        """
        return f"{self.least}..{self.usual}..{self.most}"


#: The batch of a model that takes any number of samples.
BATCH = Dim("batch", 1, 1, 8)


@dataclass(frozen=True)
class Input:
    """One named input of a model.

    Attributes:
        name: the parameter's name in ``forward``.
        shape: sizes with the batch first.
        dtype: a NumPy dtype's name, such as ``float32`` or ``int64``.
    """

    name: str
    shape: tuple[int | Dim, ...]
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for size in self.shape:
            if not isinstance(size, int | Dim):
                raise EdgekitError(
                    f"Input {self.name}: {size!r} is not a size.",
                    f"Its shape is {self.shape}.",
                    "A size that varies is edgekit.Dim(NAME, LEAST, USUAL, MOST).",
                )

    @classmethod
    def parse(cls, text: str) -> Input:
        """From ``name:1x3x224x224``, ``name:1x128:int64`` or, of any length, ``1x1..128..2048``.

        A dynamic size is called ``length`` on axis 1 and ``size2``, ``size3``... on later ones:
        inputs that have it on the same axis vary together.

        Raises:
            EdgekitError: the text has another form.

        >>> Input.parse("x:1x3x8x8").shape
        (1, 3, 8, 8)
        >>> Input.parse("x:1x1..16..64:int64").shape[1]
        Dim(name='length', least=1, usual=16, most=64)
        """
        name, _, rest = text.partition(":")
        sizes, _, dtype = rest.partition(":")
        shape = tuple(_size(size, axis) for axis, size in enumerate(sizes.split("x")))
        if not name or None in shape:
            raise EdgekitError(
                f"--input {text!r} is not an input.",
                "",
                "Write NAME:1x3x224x224[:DTYPE]; a size that varies is LEAST..USUAL..MOST.",
            )
        if dtype not in ("", *DTYPES):
            raise EdgekitError(f"--input {text!r}: {dtype} is not one of {', '.join(DTYPES)}.")
        return cls(name, tuple(size for size in shape if size is not None), dtype or "float32")

    @classmethod
    def restore(cls, fields: Mapping[str, Any]) -> Input:
        """From ``dataclasses.asdict``, as a manifest has it."""
        shape = tuple(Dim(**size) if isinstance(size, dict) else size for size in fields["shape"])
        return cls(fields["name"], shape, fields["dtype"])

    def __str__(self) -> str:
        """As ``parse`` takes it.

        >>> str(Input("x", (1, 4)))
        'x:1x4:float32'
        """
        return f"{self.name}:{'x'.join(str(size) for size in self.shape)}:{self.dtype}"

    @property
    def sample_shape(self) -> tuple[int | Dim, ...]:
        """The shape of one sample: ``shape`` without its batch."""
        return self.shape[1:]

    @property
    def dims(self) -> tuple[Dim, ...]:
        """The sizes that vary."""
        return tuple(size for size in self.shape if isinstance(size, Dim))

    def concrete(self, batch: int = 1) -> tuple[int, ...]:
        """``shape`` with a dynamic batch set to ``batch``, and other sizes that vary as usual."""
        return tuple(
            (batch if size.name == BATCH.name else size.usual) if isinstance(size, Dim) else size
            for size in self.shape
        )


def _size(text: str, axis: int) -> int | Dim | None:
    """A size as it is written, or None."""
    if text.isdigit():
        return int(text)
    parts = text.split("..")
    if len(parts) != 3 or not all(part.isdigit() for part in parts):
        return None
    least, usual, most = (int(part) for part in parts)
    name = BATCH.name if axis == 0 else "length" if axis == 1 else f"size{axis}"
    return Dim(name, least, usual, most) if least <= usual <= most else None


@dataclass(frozen=True)
class State:
    """A tensor that a streaming model takes with each call, and gives back changed.

    Before the first call it is zero, and empty along a dimension that varies.

    Attributes:
        name: of the input, such as ``conv_0``, ``scan_0`` or ``key_3``.
        shape: batch first; a ``past`` that varies grows with what has been seen.
        dtype: of both.
    """

    name: str
    shape: tuple[int | Dim, ...]
    dtype: str = "float32"

    @property
    def output(self) -> str:
        """The name of the output that is the next call's input."""
        return f"{self.name}_next"

    @property
    def input(self) -> Input:
        """As an input."""
        return Input(self.name, self.shape, self.dtype)

    def start(self, batch: int = 1) -> np.ndarray[Any, Any]:
        """What it is before the first call."""
        import numpy as np

        sizes = (
            (batch if size.name == BATCH.name else 0) if isinstance(size, Dim) else size
            for size in self.shape
        )
        return np.zeros(tuple(sizes), self.dtype)


@dataclass(frozen=True)
class Preprocess:
    """How an image becomes a model's input, as the model's own configuration says.

    Attributes:
        size: (height, width) that the model takes, in pixels.
        resize: what the image is resized to first: its shorter edge, or (height, width).
        interpolation: ``nearest``, ``bilinear``, ``bicubic`` or ``lanczos``.
        mean, std: per channel, subtracted from and divided into values in [0, 1].
        channels: 1 (grey) or 3 (RGB).
    """

    size: tuple[int, int]
    resize: int | tuple[int, int]
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    channels: int = 3


@dataclass(frozen=True)
class Model:
    """A module in evaluation mode and everything needed to run it.

    Attributes:
        module: takes the inputs by name and returns a tensor or a tuple of tensors.
        inputs: in the order of ``forward``'s parameters.
        outputs: one name a tensor returned.
        source: where it came from, as the user wrote it.
        weights: ``checkpoint``, ``pretrained``, ``random`` or ``given``.
        preprocess: for image models, else None.
        history: the passes it has been through, oldest first.
        traced: what is exported in the module's place, equal to it and on the same parameters;
            None is the module itself. With states it takes and gives these too, by name.
        states: what a streaming model carries from call to call.
        streams: of towers that read each other, where each starts: its name, and the glob of the
            input or of the modules. None need be named where inputs alone tell.
    """

    module: torch.nn.Module
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]
    source: str
    weights: str = "given"
    preprocess: Preprocess | None = None
    history: tuple[str, ...] = ()
    traced: torch.nn.Module | None = None
    states: tuple[State, ...] = ()
    streams: tuple[tuple[str, str], ...] = ()

    def with_batch(self, batch: int | Literal["dynamic"]) -> Model:
        """The model with its inputs' and states' first dimension set, or dynamic."""
        first = BATCH if batch == "dynamic" else batch
        inputs = tuple(dataclasses.replace(i, shape=(first, *i.shape[1:])) for i in self.inputs)
        states = tuple(dataclasses.replace(s, shape=(first, *s.shape[1:])) for s in self.states)
        return dataclasses.replace(self, inputs=inputs, states=states)

    def export(self) -> Graph:
        """Export with ``torch.export``; sizes vary where an input says so.

        Raises:
            EdgekitError: the module cannot be exported; the message quotes torch's reason.
        """
        import torch

        from edgekit.edit import quiet_copies
        from edgekit.operators import DISCRETE
        from edgekit.tidy import tidy

        module = (self.traced or self.module).eval()
        inputs = (*self.inputs, *(state.input for state in self.states))
        dims = {dim.name: torch.export.Dim(dim.name) for spec in inputs for dim in spec.dims}
        # Not 1, which torch.export takes for a constant; not equal, which it would tie together.
        sizes = {name: 2 + 3 * place for place, name in enumerate(dims)}
        example = {i.name: _example(i, sizes) for i in inputs}
        shapes = {
            i.name: {
                axis: dims[size.name] for axis, size in enumerate(i.shape) if isinstance(size, Dim)
            }
            for i in inputs
        }
        try:
            exported = torch.export.export(
                module,
                (),
                example,
                dynamic_shapes=shapes,
                prefer_deferred_runtime_asserts_over_guards=True,
            )
            # No decompositions, but in-place operators become functional ones.
            with quiet_copies():
                exported = exported.run_decompositions({})
        except Exception as error:
            raise EdgekitError(
                f"{self.source} cannot be exported by torch.export.",
                f"torch says: {_first_lines(error)}",
                "Models with data-dependent Python control flow need a rewrite first.",
            ) from error
        outputs = (*self.outputs, *(state.output for state in self.states))
        discrete = any(str(node.target) in DISCRETE for node in exported.graph.nodes)
        return tidy(Graph(exported, inputs, outputs, states=self.states, discrete=discrete))


@dataclass(frozen=True)
class Graph:
    """An exported model: what passes rewrite and converters lower.

    Attributes:
        exported: the program; its numerics are those of the artifact made from it.
        inputs, outputs: as in Model, then the states'; the names that artifacts carry.
        precision: ``fp32``, ``fp16`` or ``int8``.
        states: as in Model.
        discrete: whether it computes levels, which rounding can change by a whole one; see
            ``drift.tolerance_for``.
    """

    exported: ExportedProgram
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]
    precision: str = "fp32"
    states: tuple[State, ...] = ()
    discrete: bool = False

    def replace(self, exported: ExportedProgram, precision: str | None = None) -> Graph:
        """The same contract around a rewritten program."""
        return dataclasses.replace(self, exported=exported, precision=precision or self.precision)

    @property
    def dims(self) -> dict[str, Dim]:
        """The sizes that vary, by name."""
        return {dim.name: dim for spec in self.inputs for dim in spec.dims}

    def complete(self, inputs: dict[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
        """All inputs by name, in order: states that are not given are as before a first call."""
        batch = len(next(iter(inputs.values())))
        started = {state.name: state.start(batch) for state in self.states}
        return {spec.name: {**started, **inputs}[spec.name] for spec in self.inputs}

    def run(self, inputs: dict[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
        """Run in PyTorch. Inputs and outputs are arrays by name, batch first."""
        module = self.exported.module(check_guards=False)
        return run_module(module, self.complete(inputs), self.outputs)


def run_module(
    module: torch.nn.Module, inputs: dict[str, np.ndarray[Any, Any]], outputs: tuple[str, ...]
) -> dict[str, np.ndarray[Any, Any]]:
    """Run a module on arrays by input name; returns arrays by output name."""
    import torch

    # Not inference_mode: a module that caches a tensor could no longer be exported.
    with torch.no_grad():
        result = module(**{name: torch.from_numpy(value) for name, value in inputs.items()})
    tensors = (result,) if isinstance(result, torch.Tensor) else tuple(result)
    return {name: tensor.detach().numpy() for name, tensor in zip(outputs, tensors, strict=True)}


def _example(spec: Input, sizes: dict[str, int]) -> torch.Tensor:
    """A tensor of the right shape for tracing. Its values do not reach the graph."""
    import torch

    shape = tuple(sizes[size.name] if isinstance(size, Dim) else size for size in spec.shape)
    dtype = getattr(torch, spec.dtype)
    if dtype.is_floating_point:
        return torch.rand(shape, dtype=dtype)
    return torch.zeros(shape, dtype=dtype)


def _first_lines(error: BaseException, count: int = 3) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:count]) or type(error).__name__
