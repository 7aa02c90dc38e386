"""TensorRT engines on an NVIDIA GPU, by the package that built them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.converters.kit.build import load_tensorrt, make_log
from edgekit.converters.kit.problem import NoDevice, Problem
from edgekit.errors import EdgekitError
from edgekit.progress import say
from edgekit.targets.runtimes import Arrays, Runtime

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

    def infer(self, inputs: Arrays) -> Arrays:
        """Outputs by name for inputs by name, batch first."""
        try:
            return self._engine.infer_all(inputs)
        except Problem as problem:
            raise _error(self._artifact, problem) from problem


def _error(artifact: Path, problem: Problem) -> EdgekitError:
    return EdgekitError(f"{artifact}: {problem.what}", problem.why, problem.fix)
