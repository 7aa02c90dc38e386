"""Whole: an artifact that takes whole inputs in one call, whether or not it streams."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgekit.converters.kit.stream import pieces
from edgekit.pipeline import load
from edgekit.session import Session
from edgekit.targets.runtimes import Arrays, Runtime


class Whole(Runtime):
    """A streaming artifact that is given whole sequences: how it is checked against its source.

    A sequence is taken as a prompt, a few single steps and a second prompt, so that all that a
    stream does is in the outputs that are compared.
    """

    def __init__(self, runtime: Runtime, name: str) -> None:
        self._runtime = runtime
        self._session = Session.of(runtime, name)

    def close(self) -> None:
        """Free the artifact."""
        self._runtime.close()

    @property
    def batch(self) -> int | None:
        """Samples that one call takes; None if any number."""
        return self._runtime.batch

    def infer(self, inputs: Arrays) -> Arrays:
        """Outputs at all tokens, (batch, tokens, ...), by name."""
        session, length = self._session, next(iter(inputs.values())).shape[1]
        session.reset()
        calls = [
            outputs
            for start, end in pieces(length, length)
            for outputs in session.feed({n: v[:, start:end] for n, v in inputs.items()})
        ]
        return {name: np.concatenate([call[name] for call in calls], 1) for name in calls[0]}


def opened(runtime: str, artifact: Path, threads: int | None = None) -> Runtime:
    """An artifact that takes whole inputs, whether or not it streams."""
    found = load(runtime, artifact, threads)
    return Whole(found, artifact.name) if found.states else found
