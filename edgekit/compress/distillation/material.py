"""Material: training samples, and what the teacher says of each.

The same samples come back epoch after epoch and a teacher always says the same, so what fits in
memory is asked once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from edgekit import interrupt
from edgekit.compress.batches import Batch, batch
from edgekit.progress import track

if TYPE_CHECKING:
    from edgekit.compress.distillation.watch import Inputs
    from edgekit.data import Dataset

#: Bytes that samples and answers may be kept in.
ROOM = 2**30
#: Sizes of two batches by which is found what has an entry for every sample.
TRIES = (2, 3)


class Material:
    """Batches with the teacher's answers, on a device."""

    def __init__(
        self, data: Dataset, ask: Callable[[Inputs], Any], device: torch.device, room: int = ROOM
    ) -> None:
        """
        Args:
            data: the samples.
            ask: the teacher: inputs to containers of tensors.
            room: bytes to keep in.
        """
        self.data, self.ask, self.device, self.room = data, ask, device, room
        self._rows: Tensor | None = None
        self._inputs: dict[str, Tensor] | None = None
        self._leaves: list[Any] = []
        self._form: Any = None

    def prepare(self, indices: Sequence[int], size: int) -> None:
        """Ask for all samples that are used more than once, if what is said fits.

        Args:
            indices: of all samples to come, again for each time.
            size: samples to ask for at a time. As it is the same in every run, so are the answers.
        """
        chosen = sorted(set(indices))
        if len(indices) < 2 * len(chosen):
            return
        bytes_each = self._bytes_each()
        if bytes_each is None or bytes_each[0] * len(chosen) > self.room:
            return
        keeps_inputs = sum(bytes_each) * len(chosen) <= self.room
        for start in track(range(0, len(chosen), size), "Preparing samples"):
            interrupt.check()
            self._keep(chosen[start : start + size], start, len(chosen), keeps_inputs)
        self._rows = torch.full((len(self.data),), -1)
        self._rows[chosen] = torch.arange(len(chosen))

    def get(self, indices: Sequence[int]) -> tuple[Batch, Any]:
        """These samples, and what the teacher says of them."""
        if self._rows is None:
            asked = self._read(indices)
            return asked, self.ask(asked.inputs)
        rows = self._rows[list(indices)]
        leaves = [self._on(each[rows]) if _is_tensor(each) else each for each in self._leaves]
        answer = tree_unflatten(leaves, self._form)
        if self._inputs is None:
            return self._read(indices), answer
        inputs = {name: self._on(value[rows]) for name, value in self._inputs.items()}
        return Batch(inputs, self._labels(indices)), answer

    def _keep(self, indices: Sequence[int], start: int, count: int, keeps_inputs: bool) -> None:
        asked = self._read(indices)
        leaves, form = tree_flatten(self.ask(asked.inputs))
        if self._form is None:
            self._form = form
            self._leaves = [_empty(each, count) if _is_tensor(each) else each for each in leaves]
            if keeps_inputs:
                self._inputs = {n: _empty(value, count) for n, value in asked.inputs.items()}
        pairs = list(zip(self._leaves, leaves, strict=True))
        if self._inputs is not None:
            pairs += [(self._inputs[name], value) for name, value in asked.inputs.items()]
        for store, each in pairs:
            if _is_tensor(store):
                store[start : start + len(indices)] = each.cpu()

    def _bytes_each(self) -> tuple[int, int] | None:
        """Of a sample's answer and inputs; None if a part of the answer is no sample's own."""
        if len(self.data) < max(TRIES):
            return None
        found = []
        for size in TRIES:
            asked = self._read(range(size))
            leaves = [each for each in tree_flatten(self.ask(asked.inputs))[0] if _is_tensor(each)]
            if any(each.dim() == 0 or len(each) != size for each in leaves):
                return None
            found.append((_bytes(leaves) // size, _bytes(list(asked.inputs.values())) // size))
        return found[0]

    def _read(self, indices: Sequence[int]) -> Batch:
        read = batch(self.data, indices)
        inputs = {name: self._on(value) for name, value in read.inputs.items()}
        return Batch(inputs, self._labels(indices))

    def _labels(self, indices: Sequence[int]) -> Tensor | None:
        labels = self.data.labels
        return None if labels is None else self._on(torch.tensor([labels[i] for i in indices]))

    def _on(self, value: Tensor) -> Tensor:
        return value.to(self.device, non_blocking=True)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def _empty(like: Tensor, count: int) -> Tensor:
    return torch.empty((count, *like.shape[1:]), dtype=like.dtype)


def _bytes(tensors: list[Tensor]) -> int:
    return sum(each.numel() * each.element_size() for each in tensors)
