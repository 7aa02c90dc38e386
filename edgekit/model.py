"""Model: a module with its contract. Graph: the same, exported.

``Model.export`` is the only call to ``torch.export``; the ``ExportedProgram`` it gives is
the only graph format in edgekit. Passes on graphs take a Graph and return a new one.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from edgekit.errors import EdgekitError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch.export import ExportedProgram


DTYPES = ("float32", "float16", "int64", "int32", "bool")


@dataclass(frozen=True)
class Input:
    """One named input of a model.

    Attributes:
        name: the parameter's name in ``forward``.
        shape: sizes with the batch first; a string is a dynamic dimension's name.
        dtype: a NumPy dtype's name, such as ``float32`` or ``int64``.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str = "float32"

    @classmethod
    def parse(cls, text: str) -> Input:
        """From ``name:1x3x224x224`` or ``name:1x128:int64``.

        Raises:
            EdgekitError: the text has another form.

        >>> Input.parse("x:1x3x8x8").shape
        (1, 3, 8, 8)
        """
        name, _, rest = text.partition(":")
        sizes, _, dtype = rest.partition(":")
        if not name or not sizes or not all(size.isdigit() for size in sizes.split("x")):
            raise EdgekitError(
                f"--input {text!r} is not an input.", "", "Write NAME:1x3x224x224[:DTYPE]."
            )
        if dtype not in ("", *DTYPES):
            raise EdgekitError(f"--input {text!r}: {dtype} is not one of {', '.join(DTYPES)}.")
        return cls(name, tuple(int(size) for size in sizes.split("x")), dtype or "float32")

    def __str__(self) -> str:
        """As ``parse`` takes it.

        >>> str(Input("x", (1, 4)))
        'x:1x4:float32'
        """
        return f"{self.name}:{'x'.join(str(size) for size in self.shape)}:{self.dtype}"

    @property
    def sample_shape(self) -> tuple[int | str, ...]:
        """The shape of one sample: ``shape`` without its batch."""
        return self.shape[1:]

    def concrete(self, batch: int = 1) -> tuple[int, ...]:
        """``shape`` with every dynamic dimension set to ``batch``."""
        return tuple(batch if isinstance(size, str) else size for size in self.shape)


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
    """

    module: torch.nn.Module
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]
    source: str
    weights: str = "given"
    preprocess: Preprocess | None = None
    history: tuple[str, ...] = ()

    def with_batch(self, batch: int | Literal["dynamic"]) -> Model:
        """The model with its inputs' first dimension set, or dynamic."""
        first = "batch" if batch == "dynamic" else batch
        inputs = tuple(dataclasses.replace(i, shape=(first, *i.shape[1:])) for i in self.inputs)
        return dataclasses.replace(self, inputs=inputs)

    def export(self) -> Graph:
        """Export with ``torch.export``; the batch is dynamic where an input says so.

        Raises:
            EdgekitError: the module cannot be exported; the message quotes torch's reason.
        """
        import torch

        from edgekit.edit import quiet_copies

        module = self.module.eval()
        example = {i.name: _example(i) for i in self.inputs}
        dims: dict[str, torch.export.Dim] = {}
        shapes = {
            i.name: {
                axis: dims.setdefault(size, torch.export.Dim(size))
                for axis, size in enumerate(i.shape)
                if isinstance(size, str)
            }
            for i in self.inputs
        }
        try:
            exported = torch.export.export(module, (), example, dynamic_shapes=shapes)
            # No decompositions, but in-place operators become functional ones.
            with quiet_copies():
                exported = exported.run_decompositions({})
        except Exception as error:
            raise EdgekitError(
                f"{self.source} cannot be exported by torch.export.",
                f"torch says: {_first_lines(error)}",
                "Models with data-dependent Python control flow need a rewrite first.",
            ) from error
        return _without_views(Graph(exported, self.inputs, self.outputs))


@dataclass(frozen=True)
class Graph:
    """An exported model: what passes rewrite and converters lower.

    Attributes:
        exported: the program; its numerics are those of the artifact made from it.
        inputs, outputs: as in Model; the names that artifacts carry.
        precision: ``fp32``, ``fp16`` or ``int8``.
    """

    exported: ExportedProgram
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]
    precision: str = "fp32"

    def replace(self, exported: ExportedProgram, precision: str | None = None) -> Graph:
        """The same contract around a rewritten program."""
        return dataclasses.replace(self, exported=exported, precision=precision or self.precision)

    def run(self, inputs: dict[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
        """Run in PyTorch. Inputs and outputs are arrays by name, batch first."""
        return run_module(self.exported.module(check_guards=False), inputs, self.outputs)


def _without_views(graph: Graph) -> Graph:
    """A view demands strides, which a rewrite upstream may change; a reshape does not."""
    import torch

    from edgekit.edit import Editor

    editor = Editor(graph)
    for node in editor.calls("aten.view.default"):
        node.target = torch.ops.aten.reshape.default
    return editor.done()


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


def _example(spec: Input) -> torch.Tensor:
    """A tensor of the right shape for tracing. Its values do not reach the graph."""
    import torch

    # Two samples: torch.export treats a size of 1 as a constant.
    shape = spec.concrete(batch=2)
    dtype = getattr(torch, spec.dtype)
    if dtype.is_floating_point:
        return torch.rand(shape, dtype=dtype)
    return torch.zeros(shape, dtype=dtype)


def _first_lines(error: BaseException, count: int = 3) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:count]) or type(error).__name__
