"""Costs: what each module's quantization saves in milliseconds, measured where that can be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.latency import Ratio
from edgekit.targets import Target
from edgekit.tuning.layer_times import layer_times

if TYPE_CHECKING:
    from edgekit.model import Model
    from edgekit.quantize.sensitivity import Damage
    from edgekit.targets.runtimes import Arrays

#: Bytes of one number.
BYTES = {"fp32": 4.0, "fp16": 2.0, "fp8": 1.0, "int8": 1.0, "int4": 0.5}
#: Profiles of each artifact, taken in turns; the quickest counts.
TURNS = 3


@dataclass(frozen=True)
class Costs:
    """What quantization saves.

    Attributes:
        source: how it was found; begins with ``measured`` or ``predicted``.
        milliseconds: of a call of the float model.
        saved: milliseconds by module; negative where quantizing it costs.
    """

    source: str
    milliseconds: float
    saved: Mapping[str, float]


def by_profile(
    whole: Path, quantized: Path, inputs: Arrays, damages: Sequence[Damage], ratio: Ratio
) -> Costs:
    """From ONNX Runtime's profile of the float and of the quantized artifact.

    What the profile does not know, such as a linear outside of any module, gets its share of
    the whole difference.

    Args:
        ratio: of the quantized artifact's latency to the float one's, without a profiler.
    """
    times: dict[Path, dict[str, float]] = {whole: {}, quantized: {}}
    for _ in range(TURNS):
        for artifact, best in times.items():
            for module, ms in layer_times(artifact, inputs, ratio.threads).items():
                best[module] = min(ms, best.get(module, ms))
    before, after = times[whole], times[quantized]
    saved = dict(by_share(damages, ratio).saved)
    for damage in damages:
        # A module called twice is one in the profile: its calls share what it saves.
        path = damage.module.partition("#")[0]
        calls = sum(other.module.partition("#")[0] == path for other in damages)
        if path in before and path in after:
            saved[damage.module] = (before[path] - after[path]) / calls
    return Costs("measured module by module (ONNX Runtime's profiler)", ratio.second_ms, saved)


def by_share(damages: Sequence[Damage], ratio: Ratio) -> Costs:
    """From the whole models' latencies, shared out by multiply-accumulates."""
    total = sum(damage.operations for damage in damages) or 1
    difference = ratio.second_ms - ratio.first_ms
    saved = {d.module: difference * d.operations / total for d in damages}
    return Costs("measured as a whole, shared out by operations", ratio.second_ms, saved)


def by_prediction(
    model: Model, target: Target, precision: str, damages: Sequence[Damage], batch: int
) -> Costs:
    """From what is predicted of each module in float and quantized (``targets.prediction``).

    Raises:
        EdgekitError: too little is known of the target.
    """
    from edgekit.targets.prediction import forecast
    from edgekit.targets.prediction.counting import count
    from edgekit.targets.prediction.shapes import exported

    counted = count(exported(model, batch), model.source)
    whole = forecast(counted, target, target.float_dtype)
    quantized = forecast(counted, target, precision)
    gains: dict[str, float] = {}
    for before, after in zip(whole.groups, quantized.groups, strict=True):
        gain = before.milliseconds - after.milliseconds
        gains[before.module] = gains.get(before.module, 0.0) + gain
    paths = [damage.module.partition("#")[0] for damage in damages]
    # A module called twice is counted as one: its calls share what it saves.
    saved = {
        d.module: gains.get(p, 0.0) / paths.count(p) for d, p in zip(damages, paths, strict=True)
    }
    return Costs(quantized.basis.text, whole.milliseconds, saved)
