"""Budgets: what a model may cost, and how far along the order of steps it must go."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from edgekit import interrupt
from edgekit.compress import measure
from edgekit.compress.pruning import surgery
from edgekit.compress.pruning.groups import Group
from edgekit.compress.pruning.surgery import Removals
from edgekit.compress.pruning.widths import Step, removals

if TYPE_CHECKING:
    from edgekit.model import Model

#: A step of a scan for each entry of A, in multiply-accumulates: an exponential, and the rest.
SCAN = 4
#: Nearer than this to a latency, what is measured is noise.
NEAR = 0.03


@dataclass(frozen=True)
class Budget:
    """What is limited.

    Attributes:
        limit: the most that ``measure`` may give.
        cost: what an item of a group costs, about, in the same unit.
        measure: what the model costs without some items.
        calls: of ``measure`` at most; None is as many as it takes.
        near: share of the limit that may be left: nearer, the search ends.
    """

    limit: float
    cost: Callable[[Group], float]
    measure: Callable[[Removals], float]
    calls: int | None = None
    near: float = 0.0


def shares(limit: float, found: Sequence[Group]) -> Budget:
    """Widths: the mean over all groups of what is left of each, as a share."""

    def left(gone: Removals) -> float:
        return 1 - sum(len(items) / group.items for group, items in gone.items()) / len(found)

    return Budget(limit, lambda group: 1 / (group.items * len(found)), left)


def parameters(limit: float, root: nn.Module) -> Budget:
    """Weights."""
    sizes = {id(p): tuple(p.shape) for p in root.parameters()}

    def left(gone: Removals) -> float:
        found = {key: list(shape) for key, shape in sizes.items()}
        for (tensor, axis), places in surgery.lost(gone).items():
            if tensor in found:
                found[tensor][axis] -= len(places)
        return float(sum(torch.Size(shape).numel() for shape in found.values()))

    def cost(group: Group) -> float:
        held = (s for s in group.slices if id(s.port.tensor) in sizes)
        return sum(s.places.shape[1] * s.port.tensor.numel() / s.port.size for s in held)

    return Budget(limit, cost, left)


def operations(limit: float, model: Model, calls: dict[nn.Module, int]) -> Budget:
    """Multiply-accumulates of a call.

    Args:
        calls: how often each layer's weight is used in a call (``uses``).
    """

    def left(gone: Removals) -> float:
        undo = surgery.shrink(model.module, gone)
        try:
            return float(measure.operations(_weightless(model)))
        finally:
            undo.put_back()

    return Budget(limit, lambda group: _work(group, calls), left)


def latency(
    limit: float, model: Model, calls: dict[nn.Module, int], of: Callable[[Model], float]
) -> Budget:
    """Milliseconds of a call; ``of`` gives them for a model, and takes long."""

    def left(gone: Removals) -> float:
        undo = surgery.shrink(model.module, gone)
        try:
            return of(dataclasses.replace(model, module=model.module))
        finally:
            undo.put_back()

    return Budget(limit, lambda group: _work(group, calls), left, calls=10, near=NEAR)


def search(order: Sequence[Step], budget: Budget) -> tuple[list[Step], float, float]:
    """The shortest beginning of the order that meets the budget, by bisection.

    Returns:
        The steps; what the model then costs; and what it would cost after all of them. The
        steps are all, and the costs equal, if the budget cannot be met.
    """
    now = budget.measure({})
    if now <= budget.limit:
        return [], now, now
    least = budget.measure(removals(order))
    if least > budget.limit:
        return list(order), least, least
    saved = list(accumulate((step.saved for step in order), initial=0.0))
    low, high, found, calls = 0, len(order), least, 2
    while high - low > 1 and (budget.calls is None or calls < budget.calls):
        if found > budget.limit * (1 - budget.near):
            break
        interrupt.check()
        half = (saved[low] + saved[high]) / 2
        middle = next(k for k in range(low + 1, high + 1) if saved[k] >= half or k == high - 1)
        middle = min(middle, high - 1)
        cost, calls = budget.measure(removals(order[:middle])), calls + 1
        if cost <= budget.limit:
            high, found = middle, cost
        else:
            low = middle
    return list(order[:high]), found, least


def uses(root: nn.Module, inputs: dict[str, torch.Tensor]) -> dict[nn.Module, int]:
    """How often each weight of a layer is used in a call of one sample: once a token, or pixel."""
    found: dict[nn.Module, int] = {}
    layers = (nn.Linear, nn.Conv1d, nn.Conv2d)

    def hook(module: nn.Module, given: Any, result: torch.Tensor) -> None:
        channels = result.shape[-1 if isinstance(module, nn.Linear) else 1]
        found[module] = found.get(module, 0) + result[0].numel() // channels

    hooks = [m.register_forward_hook(hook) for m in root.modules() if isinstance(m, layers)]
    try:
        with torch.no_grad():
            root(**inputs)
    finally:
        for each in hooks:
            each.remove()
    return found


def _work(group: Group, calls: dict[nn.Module, int]) -> float:
    """Multiply-accumulates of an item: weights, attention between its tokens, and scans."""
    total = 0.0
    for each in group.slices:
        port = each.port
        part = each.places.shape[1] * port.tensor.numel() / port.size
        if port.name == "weight" and port.owner in calls:
            total += part * calls[port.owner]
        elif port.name == "A_log" and port.tensor.dim() == 2:
            total += SCAN * part * calls.get(getattr(port.owner, "x_proj", None), 0)  # type: ignore[arg-type]
    if group.dimension == "heads":
        rows = [s for s in group.slices if not s.port.consumes and s.port.owner in calls]
        tokens = [calls[s.port.owner] for s in rows if s.port.name == "weight"]
        channels = max((s.places.shape[1] for s in group.consumers), default=0)
        total += 2 * channels * max(tokens, default=0) * min(tokens, default=0)
    return total


def _weightless(model: Model) -> Model:
    """A copy of a model whose tensors take no memory."""
    memo: dict[int, Any] = {}
    for tensor in (*model.module.parameters(), *model.module.buffers()):
        empty = torch.empty_like(tensor, device="meta")
        is_parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
    module = copy.deepcopy(model.module, memo)
    return dataclasses.replace(model, module=module, traced=None)
