"""TensorRT engines on an NVIDIA GPU, by the package that built them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.converters.kit.build import load_tensorrt, make_log
from edgekit.converters.kit.problem import NoDevice, Problem
from edgekit.errors import EdgekitError
from edgekit.model import BATCH, Dim, Input, State
from edgekit.progress import say
from edgekit.targets.runtimes import Arrays, Runtime, split

if TYPE_CHECKING:
    from edgekit.converters.kit.engine import Engine
    from edgekit.profiling import Layers

OPENS = (".plan",)
REQUIRES = {"tensorrt_rtx": "tensorrt-rtx"}
THREADED = False
#: The first bytes of an engine made by TensorRT-RTX.
RTX_MAGIC = b"vtrt"


def unavailable() -> str:
    """Why no engine can run here, or ``""``."""
    from edgekit.converters.kit.cuda import cuda_available

    return "" if cuda_available() else "no GPU"


def untimed() -> str:
    """Why no latency can be measured here, or ``""``: an engine only runs on its own GPU."""
    return unavailable()


def trace(artifact: Path, inputs: Arrays) -> Arrays:
    """The outputs: an engine keeps no intermediate value."""
    with open(artifact) as engine:
        return engine.infer(inputs)


def layers(artifact: Path, inputs: Arrays, threads: int | None = None) -> Layers:
    """What TensorRT says of how long each layer of the engine takes, by its profiler.

    The modules are those of the ONNX file that the engine was built from, where that lies beside
    it in the bundle, or the kit's.

    Args:
        inputs: those of one call, in a batch that the engine takes.
        threads: has no meaning on a GPU.

    Raises:
        EdgekitError: as ``open``; or TensorRT timed nothing.
    """
    from edgekit.converters.kit.profile import profile
    from edgekit.profiling import Layer, Layers

    with open(artifact) as session:
        try:
            found = profile(session.trt, session.engine, inputs, _nodes(artifact))
        except Problem as problem:
            raise _error(artifact, problem) from problem
    rows = [
        Layer(row["name"], row["operator"], row["module"], row["milliseconds"], row["class"])
        for row in found["layers"]
    ]
    return Layers(rows, found["whole_ms"], found["profiled_ms"])


def _nodes(artifact: Path) -> Mapping[str, Any]:
    """The nodes of the engine's ONNX file, as in ``kit.json``; none where there is no such file."""
    import onnx

    from edgekit.converters.kit_facts import layer_facts

    kit, source = artifact.with_name("kit.json"), artifact.with_name("model.onnx")
    if kit.is_file():
        stored: Mapping[str, Any] = json.loads(kit.read_text(encoding="utf-8"))["layers"]
        return stored
    if source.is_file():
        return layer_facts(onnx.load(str(source), load_external_data=False))
    return layer_facts(onnx.ModelProto())


def open(artifact: Path, threads: int | None = None) -> TensorRT:
    """Load an engine on the first GPU.

    Args:
        artifact: a ``.plan`` file.
        threads: has no meaning on a GPU; taken because every runtime takes it.

    Raises:
        EdgekitError: no GPU, no TensorRT, or an engine made for another version or GPU.
    """
    from edgekit.converters.kit.cuda import Cuda
    from edgekit.converters.kit.engine import Engine

    try:
        plan = artifact.read_bytes()
    except OSError as error:
        raise EdgekitError(f"{artifact} cannot be read.", str(error)) from error
    package = "tensorrt_rtx" if plan.startswith(RTX_MAGIC) else "tensorrt"
    try:
        Cuda().close()
        trt = load_tensorrt(package)
        return TensorRT(artifact, trt, Engine(trt, plan, make_log(trt, say)))
    except NoDevice as problem:
        fix = "Copy the bundle to a machine with the target's GPU and verify it there."
        raise EdgekitError(f"{artifact}: not run: no GPU.", problem.why, fix) from problem
    except Problem as problem:
        raise _error(artifact, problem) from problem


class TensorRT(Runtime):
    """A loaded engine; any number of samples is run in batches that the engine takes.

    Attributes:
        trt: the module, ``tensorrt`` or ``tensorrt_rtx``.
        engine: the kit's.
    """

    def __init__(self, artifact: Path, trt: Any, engine: Engine) -> None:
        self._artifact, self.trt, self.engine = artifact, trt, engine

    def close(self) -> None:
        """Free the engine and its memory."""
        self.engine.__exit__()

    @property
    def batch(self) -> int | None:
        """None: any number of samples is run in batches that the engine takes."""
        return None

    @property
    def inputs(self) -> tuple[Input, ...]:
        """What it takes in each call beside its states."""
        return tuple(split(self._declared(), self.engine.outputs)[0])

    @property
    def states(self) -> tuple[State, ...]:
        """What it carries from call to call."""
        return tuple(split(self._declared(), self.engine.outputs)[1])

    def _declared(self) -> list[Input]:
        """Its inputs with the ranges that it was built for."""
        engine, found = self.engine, []
        for name, bounds in engine.shapes.items():
            carried = State(name, ()).output in engine.outputs
            sizes = enumerate(zip(*bounds, strict=True))
            shape = tuple(_size(axis, carried, *three) for axis, three in sizes)
            found.append(Input(name, shape, str(engine.dtypes[name])))
        return found

    def device_times(self) -> dict[str, float]:
        """Milliseconds on the GPU, by CUDA events, of the last call (of its last batch)."""
        return self.engine.device_times()

    def infer(self, inputs: Arrays) -> Arrays:
        """Outputs by name for inputs by name, batch first, of any sizes in the engine's ranges."""
        sizes = {name: bounds[-1] for name, bounds in self.engine.shapes.items()}
        try:
            # A value between two parts of a model need not have the samples first.
            if all(n in inputs and inputs[n].shape == size for n, size in sizes.items()):
                return self.engine.infer(inputs)
            return self.engine.infer_all(inputs)
        except Problem as problem:
            raise _error(self._artifact, problem) from problem


def _size(axis: int, carried: bool, least: int, usual: int, most: int) -> int | Dim:
    """A size, or its range by the name that our models give to such: an engine keeps none.

    A cache that is usually full is that of a sliding window: it forgets, and never is too small.
    """
    if least == most:
        return least
    name = "length"
    if axis == 0:
        name = BATCH.name
    elif carried:
        name = f"window_{most}" if usual == most else "past"
    return Dim(name, least, usual, most)


def _error(artifact: Path, problem: Problem) -> EdgekitError:
    return EdgekitError(f"{artifact}: {problem.what}", problem.why, problem.fix)
