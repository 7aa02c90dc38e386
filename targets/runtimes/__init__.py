"""Runtimes: one file per way to run an artifact.

Each file has ``open(artifact, threads) -> Runtime``, used by verify and bench alike. Opening
one that cannot run here raises EdgekitError saying what is missing.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np

Arrays = dict[str, np.ndarray[Any, Any]]


class Runtime(Protocol):
    """A loaded artifact. Leaving the ``with`` block frees the device."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def infer(self, inputs: Arrays) -> Arrays:
        """Outputs by name for inputs by name, batch first."""
        ...
