"""Run an engine: CUDA memory through the driver, no CUDA toolkit, PyCUDA or torch."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import numpy as np

from .problem import NoDevice, Problem

if TYPE_CHECKING:
    from .build import Shapes

    Arrays = dict[str, np.ndarray[Any, Any]]


class Cuda:
    """One GPU and a stream, through the driver's own library: no CUDA toolkit is needed."""

    def __init__(self) -> None:
        try:
            self.lib = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise NoDevice(
                "No CUDA device.", f"The NVIDIA driver is not installed: {error}.", "Install it."
            ) from error
        status = self.lib.cuInit(0)
        if status != 0:
            why = f"cuInit returned {status} (100 means that no device is visible)."
            raise NoDevice("No CUDA device.", why, "Run this where an NVIDIA GPU is visible.")
        self.device, self.stream = ctypes.c_int(), ctypes.c_void_p()
        context = ctypes.c_void_p()
        self.call("cuDeviceGet", ctypes.byref(self.device), 0)
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self.device)
        self.call("cuCtxSetCurrent", context)
        self.call("cuStreamCreate", ctypes.byref(self.stream), 0)

    def call(self, name: str, *arguments: Any) -> None:
        """Call a driver function; a status other than 0 is a Problem."""
        status = getattr(self.lib, name)(*arguments)
        if status != 0:
            text = ctypes.c_char_p()
            self.lib.cuGetErrorString(status, ctypes.byref(text))
            raise Problem(f"CUDA's {name} failed.", f"{(text.value or b'?').decode()} ({status}).")

    @property
    def name(self) -> str:
        text = ctypes.create_string_buffer(256)
        self.call("cuDeviceGetName", text, len(text), self.device)
        return text.value.decode()

    @property
    def capability(self) -> str:
        """The compute capability, such as "8.7"."""
        numbers = []
        for attribute in (75, 76):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
            number = ctypes.c_int()
            self.call("cuDeviceGetAttribute", ctypes.byref(number), attribute, self.device)
            numbers.append(str(number.value))
        return ".".join(numbers)

    def allocate(self, size: int) -> int:
        address = ctypes.c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size))
        return address.value

    def free(self, address: int) -> None:
        self.call("cuMemFree_v2", ctypes.c_uint64(address))

    def upload(self, address: int, array: np.ndarray[Any, Any]) -> None:
        if not array.nbytes:
            return
        source, size = ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes)
        self.call("cuMemcpyHtoDAsync_v2", ctypes.c_uint64(address), source, size, self.stream)

    def download(self, array: np.ndarray[Any, Any], address: int) -> None:
        if not array.nbytes:
            return
        target, size = ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes)
        self.call("cuMemcpyDtoHAsync_v2", target, ctypes.c_uint64(address), size, self.stream)

    def wait(self) -> None:
        self.call("cuStreamSynchronize", self.stream)

    def close(self) -> None:
        self.call("cuStreamDestroy_v2", self.stream)
        self.call("cuDevicePrimaryCtxRelease_v2", self.device)


def cuda_available() -> bool:
    """Whether there is a CUDA device."""
    try:
        Cuda().close()
    except NoDevice:
        return False
    return True


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
        self._memory = {}
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
        for name, array in held.items():
            if not self._context.set_input_shape(name, array.shape):
                raise Problem(f"The engine does not take shape {array.shape} for input {name!r}.")
            self.cuda.upload(self._place(name, array.nbytes), array)
        outputs = {}
        for name in self.outputs:
            shape = tuple(self._context.get_tensor_shape(name))
            if -1 in shape:
                given = ", ".join(f"{n} {a.shape}" for n, a in held.items())
                raise Problem("The inputs' shapes do not fit each other.", f"Given: {given}.")
            outputs[name] = np.empty(shape, self.dtypes[name])
            self._place(name, outputs[name].nbytes)
        if not self._context.execute_async_v3(self.cuda.stream.value):
            raise Problem("TensorRT could not run the engine.", "See its errors above.")
        for name, array in outputs.items():
            self.cuda.download(array, self._memory[name][0])
        self.cuda.wait()
        return outputs

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
