"""Refit: a layer behind pruned channels takes up what they added, by least squares.

With X the layer's inputs over calibration data, W its weight, and K the channels that stay,

    W', b' = argmin E |W x + b - W' x_K - b'|^2   so that   W' = W C[:, K] (C[K, K] + d I)^-1

with C the inputs' covariance and b' = b + W m - W' m_K from their mean m; without a bias C is
E[x x^T]. That is the optimal brain surgeon's update for whole channels (E. Kurtic et al., "ZipLM:
Inference-Aware Structured Pruning of Language Models", NeurIPS 2023, equation 3).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from edgekit import interrupt
from edgekit.compress.batches import Batch, outputs
from edgekit.compress.pruning.surgery import Removals, lost
from edgekit.progress import track

#: Added to the diagonal, as a share of its mean.
DAMPING = 0.01


#: A linear layer, or a convolution of one pixel, which is one over channels.
Layer = nn.Linear | nn.Conv1d | nn.Conv2d


class Moments:
    """Sums of a layer's inputs and of their products."""

    def __init__(self, layer: Layer) -> None:
        self.axis = -1 if isinstance(layer, nn.Linear) else 1
        width = layer.weight.shape[1]
        self.count = 0
        self.total = torch.zeros(width, dtype=torch.float64)
        self.products = torch.zeros(width, width)

    def add(self, x: torch.Tensor) -> None:
        """Of a call."""
        rows = x.detach().movedim(self.axis, -1).flatten(0, -2)
        self.count += len(rows)
        self.total += rows.sum(0, dtype=torch.float64)
        self.products.addmm_(rows.T.float(), rows.float())

    def second(self, centred: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """The mean, zero unless centred, and the second moment around it, float64."""
        mean = self.total / self.count if centred else torch.zeros_like(self.total)
        return mean, self.products.double() / self.count - torch.outer(mean, mean)


def layers(gone: Removals) -> dict[Layer, torch.Tensor]:
    """Layers that lose inputs, and the inputs that stay.

    Only where the others stay as they are: no normalisation is over them.
    """
    places = lost(gone)
    unlike = {
        each.port.owner for group, _ in gone.items() if not group.separate for each in group.slices
    }
    found: dict[Layer, torch.Tensor] = {}
    for group, items in gone.items():
        for each in group.consumers:
            layer = each.port.owner
            if not len(items) or layer in unlike:
                continue
            if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d) and _linear(layer):
                stays = torch.ones(layer.weight.shape[1], dtype=torch.bool)
                stays[places[id(layer.weight), 1]] = False
                found[layer] = stays.nonzero().flatten()
    return found


def observe(
    root: nn.Module, wanted: Iterable[Layer], batches: Iterable[Batch], count: int
) -> dict[Layer, Moments]:
    """Moments of layers' inputs, before anything is taken out."""
    found = {layer: Moments(layer) for layer in wanted}
    with _watched(found), torch.no_grad():
        for batch in track(batches, "Observing what layers take in", count):
            interrupt.check()
            outputs(root, batch)
    return found


def solved(
    layer: Layer, seen: Moments, stays: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The weight (out, kept, ...) and bias of a layer that has not lost its inputs yet."""
    weight, tail = layer.weight.detach().double().flatten(1), layer.weight.shape[2:]
    mean, second = seen.second(layer.bias is not None)
    kept = second[stays][:, stays]
    kept.diagonal().add_(DAMPING * float(kept.diagonal().mean()) + 1e-12)
    made = torch.linalg.solve(kept, (weight @ second[:, stays]).T).T
    shaped = made.reshape(*made.shape, *tail).to(layer.weight.dtype)
    if layer.bias is None:
        return shaped, None
    bias = layer.bias.detach().double() + weight @ mean - made @ mean[stays]
    return shaped, bias.to(layer.bias.dtype)


def _linear(layer: Layer) -> bool:
    """Whether each output is a weighted sum of the inputs at one place."""
    if isinstance(layer, nn.Linear):
        return True
    return layer.groups == 1 and all(size == 1 for size in layer.kernel_size)


@contextmanager
def _watched(found: dict[Layer, Moments]) -> Iterator[None]:
    def hook(module: Any, given: Any, result: torch.Tensor) -> None:
        found[module].add(given[0])

    hooks = [layer.register_forward_hook(hook) for layer in found]
    try:
        yield
    finally:
        for each in hooks:
            each.remove()
