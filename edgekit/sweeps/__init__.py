"""Sweeps: a grid of models, precisions, targets and batches, each cell kept as it is done.

A cell is one bundle. ``grid`` says which cells there are, ``cell`` does one, ``processes`` and
``cluster`` have many done (here, or by Ray), ``store`` keeps the results, and ``run`` joins them.
"""

from edgekit.sweeps.grid import Cell, Grid
from edgekit.sweeps.result import Result
from edgekit.sweeps.run import sweep

__all__ = ["Cell", "Grid", "Result", "sweep"]
