"""Runtimes: one file per way to run an artifact.

Each file has these names, used by verify and bench alike:

- ``open(artifact, threads) -> Runtime``; where it cannot run, an EdgekitError says why.
- ``unavailable() -> str``: why artifacts cannot run here, in a few words, or ``""``.
- ``untimed() -> str``: why a latency measured here is not the target's, or ``""``.
- ``trace(artifact, inputs) -> Arrays``: intermediate values by name, for finding where drift
  begins. A runtime that keeps none returns its outputs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Any, Self

import numpy as np

Arrays = dict[str, np.ndarray[Any, Any]]


class Runtime(ABC):
    """A loaded artifact. Leaving the ``with`` block frees the device."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:  # noqa: B027 - most runtimes hold nothing to give back
        """Free what is held."""

    @property
    @abstractmethod
    def batch(self) -> int | None:
        """Samples that one call takes; None if any number."""

    @abstractmethod
    def infer(self, inputs: Arrays) -> Arrays:
        """Outputs by name for inputs by name, batch first."""
