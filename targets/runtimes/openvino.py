"""openvino: runs ONNX on x86 CPUs, where it is the fastest.

Precision is in the graph. Left to itself OpenVINO computes float parts in bfloat16 where the CPU
has it, and turns what enters 8-bit weights into integers; here both are off, so that what is
verified and timed is what was asked for. (bfloat16 would be a precision of its own; INT8 is
faster than it.)
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import packages
from edgekit.converters.interface import interface
from edgekit.errors import EdgekitError
from edgekit.model import Dim, Input, State
from edgekit.targets.runtimes import Arrays, Runtime, split

if TYPE_CHECKING:
    from edgekit.profiling import Layers

OPENS = (".onnx",)
REQUIRES = {"openvino": "openvino"}
THREADED = True
#: Compute what the graph says, one call at a time.
_AS_WRITTEN = {
    "INFERENCE_PRECISION_HINT": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
    "PERFORMANCE_HINT": "LATENCY",
    "NUM_STREAMS": 1,
}


def unavailable() -> str:
    """Why no ONNX file can run here: OpenVINO is missing."""
    return "openvino is not installed" if packages.missing(REQUIRES) else ""


def untimed() -> str:
    """Why a latency cannot be measured here: as ``unavailable``."""
    return unavailable()


def open(artifact: Path, threads: int | None = None) -> Session:
    """Load an ONNX file; ``threads`` None takes all cores.

    Raises:
        EdgekitError: OpenVINO is not installed, or refuses the file.
    """
    return Session(*_compiled(artifact, str(artifact), threads), artifact)


def trace(artifact: Path, inputs: Arrays) -> Arrays:
    """Every float value that the graph computes, by name, for one call."""
    from edgekit.targets.runtimes.onnxruntime import with_all_values

    return Session(*_compiled(with_all_values(artifact), str(artifact), None)).infer(inputs)


def layers(artifact: Path, inputs: Arrays, threads: int | None = None) -> Layers:
    """What one call spends its time on, by OpenVINO's counters."""
    from edgekit.profiling.openvino import layers

    name = str(artifact)
    return layers(artifact, inputs, lambda options: _compiled(artifact, name, threads, options)[0])


class Session(Runtime):
    """An open ONNX file.

    Args:
        compiled: the model, with the names of its ``inputs`` and ``outputs``.
        artifact: the file, which says more of a stream than OpenVINO keeps.
    """

    def __init__(
        self, compiled: Any, inputs: list[str], outputs: list[str], artifact: Path | None = None
    ) -> None:
        import numpy as np

        self._artifact = artifact
        self._request = compiled.create_infer_request()
        self._ports = dict(zip(inputs, compiled.inputs, strict=True))
        self._dtypes = {n: np.dtype(p.element_type.to_dtype()) for n, p in self._ports.items()}
        self._names = outputs

    def close(self) -> None:
        """Free the model."""
        self._request = None

    @property
    def batch(self) -> int | None:
        """Samples that one call takes; None if any number."""
        first = next(iter(self._ports.values())).partial_shape[0]
        return int(first.get_length()) if first.is_static else None

    @property
    def inputs(self) -> tuple[Input, ...]:
        """What it takes in each call beside its states."""
        return tuple(split(self._declared, self._names)[0])

    @property
    def states(self) -> tuple[State, ...]:
        """What it carries from call to call."""
        return tuple(split(self._declared, self._names)[1])

    @cached_property
    def _declared(self) -> list[Input]:
        """A stream's inputs; sizes that vary have the ranges that the file states."""
        if self._artifact is None or not any(f"{n}_next" in self._names for n in self._ports):
            return []
        import onnx

        said = interface(onnx.load(str(self._artifact), load_external_data=False))
        dims = {name: Dim(name, *sizes) for name, sizes in said["dims"].items()}
        return [
            Input(i["name"], tuple(dims.get(size, size) for size in i["shape"]), i["dtype"])
            for i in said["inputs"]
        ]

    def infer(self, inputs: Arrays) -> Arrays:
        """Outputs by name for inputs by name, batch first."""
        given = {name: value.dtype for name, value in inputs.items()}
        if given != self._dtypes:  # it would cast the values, and reuse the last call's
            raise EdgekitError(
                "OpenVINO cannot run the model.",
                f"It takes {_listed(self._dtypes)}; it was given {_listed(given)}.",
            )
        try:
            found = self._request.infer(inputs, share_inputs=True)
        except RuntimeError as error:
            why = "; ".join(self._misfits(inputs)) or str(error)
            raise EdgekitError("OpenVINO cannot run the model.", why) from error
        return {name: found[i] for i, name in enumerate(self._names)}

    def _misfits(self, inputs: Arrays) -> list[str]:
        """The inputs whose shapes are not those of the model; OpenVINO tells their number alone."""
        import openvino

        shapes = {name: port.partial_shape for name, port in self._ports.items()}
        return [
            f"{name} is {list(value.shape)}, not {shapes[name]}"
            for name, value in inputs.items()
            if not shapes[name].compatible(openvino.PartialShape(list(value.shape)))
        ]


def _listed(dtypes: dict[str, Any]) -> str:
    return ", ".join(f"{name} ({dtype})" for name, dtype in dtypes.items()) or "nothing"


def _compiled(
    model: Path | bytes, name: str, threads: int | None, more: Mapping[str, Any] | None = None
) -> tuple[Any, list[str], list[str]]:
    """The compiled model, its inputs' and its outputs' names.

    They are those that it was read with: compiled, one may have names of other values, too.

    Args:
        more: options beside those for computing as written.
    """
    if unavailable():
        raise EdgekitError(
            f"{name} cannot be run in OpenVINO.",
            f"{unavailable()}.",
            f"Run: {packages.install_command(REQUIRES.values())}",
        )
    import openvino

    options: dict[str, Any] = {**_AS_WRITTEN, **(more or {})}
    if threads is not None:
        options["INFERENCE_NUM_THREADS"] = threads
    core = openvino.Core()
    try:
        read = core.read_model(model)
        compiled = core.compile_model(read, "CPU", options)
        inputs, outputs = (
            [port.any_name for port in ports] for ports in (read.inputs, read.outputs)
        )
        return compiled, inputs, outputs
    except RuntimeError as error:
        raise EdgekitError(f"OpenVINO cannot load {name}.", str(error)) from error
