"""Importance: what a model loses with each item of a group, as plain callables.

Each measure here sees the model once and gives a function from a group to scores, (items,),
float64, larger for what matters more, and comparable from one group to another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from edgekit import interrupt
from edgekit.compress.batches import Batch, outputs
from edgekit.compress.pruning.groups import Group
from edgekit.progress import track

Importance = Callable[[Group], torch.Tensor]


@dataclass(frozen=True)
class Subject:
    """What importance is measured on.

    Attributes:
        batches: a call gives them all once more.
        count: how many there are.
    """

    root: nn.Module
    groups: Sequence[Group]
    batches: Callable[[], Iterator[Batch]]
    count: int
    seed: int

    def tracked(self, description: str) -> Iterator[Batch]:
        """The batches, with progress."""
        for batch in track(self.batches(), description, self.count):
            interrupt.check()
            yield batch


def magnitude(subject: Subject) -> Importance:
    """The squares of all weights of an item, as a share of those of its group.

    H. Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017, over coupled layers as in
    DepGraph. It needs no data. Weights of different layers do not compare, so only their shares do.
    """

    def scores(group: Group) -> torch.Tensor:
        total = torch.zeros(group.items, dtype=torch.float64)
        for each in group.slices:
            if each.port.tensor.is_floating_point():
                total += each.summed(each.port.tensor.detach().double().square())
        return total / total.sum().clamp(min=1e-30)

    return scores


def activation(subject: Subject) -> Importance:
    """The energy that an item adds to the layers behind it, as a share of its group's:

        sum over layers  E[x_i^2] |W_i|^2

    with x_i the item's channels and W_i their columns; M. Sun et al., "A Simple and Effective
    Pruning Approach for Large Language Models", ICLR 2024, for whole channels. A group that no
    layer takes in as it is (states) is judged by what makes it: E[y_i^2].
    """
    wanted: set[tuple[nn.Module, bool]] = {
        (each.port.owner, bool(group.consumers))
        for group in subject.groups
        for each in group.consumers or group.slices
        if isinstance(each.port.owner, nn.Linear | nn.Conv1d | nn.Conv2d)
    }
    energy: dict[tuple[nn.Module, bool], torch.Tensor] = {}
    with _watched(wanted, energy), torch.no_grad():
        for batch in subject.tracked("Measuring activations"):
            outputs(subject.root, batch)

    def scores(group: Group) -> torch.Tensor:
        total = torch.zeros(group.items, dtype=torch.float64)
        for each in group.consumers or group.slices:
            seen = energy.get((each.port.owner, bool(group.consumers)))
            if seen is None or (each.port.name == "bias"):
                continue
            if group.consumers:
                weight = each.port.tensor.detach().double()
                seen = seen * weight.transpose(0, 1).flatten(1).square().sum(1)
            total += seen[each.places].sum(1)
        return total / total.sum().clamp(min=1e-30)

    return scores


def taylor(subject: Subject) -> Importance:
    """The change of the outputs without an item, to first order: of the loss, for a classifier.

    With a gate on every item, the gradient of the loss at it is sum_i w_i dL/dw_i over the item's
    weights in a layer behind it; its square, averaged over samples, is the item's diagonal of the
    Fisher information (P. Molchanov et al., "Importance Estimation for Neural Network Pruning",
    CVPR 2019, equation 8). Labels are drawn from the model itself, so that samples of one batch
    do not cancel and none are needed; other outputs are put on random directions, which gives
    their squared change, as a share of their squares.
    """
    totals = {group: torch.zeros(group.items, dtype=torch.float64) for group in subject.groups}
    generator = torch.Generator().manual_seed(subject.seed)
    parameters = _gated(subject.groups)
    flags = [(p, p.requires_grad) for p in subject.root.parameters()]
    for parameter, _ in flags:
        parameter.requires_grad_(id(parameter) in parameters)
    try:
        for batch in subject.tracked("Measuring importance (Taylor)"):
            subject.root.zero_grad()
            with torch.enable_grad():
                sum(_probe(y, generator) for y in outputs(subject.root, batch)).backward()
            for group, total in totals.items():
                total += _squared_gates(group)
    finally:
        subject.root.zero_grad()
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
    return totals.__getitem__


def _gated(groups: Sequence[Group]) -> set[int]:
    """Tensors whose gradients tell of gates."""
    return {
        id(each.port.tensor)
        for group in groups
        for each in group.consumers or group.slices
        if isinstance(each.port.tensor, nn.Parameter)
    }


def _squared_gates(group: Group) -> torch.Tensor:
    """Each layer's gate apart: a sum over layers would let them cancel."""
    total = torch.zeros(group.items, dtype=torch.float64)
    for each in group.consumers or group.slices:
        tensor = each.port.tensor
        if tensor.grad is not None and each.port.name != "bias":
            total += each.summed((tensor.detach() * tensor.grad).double()).square()
    return total


def _probe(output: torch.Tensor, generator: torch.Generator) -> Any:
    """A scalar whose squared gradient is, on average, the outputs' squared change."""
    if output.dim() == 2 and output.shape[1] > 1:
        chances = output.detach().float().softmax(1)
        labels = torch.multinomial(chances, 1, generator=generator).flatten()
        return nn.functional.cross_entropy(output, labels, reduction="sum")
    direction = torch.randn(output.shape, generator=generator).to(output)
    return (output * direction).sum() / output.detach().square().sum().sqrt().clamp(min=1e-12)


@contextmanager
def _watched(
    wanted: set[tuple[nn.Module, bool]], energy: dict[tuple[nn.Module, bool], torch.Tensor]
) -> Iterator[None]:
    """Add up the squares of each channel of layers' inputs (True) or outputs (False)."""

    def hook(module: nn.Module, given: Any, result: torch.Tensor) -> None:
        for into in (True, False):
            if (module, into) in wanted:
                value = given[0] if into else result
                axis = -1 if isinstance(module, nn.Linear) else 1
                squares = value.detach().square().movedim(axis, 0).flatten(1).sum(1).double()
                energy[module, into] = energy.get((module, into), 0) + squares

    hooks = [module.register_forward_hook(hook) for module in {module for module, _ in wanted}]
    try:
        yield
    finally:
        for each in hooks:
            each.remove()


#: By the name that options give them.
MEASURES: dict[str, Callable[[Subject], Importance]] = {
    "magnitude": magnitude,
    "taylor": taylor,
    "activation": activation,
}
#: Those that look at samples.
NEED_DATA = ("taylor", "activation")
