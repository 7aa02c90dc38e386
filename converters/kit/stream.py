"""Engines that carry states: whole sequences fed in pieces, and what one call of each kind takes.

Inputs that are not states, and outputs, are (batch, tokens, ...). A state is zero before the
first call, and empty along a size that varies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Iterator, Mapping, Sequence

import numpy as np

from .engine import filled

if TYPE_CHECKING:
    from .engine import Arrays, Engine

#: Single tokens among the calls in which a whole sequence is checked.
STEPS = 5


class Stream:
    """A stream through an engine, from its start."""

    def __init__(self, engine: Engine, kit: Mapping[str, Any], samples: int) -> None:
        self.engine, self.pairs = engine, dict(kit["states"])
        self.states = {
            spec["name"]: np.zeros(_start(spec["shape"], samples), spec["dtype"])
            for spec in kit["inputs"]
            if spec["name"] in self.pairs
        }

    def feed(self, inputs: Arrays) -> Arrays:
        """The outputs at the next tokens; the states go on."""
        outputs = self.engine.infer_all({**inputs, **self.states})
        self.states = {name: outputs.pop(following) for name, following in self.pairs.items()}
        return outputs


def run_stream(engine: Engine, kit: Mapping[str, Any], inputs: Arrays) -> Arrays:
    """The outputs at all tokens: a prompt, single tokens, then the rest as a second prompt."""
    first = next(iter(inputs.values()))
    stream = Stream(engine, kit, len(first))
    given = [
        stream.feed({name: array[:, start:end] for name, array in inputs.items()})
        for start, end in pieces(first.shape[1], lengths(engine, inputs)[1])
    ]
    return {name: np.concatenate([call[name] for call in given], 1) for name in given[0]}


def pieces(length: int, most: int) -> Iterator[tuple[int, int]]:
    """Starts and ends of the calls that take a sequence, each of ``most`` tokens at most."""
    prompt = max(1, (length - STEPS) // 2)
    cuts = [0, *range(prompt, min(prompt + STEPS, length)), length]
    for start, end in zip(cuts, cuts[1:]):
        yield from ((at, min(at + most, end)) for at in range(start, end, most))


def lengths(engine: Engine, inputs: Arrays) -> tuple[int, int]:
    """The usual and the greatest number of tokens in one call."""
    _least, usual, most = engine.shapes[next(iter(inputs))]
    return int(usual[1]), int(most[1])


def calls(engine: Engine, kit: Mapping[str, Any], inputs: Arrays) -> Iterator[tuple[str, Arrays]]:
    """What is timed: a prefill of the usual length from the start, and a step after it."""
    usual, _most = lengths(engine, inputs)
    batch = engine.batches[0]
    prompt = {
        name: filled(np.take(a[:batch], np.arange(usual) % a.shape[1], axis=1), batch)
        for name, a in inputs.items()
    }
    stream = Stream(engine, kit, batch)
    yield "prefill", {**prompt, **stream.states}
    stream.feed(prompt)
    yield "step", {**{name: array[:, :1] for name, array in prompt.items()}, **stream.states}


def _start(shape: Sequence[Any], samples: int) -> tuple[int, ...]:
    return (samples, *(0 if isinstance(size, str) else size for size in shape[1:]))
