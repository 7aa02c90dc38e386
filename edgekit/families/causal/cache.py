"""Cache: what a model remembers, as named tensors instead of transformers' objects.

A model asks it for the same things as it asks of a ``transformers.Cache``, and is always told
that nothing is remembered: so it takes its path for many tokens for a single one too, and that
path continues from the cache's tensors, since the functions in it are ours.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch

from edgekit.errors import EdgekitError
from edgekit.model import Dim, State
from edgekit.operators.latest import latest

POSITION = "position"


class Cache:
    """The states before a call, and those after it.

    Args:
        before: by name; one that is absent starts at zero, or empty.
        bounded: the keys among them that do not reach back to the first token.

    Attributes:
        before: as given.
        after: by name, filled as the model runs, in the order of its layers.
        windows: how far back the attention that reads a key or value sees, where it is bounded.
        asked: whether the model wanted to know the position of its first token.
    """

    def __init__(
        self, before: Mapping[str, torch.Tensor] | None = None, bounded: Collection[str] = ()
    ) -> None:
        self.before = dict(before or {})
        self._bounded = bounded
        self.after: dict[str, torch.Tensor] = {}
        self.windows: dict[str, int] = {}
        self.asked = False
        self._layer = 0
        self._prefixed: torch.Tensor | None = None
        self._latest: tuple[str, ...] = ()
        self._unread: set[str] = set()

    # What a model asks.

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> None:
        """Nothing: the convolution takes it in ``update_conv_state``."""
        self._layer = layer_idx

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> None:
        """Nothing: the recurrence takes it in ``scan``."""
        self._layer = layer_idx

    def is_recording_past(self, layer_idx: int) -> bool:
        """No: that is for taking back tokens."""
        return False

    def get_seq_length(self, layer_idx: int = 0) -> Any:
        """The position of the first token: an integer, symbolic in a trace, or a 0-d tensor."""
        self.asked = True
        if POSITION in self.before:
            return self.before[POSITION][0]
        whole = [n for n in self.before if n.startswith("key_") and n not in self._bounded]
        return self.before[whole[0]].shape[2] if whole else 0

    def get_query_offset(self, layer_idx: int = 0) -> Any:
        """As ``get_seq_length``; transformers' own masks ask for it."""
        return self.get_seq_length(layer_idx)

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[Any, int]:
        """How many keys a mask is for, and the position of the first."""
        return self.get_seq_length(layer_idx) + query_length, 0

    def update_conv_state(
        self, x: torch.Tensor, layer_idx: int, state_idx: int = 0, conv_kernel_size: int = 0
    ) -> torch.Tensor:
        """The last inputs of a causal convolution, and then ``x`` (b, channels, T)."""
        self._layer = layer_idx
        name = f"conv_{layer_idx}" + (f"_{state_idx}" if state_idx else "")
        kept = conv_kernel_size - 1
        past = self._take(name, x, (x.shape[0], x.shape[1], kept))
        self._prefixed = torch.cat([past, x], -1)
        self.after[name] = self._prefixed[..., -kept:]
        return self._prefixed

    def update_recurrent_state(
        self, state: torch.Tensor, layer_idx: int, state_idx: int = 0
    ) -> torch.Tensor:
        """Nothing to do: ``scan`` has kept it.

        Raises:
            EdgekitError: it has not: the recurrence of this layer is not one of ours.
        """
        if f"scan_{layer_idx}" not in self.after:
            raise EdgekitError(
                f"Layer {layer_idx} has a recurrence that edgekit does not know.",
                "It would be traced as a loop over the tokens, of one length only.",
                "Write its equation as an operator in edgekit/operators and name the function "
                "in edgekit/families/causal/opaque.py.",
            )
        return state

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer_idx: int, *_: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """All keys and values so far, (b, g, S, d)."""
        self._layer = layer_idx
        names = (f"key_{layer_idx}", f"value_{layer_idx}")
        for name, new in zip(names, (key, value), strict=True):
            shape = (*new.shape[:2], 0, new.shape[3])
            self.after[name] = torch.cat([self._take(name, new, shape), new], 2)
        self._latest = names
        self._unread.update(names)
        return self.after[names[0]], self.after[names[1]]

    # What our functions ask.

    def is_prefixed(self, x: torch.Tensor) -> bool:
        """Whether a convolution's input begins with the inputs before it."""
        return x is self._prefixed

    def scan(self, like: torch.Tensor, shape: tuple[int, ...]) -> tuple[str, torch.Tensor]:
        """The name and tensor of the state that the current layer's next recurrence starts from."""
        names = (f"scan_{self._layer}" + (f"_{i}" if i else "") for i in range(len(self.after) + 1))
        name = next(name for name in names if name not in self.after)
        return name, self._take(name, like, shape)

    def read(self, window: int | None) -> None:
        """The attention over the latest keys sees this far: keep no more than it will need."""
        for name in self._latest:
            if window is not None:
                self.windows[name] = window
                self.after[name] = latest(self.after[name], window - 1)
        self._unread.difference_update(self._latest)
        self._latest = ()

    # What is exported.

    def check_read(self) -> None:
        """Raises EdgekitError if an attention other than ours has used the keys and values."""
        if self._unread:
            layer = min(self._unread).partition("_")[2]
            raise EdgekitError(
                f"Layer {layer} has an attention of its own, which edgekit cannot replace.",
                "It does not ask transformers for an attention function, and what it hides from a "
                "token is not known.",
                "Use mode whole with a fixed length, as in --input input_ids:1x128:int64.",
            )

    def advance(self, tokens: int) -> None:
        """Count the tokens that have been seen, where that is a state."""
        if POSITION in self.before:
            self.after[POSITION] = self.before[POSITION] + tokens

    def states(self, past: Dim) -> tuple[State, ...]:
        """What a run has been found to remember, for a batch of one.

        Args:
            past: how many positions attention remembers.
        """
        found = [State(name, self._shape(name, past)) for name in self.after]
        whole = any(n.startswith("key_") and n not in self.windows for n in self.after)
        if self.asked and not whole:
            found.append(State(POSITION, (1,), "int64"))
        return tuple(found)

    def _shape(self, name: str, past: Dim) -> tuple[int | Dim, ...]:
        sizes: list[int | Dim] = list(self.after[name].shape)
        if name.startswith(("key_", "value_")):
            seen = self.windows[name] - 1 if name in self.windows else None
            sizes[2] = past if seen is None else Dim(f"window_{seen}", 0, seen, seen)
        return tuple(sizes)

    def _take(self, name: str, like: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        if name in self.before:
            return self.before[name]
        return like.new_zeros(shape)
