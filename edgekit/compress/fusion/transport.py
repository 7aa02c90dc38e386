"""Transport: how the units of one layer are carried onto those of another.

A plan is a joint distribution over pairs of units with uniform marginals, the optimal transport for
a cost. From it come two maps (Singh and Jaggi, "Model Fusion via Optimal Transport", 2020): a unit
of the result is the mean of those carried onto it; a unit of the other model is read from those
that it was carried to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from edgekit.progress import say

Solver = Literal["exact", "sinkhorn"]
#: Sinkhorn's limit, and how far from uniform a plan may then be without a word.
ITERATIONS, OFF = 1000, 0.01


@dataclass(frozen=True)
class Map:
    """From n units of the other model to m of the student's.

    Attributes:
        out: (n, m). The student's units are ``out.T @ units``.
        into: (n, m). The other's units are ``into @ units``.
    """

    out: Tensor
    into: Tensor


@dataclass(frozen=True)
class Transport:
    """How plans are found.

    Attributes:
        solver: ``exact``: the earth mover's plan, between equal numbers a permutation;
            ``sinkhorn``: entropy makes it soft.
        regularisation: of Sinkhorn, in units of the cost.
    """

    solver: Solver
    regularisation: float

    def plan(self, cost: Tensor) -> Tensor:
        """The plan for a cost (n, m); it sums to one."""
        import ot

        values = np.ascontiguousarray(cost.double().numpy())
        first, second = (np.full(n, 1 / n) for n in values.shape)
        if self.solver == "exact":
            found = ot.emd(first, second, values)
        else:
            found = ot.sinkhorn(
                first,
                second,
                values,
                self.regularisation,
                method="sinkhorn_stabilized",
                numItermax=ITERATIONS,
                stopThr=1e-6,
                warn=False,
            )
            off = max(
                np.abs(found.sum(1 - axis) * n - 1).max() for axis, n in enumerate(cost.shape)
            )
            if off > OFF:
                say(f"Sinkhorn ended early, {off:.0%} off: a higher regularisation is easier.")
        return torch.from_numpy(np.asarray(found))

    def map(self, alike: Tensor) -> Map:
        """The map between units that are ``alike`` (n, m), from -1 to 1."""
        plan = self.plan(1 - alike)
        return Map(plan / plan.sum(0), plan / plan.sum(1, keepdim=True))


def rotation(cross: Tensor) -> Tensor:
    """The (n, m) matrix with orthonormal columns (or rows) nearest to a cross-covariance (n, m).

    Between equal numbers it is orthogonal: the solution of the orthogonal Procrustes problem
    (Schoenemann, 1966), which is optimal transport of paired samples by a rotation.
    """
    left, _, right = torch.linalg.svd(cross.double(), full_matrices=False)
    turned: Tensor = left @ right
    return turned
