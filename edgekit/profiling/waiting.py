"""Layers on an NVIDIA GPU by ONNX Runtime's profiler, in a process where each kernel is waited for.

The profiler's clock is the host's: on a GPU it would time how long kernels take to be *started*.
With ``CUDA_LAUNCH_BLOCKING=1`` a start returns when the kernel is done. CUDA reads that when it
starts, so it takes a process of its own, ``python -m edgekit.profiling.waiting``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.errors import EdgekitError
from edgekit.profiling import CALLS, WARMUP, Layer, Layers

if TYPE_CHECKING:
    from edgekit.targets.runtimes import Arrays

#: Makes CUDA wait for each kernel.
WAIT = {"CUDA_LAUNCH_BLOCKING": "1"}


def layers(runtime: str, artifact: Path, inputs: Arrays, threads: int | None) -> Layers:
    """The layers of one call; its time without the profiler is that of a call that waits for none.

    Args:
        runtime: a runtime with ``open_session(artifact, threads, options)``.

    Raises:
        EdgekitError: the artifact cannot run here.
    """
    import numpy as np

    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder) / "inputs.npz", Path(folder) / "layers.json"
        np.savez(given, **inputs)  # type: ignore[arg-type]
        command = [sys.executable, "-m", "edgekit.profiling.waiting", runtime, str(artifact)]
        command += [str(given), str(threads or 0), str(found)]
        ran = subprocess.run(
            command, env={**os.environ, **WAIT}, capture_output=True, text=True, check=False
        )
        if ran.returncode != 0 or not found.exists():
            last = ran.stderr.strip().splitlines()[-1:] or [f"exit code {ran.returncode}"]
            raise EdgekitError(f"{artifact} cannot be profiled in {runtime}.", last[0])
        report = json.loads(found.read_text(encoding="utf-8"))
    return Layers(
        [Layer(**layer) for layer in report["layers"]],
        _whole(runtime, artifact, inputs, threads),
        report["profiled"],
    )


def _whole(runtime: str, artifact: Path, inputs: Arrays, threads: int | None) -> float:
    """Milliseconds of the quickest call here, from inputs on the device to outputs on it."""
    from edgekit.find import find

    with find("runtimes", runtime).open(artifact, threads) as session:
        times: list[float] = []
        for _ in range(WARMUP + CALLS):
            session.infer(inputs)
            times.append(session.device_times()["compute"])
    return min(times[WARMUP:])


def main(runtime: str, artifact: str, given: str, threads: str, out: str) -> None:
    """Write the layers of an artifact, in this process, to a file."""
    import numpy as np

    from edgekit.find import find
    from edgekit.profiling.onnxruntime import layers

    open_session = find("runtimes", runtime).open_session
    with np.load(given, allow_pickle=False) as arrays:
        inputs = {name: arrays[name] for name in arrays.files}
    path, count = Path(artifact), int(threads) or None
    found = layers(path, inputs, lambda options: open_session(path, count, options))
    report = {"layers": [asdict(layer) for layer in found], "profiled": found.profiled}
    Path(out).write_text(json.dumps(report), encoding="utf-8")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except EdgekitError as error:
        sys.exit(f"{error.what} {error.why}")
