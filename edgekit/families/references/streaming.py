"""Streaming: a reference model that takes frames as they come, with what it remembers as states.

A module that has ``states`` and ``forward_with`` streams:

    states: tuple[State, ...]
    forward_with(x, before) -> (y, after)

x is (b, length, features), y is (b, length, ...), an output for every frame; ``before`` and
``after`` hold a tensor for each state. From zeros, any cutting of a sequence into pieces gives
the outputs of the whole, so a sequence of any length takes the memory of its states.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Protocol, cast

from torch import Tensor, nn

from edgekit.errors import EdgekitError
from edgekit.model import Dim, Model, State

#: Frames of one call. A stream takes a longer sequence in several.
LENGTH = Dim("length", 1, 64, 256)


class Streaming(Protocol):
    """A module that streams.

    Attributes:
        states: what it carries from call to call, of a batch of 1.
    """

    states: tuple[State, ...]

    def forward_with(
        self, x: Tensor, before: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The outputs of the next frames, and the states after them, by name."""


class Carried:
    """What the parts of a module remember, during one call.

    Args:
        before: the states that the call starts with, by name.

    Attributes:
        after: filled as the parts run.
    """

    def __init__(self, before: Mapping[str, Tensor]) -> None:
        self._before = before
        self.after: dict[str, Tensor] = {}

    def take(self, state: State) -> Tensor:
        """What a state is before the call."""
        return self._before[state.name]

    def keep(self, state: State, value: Tensor) -> None:
        """What it is after."""
        self.after[state.name] = value


class EveryFrame(nn.Module):
    """A streaming module on a whole sequence, in one piece: what its stream is compared with."""

    def __init__(self, module: Streaming) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        """The outputs at every frame, (b, length, ...)."""
        y, _ = self.module.forward_with(x, start(self.module, x))
        return y


def start(module: Streaming, x: Tensor) -> dict[str, Tensor]:
    """The states before the first of the frames x: zeros, of its batch and dtype."""
    return {s.name: x.new_zeros(x.shape[0], *s.input.concrete()[1:]) for s in module.states}


def attach(model: Model) -> Model:
    """The model as a stream: each call takes the next frames, up to ``LENGTH``, and the states.

    Raises:
        EdgekitError: it does not stream.
    """
    if not hasattr(model.module, "forward_with"):
        raise EdgekitError(
            f"{model.source} cannot stream.",
            f"{type(model.module).__name__} carries nothing from one call to the next.",
            "Drop --mode stream, or give a model that streams, such as reference/lmuformer.",
        )
    module = cast(Streaming, model.module)
    (frames,) = model.inputs
    batch, _, *rest = frames.shape
    inputs = (dataclasses.replace(frames, shape=(batch, LENGTH, *rest)),)
    traced = _stream(module, frames.name)
    whole = EveryFrame(module).eval()
    return dataclasses.replace(
        model, module=whole, inputs=inputs, traced=traced, states=module.states
    )


def _stream(module: Streaming, frames: str) -> nn.Module:
    """A module of the next frames and the states, which it returns changed."""
    names = [state.name for state in module.states]
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    signature = inspect.Signature([inspect.Parameter(n, kind) for n in ("self", frames, *names)])

    class Stream(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, **given: Tensor) -> tuple[Tensor, ...]:
            y, after = self.module.forward_with(given[frames], given)
            return (y, *(after[name] for name in names))

    # torch.export pairs shapes with the names of parameters, and loses those behind two stars.
    Stream.forward.__signature__ = signature  # type: ignore[attr-defined]
    return Stream().eval()
