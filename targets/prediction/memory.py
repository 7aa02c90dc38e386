"""Memory: what a model needs on a device while it runs.

    weights + the most activations that are alive at once + inputs and outputs + the runtime's own

Where attention keeps its scores (fp32 in TensorRT, any on a CPU), they are alive twice over.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgekit.targets.prediction.counting import Counted
from edgekit.targets.prediction.machine import BYTES, Numbers, Runtime
from edgekit.targets.prediction.roofline import quantized
from edgekit.targets.rules import Rules


@dataclass(frozen=True)
class Memory:
    """Megabytes (10**6 bytes).

    Attributes:
        weights: stored numbers in the precision's dtypes.
        activations: the most that is alive at once.
        passed: inputs and outputs.
        base: what the runtime takes beside, or None where no measurement tells.
    """

    weights: float
    activations: float
    passed: float
    base: float | None

    @property
    def total(self) -> float:
        """All that is known."""
        return self.weights + self.activations + self.passed + (self.base or 0.0)


def memory_of(
    counted: Counted, runtime: Runtime, numbers: Numbers, rules: Rules, base: float | None
) -> Memory:
    """What a counted model needs in a precision."""
    whole = BYTES[numbers.float]
    chosen = sum(g.weights * g.count for g in counted.groups if quantized(g, rules))
    scheme = numbers.weight != numbers.float
    chosen = chosen if scheme else 0.0
    weights = chosen * BYTES[numbers.weight] + (counted.constants - chosen) * whole
    keeps = numbers.float not in runtime.attention
    scores = [
        2 * g.scores if keeps and g.kind == "attention" else g.scores if g.kind == "scan" else 0.0
        for g in counted.groups
    ]
    alive = np.add(counted.held, scores) if counted.held else np.zeros(1)
    return Memory(weights / 1e6, float(alive.max()) * whole / 1e6, counted.passed * 4 / 1e6, base)
