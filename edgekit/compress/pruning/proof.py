"""Proof: that the items of a group can go together, shown on the model itself.

1. Putting the items of a group in another order, in all of its slices alike, leaves the outputs as
   they are. A slice that is missing, or that is of another item, changes them.
2. The model without an item gives what it gives with that item's input weights at zero, where
   nothing normalises over the items; else it gives finite outputs of the same shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from edgekit import interrupt
from edgekit.compress.batches import Batch, outputs
from edgekit.compress.pruning import surgery
from edgekit.compress.pruning.groups import Group
from edgekit.compress.pruning.reading import Left

#: Of the largest output; float32 sums in another order differ by about a thousandth of it.
TOLERANCE = 1e-3


def proven(root: nn.Module, found: Sequence[Group], batch: Batch) -> tuple[list[Group], list[Left]]:
    """The groups that can shrink, and the others with the reason.

    Args:
        batch: that the module is run on; two samples, so that a batch is not taken for a width.
    """
    good = list(found)
    left: list[Left] = []
    for holds, reason in (
        (_reordered, "its items are not independent of their order"),
        (_removed, "its module does not run with fewer"),
    ):
        if holds(root, good, batch) is None:
            continue
        kept = []
        for group in good:
            interrupt.check()
            fault = holds(root, [group], batch)
            if fault is None:
                kept.append(group)
            else:
                left.append(Left(group.name, group.dimension, f"{reason}: {fault}"))
        good = kept
    return good, left


def _reordered(root: nn.Module, found: list[Group], batch: Batch) -> str | None:
    """None if another order of the items leaves the outputs as they are."""
    expected = _run(root, batch)
    return _compared(root, batch, lambda: surgery.reorder(root, found, 0), expected)


def _removed(root: nn.Module, found: list[Group], batch: Batch) -> str | None:
    """None if the module runs without the last item of each group, and rightly."""
    first = {group: torch.tensor([group.items - 1]) for group in found}
    separate = all(group.separate for group in found)
    undo = surgery.silence(root, first if separate else {})
    try:
        expected = _run(root, batch)
    finally:
        undo.put_back()
    return _compared(root, batch, lambda: surgery.shrink(root, first), expected, separate)


def _compared(
    root: nn.Module,
    batch: Batch,
    change: Callable[[], surgery.Undo],
    expected: list[torch.Tensor],
    equal: bool = True,
) -> str | None:
    """How the outputs differ from what was expected; None if they do not."""
    undo = surgery.Undo()
    try:
        undo = change()
        actual = _run(root, batch)
    except Exception as error:  # noqa: BLE001  whatever a stranger's module raises is the answer
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    finally:
        undo.put_back()
    for first, second in zip(expected, actual, strict=True):
        if first.shape != second.shape:
            return f"outputs of {tuple(second.shape)} instead of {tuple(first.shape)}"
        if not bool(torch.isfinite(second).all()):
            return "outputs that are not finite"
        away = float((first - second).abs().max() / first.abs().max().clamp(min=1e-12))
        if equal and away > TOLERANCE:
            return f"outputs differ by {away:.1%}"
    return None


def _run(root: nn.Module, batch: Batch) -> list[torch.Tensor]:
    with torch.no_grad():
        return [each.double() for each in outputs(root, batch)]
