"""Run an engine, from host arrays to host arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .cuda import Cuda
from .problem import Problem

if TYPE_CHECKING:
    from .build import Shapes

    Arrays = dict[str, np.ndarray[Any, Any]]


#: What the GPU's time of a call is spent on, in order; a CUDA event lies before and after each.
PARTS = ("to_device", "compute", "to_host")


class Engine:
    """An engine on the GPU. Leaving the ``with`` block frees the device."""

    def __init__(self, trt: Any, plan: bytes, log: Any) -> None:
        self.cuda = Cuda()
        self._runtime = trt.Runtime(log)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise Problem(
                f"TensorRT {trt.__version__} cannot load the engine on {self.cuda.name}.",
                "\n".join(log.texts("ERROR", "INTERNAL_ERROR")),
                "An engine runs only with the TensorRT and the GPU it was built for: rebuild it.",
            )
        self._context = self._engine.create_execution_context()
        # The build keeps details for the profile; naming each kernel to NVIDIA's tools costs time.
        self._context.nvtx_verbosity = trt.ProfilingVerbosity.NONE
        self._events = [self.cuda.event() for _ in range(len(PARTS) + 1)]
        self._ran = False
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        mode = trt.TensorIOMode.INPUT
        self.inputs = [n for n in names if self._engine.get_tensor_mode(n) == mode]
        self.outputs = [n for n in names if n not in self.inputs]
        self.dtypes = {n: _numpy_type(self._engine.get_tensor_dtype(n), n) for n in names}
        self.shapes = {n: self._shapes(n) for n in self.inputs}
        self._memory: dict[str, tuple[int, int]] = {}

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        for address, _size in self._memory.values():
            self.cuda.free(address)
        for event in self._events:
            self.cuda.forget(event)
        self._memory, self._events = {}, []
        self._context = self._engine = self._runtime = None
        self.cuda.close()

    def _shapes(self, name: str) -> Shapes:
        """The least, usual and greatest shape that an input may have."""
        shape = tuple(self._engine.get_tensor_shape(name))
        if -1 not in shape:
            return shape, shape, shape
        least, usual, most = self._engine.get_tensor_profile_shape(name, 0)
        return tuple(least), tuple(usual), tuple(most)

    @property
    def batches(self) -> tuple[int, int]:
        """The least and the greatest batch that it takes."""
        least, _usual, most = self.shapes[self.inputs[0]]
        return int(least[0]), int(most[0])

    def infer(self, inputs: Arrays) -> Arrays:
        """Outputs by name for one batch of inputs by name; the copies are included."""
        self._complete(inputs)
        held = {name: self._ready(name, inputs[name]) for name in self.inputs}
        places = {name: self._place(name, array.nbytes) for name, array in held.items()}
        outputs = self._outputs(held)
        start, copied, computed, ended = self._events
        self.cuda.record(start)
        for name, array in held.items():
            self.cuda.upload(places[name], array)
        self.cuda.record(copied)
        if not self._context.execute_async_v3(self.cuda.stream.value):
            raise Problem("TensorRT could not run the engine.", "See its errors above.")
        self.cuda.record(computed)
        for name, array in outputs.items():
            self.cuda.download(array, self._memory[name][0])
        self.cuda.record(ended)
        self.cuda.wait()
        self._ran = True
        return outputs

    def _outputs(self, held: Arrays) -> Arrays:
        """Empty arrays for the outputs of these inputs, with memory on the GPU for each."""
        for name, array in held.items():
            if not self._context.set_input_shape(name, array.shape):
                raise Problem(f"The engine does not take shape {array.shape} for input {name!r}.")
        outputs = {}
        for name in self.outputs:
            shape = tuple(self._context.get_tensor_shape(name))
            if -1 in shape:
                given = ", ".join(f"{n} {a.shape}" for n, a in held.items())
                raise Problem("The inputs' shapes do not fit each other.", f"Given: {given}.")
            outputs[name] = np.empty(shape, self.dtypes[name])
            self._place(name, outputs[name].nbytes)
        return outputs

    def device_times(self) -> dict[str, float]:
        """Milliseconds on the GPU of the last call, by part; empty before the first.

        They are the differences of CUDA events in the stream. The rest of a call's time is the
        host's: its own work, and waiting.
        """
        if not self._ran:
            return {}
        ends = zip(self._events, self._events[1:])
        return {name: self.cuda.elapsed(*pair) for name, pair in zip(PARTS, ends)}

    def profile(self, profiler: Any) -> None:
        """Tell an IProfiler the time of each layer in the calls that follow, which slows them."""
        self._context.profiler = profiler

    def layer_information(self, kind: Any) -> str:
        """What TensorRT says of the engine's layers, in a LayerInformationFormat."""
        text: str = self._engine.create_engine_inspector().get_engine_information(kind)
        return text

    def infer_all(self, inputs: Arrays) -> Arrays:
        """Like infer, for any number of samples: in batches, a last one too small filled up."""
        count, (least, most) = self._count(inputs), self.batches
        parts: dict[str, list[Any]] = {name: [] for name in self.outputs}
        for start in range(0, count, most):
            chunk = {n: filled(inputs[n][start : start + most], least) for n in self.inputs}
            for name, array in self.infer(chunk).items():
                parts[name].append(array[: count - start])
        return {name: np.concatenate(arrays) for name, arrays in parts.items()}

    def _count(self, inputs: Arrays) -> int:
        """The number of samples, which all inputs have."""
        self._complete(inputs)
        counts = {name: len(inputs[name]) for name in self.inputs}
        if len(set(counts.values())) > 1 or 0 in counts.values():
            told = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise Problem(f"The inputs do not have equally many samples, at least one: {told}.")
        return counts[self.inputs[0]]

    def _complete(self, inputs: Arrays) -> None:
        for name in self.inputs:
            if name not in inputs:
                raise Problem(f"Input {name!r} is missing.", f"Given: {', '.join(sorted(inputs))}.")

    def _ready(self, name: str, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The array as the engine takes it, if it does."""
        dtype, (least, _usual, most) = self.dtypes[name], self.shapes[name]
        integers = array.dtype.kind in "iu" and dtype.kind in "iu"
        if array.dtype != dtype and not integers:
            raise Problem(f"Input {name!r} is {array.dtype}; the engine takes {dtype}.")
        if array.ndim != len(least):
            raise Problem(
                f"Input {name!r} has shape {array.shape}; the engine takes {len(least)} axes."
            )
        for axis, (low, size, high) in enumerate(zip(least, array.shape, most)):
            if not low <= size <= high:
                taken = f"{low}" if low == high else f"{low} to {high}"
                raise Problem(
                    f"Input {name!r} has size {size} on axis {axis}; the engine takes {taken}.",
                    f"Its shape is {array.shape}.",
                    "Give it within the range, or build the engine for a wider one.",
                )
        return np.ascontiguousarray(array, dtype)

    def _place(self, name: str, size: int) -> int:
        """The address of at least ``size`` bytes for a tensor, kept for the next call.

        A tensor that grows gets twice what it had, so that one that grows a little with each
        call is not given new memory with each.
        """
        address, held = self._memory.get(name, (0, 0))
        if held < max(size, 1):
            if self._memory.pop(name, None) is not None:
                self.cuda.free(address)
            held = max(size, 2 * held, 1)
            address = self.cuda.allocate(held)
            self._memory[name] = (address, held)
        if not self._context.set_tensor_address(name, address):
            raise Problem(f"TensorRT refused the memory for tensor {name!r}.")
        return address


def filled(array: np.ndarray[Any, Any], batch: int) -> np.ndarray[Any, Any]:
    """The array with its samples repeated up to a full batch."""
    return np.resize(array, (batch, *array.shape[1:])) if len(array) < batch else array


def _numpy_type(dtype: Any, tensor: str) -> np.dtype[Any]:
    names = {
        "FLOAT": "float32",
        "HALF": "float16",
        "INT8": "int8",
        "UINT8": "uint8",
        "INT32": "int32",
        "INT64": "int64",
        "BOOL": "bool",
    }
    if dtype.name not in names:
        raise Problem(f"Tensor {tensor!r} is {dtype.name}, which NumPy does not have.")
    return np.dtype(names[dtype.name])
