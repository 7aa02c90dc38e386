"""TensorRT engines on an NVIDIA GPU, by the package that built them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.converters.kit.build import load_tensorrt, make_log
from edgekit.converters.kit.problem import NoDevice, Problem
from edgekit.errors import EdgekitError
from edgekit.model import BATCH, Dim, Input, State
from edgekit.progress import say
from edgekit.targets.runtimes import Arrays, Runtime, split

if TYPE_CHECKING:
    from edgekit.converters.kit.engine import Engine

OPENS = (".plan",)
REQUIRES = {"tensorrt_rtx": "tensorrt-rtx"}
#: The first bytes of an engine made by TensorRT-RTX.
RTX_MAGIC = b"vtrt"


def unavailable() -> str:
    """Why no engine can run here, or ``""``."""
    from edgekit.converters.kit.engine import cuda_available

    return "" if cuda_available() else "no GPU"


def untimed() -> str:
    """Why no latency can be measured here, or ``""``: an engine only runs on its own GPU."""
    return unavailable()


def trace(artifact: Path, inputs: Arrays) -> Arrays:
    """The outputs: an engine keeps no intermediate value."""
    with open(artifact) as engine:
        return engine.infer(inputs)


def open(artifact: Path, threads: int | None = None) -> Runtime:
    """Load an engine on the first GPU.

    Args:
        artifact: a ``.plan`` file.
        threads: has no meaning on a GPU; taken because every runtime takes it.

    Raises:
        EdgekitError: no GPU, no TensorRT, or an engine made for another version or GPU.
    """
    from edgekit.converters.kit.engine import Cuda, Engine

    try:
        plan = artifact.read_bytes()
    except OSError as error:
        raise EdgekitError(f"{artifact} cannot be read.", str(error)) from error
    package = "tensorrt_rtx" if plan.startswith(RTX_MAGIC) else "tensorrt"
    try:
        Cuda().close()
        trt = load_tensorrt(package)
        return _TensorRT(artifact, Engine(trt, plan, make_log(trt, say)))
    except NoDevice as problem:
        fix = "Copy the bundle to a machine with the target's GPU and verify it there."
        raise EdgekitError(f"{artifact}: not run: no GPU.", problem.why, fix) from problem
    except Problem as problem:
        raise _error(artifact, problem) from problem


class _TensorRT(Runtime):
    """A loaded engine; any number of samples is run in batches that the engine takes."""

    def __init__(self, artifact: Path, engine: Engine) -> None:
        self._artifact, self._engine = artifact, engine

    def close(self) -> None:
        """Free the engine and its memory."""
        self._engine.__exit__()

    @property
    def batch(self) -> int | None:
        """None: any number of samples is run in batches that the engine takes."""
        return None

    @property
    def inputs(self) -> tuple[Input, ...]:
        """What it takes in each call beside its states."""
        return tuple(split(self._declared(), self._engine.outputs)[0])

    @property
    def states(self) -> tuple[State, ...]:
        """What it carries from call to call."""
        return tuple(split(self._declared(), self._engine.outputs)[1])

    def _declared(self) -> list[Input]:
        """Its inputs with the ranges that it was built for."""
        engine, found = self._engine, []
        for name, bounds in engine.shapes.items():
            carried = State(name, ()).output in engine.outputs
            sizes = enumerate(zip(*bounds, strict=True))
            shape = tuple(_size(axis, carried, *three) for axis, three in sizes)
            found.append(Input(name, shape, str(engine.dtypes[name])))
        return found

    def infer(self, inputs: Arrays) -> Arrays:
        """Outputs by name for inputs by name, batch first, of any sizes in the engine's ranges."""
        sizes = {name: bounds[-1] for name, bounds in self._engine.shapes.items()}
        try:
            # A value between two parts of a model need not have the samples first.
            if all(n in inputs and inputs[n].shape == size for n, size in sizes.items()):
                return self._engine.infer(inputs)
            return self._engine.infer_all(inputs)
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
