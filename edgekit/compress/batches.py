"""Samples as batches of tensors, for passes that run a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from edgekit.data import Dataset


@dataclass(frozen=True)
class Batch:
    """Inputs by name, batch first, and the class of each sample, or None."""

    inputs: dict[str, torch.Tensor]
    labels: torch.Tensor | None

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))


def batches(data: Dataset, size: int, order: Sequence[int] | None = None) -> Iterator[Batch]:
    """The samples in batches of ``size``; the last may be smaller.

    Args:
        order: indices of the samples; None is all, as they come.
    """
    chosen = range(len(data)) if order is None else order
    for start in range(0, len(chosen), size):
        yield batch(data, chosen[start : start + size])


def batch(data: Dataset, indices: Sequence[int]) -> Batch:
    """These samples together."""
    import torch

    samples = [data.read(index) for index in indices]
    inputs = {
        name: torch.stack([torch.from_numpy(sample[name]) for sample in samples])
        for name in samples[0]
    }
    labels = None if data.labels is None else torch.tensor([data.labels[i] for i in indices])
    return Batch(inputs, labels)


def outputs(module: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, ...]:
    """What a module gives for a batch."""
    import torch

    result = module(**batch.inputs)
    return (result,) if isinstance(result, torch.Tensor) else tuple(result)
