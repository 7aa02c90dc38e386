"""Layer times: how long each module of the user's code takes, by ONNX Runtime's profiler."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.targets.runtimes.onnxruntime import layers

if TYPE_CHECKING:
    from edgekit.targets.runtimes import Arrays


def layer_times(artifact: Path, inputs: Arrays, threads: int | None) -> dict[str, float]:
    """Milliseconds of each module in one call; what belongs to none counts for ``''``."""
    times: dict[str, float] = {}
    for layer in layers(artifact, inputs, threads):
        times[layer.module] = times.get(layer.module, 0.0) + layer.milliseconds
    return times
