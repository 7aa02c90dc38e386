"""Projections: what makes features of another width comparable."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from edgekit.errors import EdgekitError


class Projections(nn.Module):
    """A learned linear map from each of a block's features to its teacher's, where widths differ.

    Used in training only: A. Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015.
    """

    def __init__(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        """
        Args:
            pairs: examples, the student's and the teacher's, as ``aligned`` gives them.
        """
        super().__init__()
        self.axes = [width_axis(mine, theirs) for mine, theirs in pairs]
        self.maps = nn.ModuleList(
            nn.Identity()
            if axis is None
            else nn.Linear(mine.shape[axis], theirs.shape[axis], device=mine.device)
            for axis, (mine, theirs) in zip(self.axes, pairs, strict=True)
        )

    def forward(self, mine: Sequence[Tensor]) -> list[Tensor]:
        """The student's features as wide as the teacher's."""
        return [
            values if axis is None else project(values.movedim(axis, -1)).movedim(-1, axis)
            for values, axis, project in zip(mine, self.axes, self.maps, strict=True)
        ]


def aligned(
    mine: Sequence[Tensor], theirs: Sequence[Tensor], where: str
) -> list[tuple[Tensor, Tensor]]:
    """A block's features side by side; streams that one side has joined are joined on the other.

    Args:
        where: what errors should call the two blocks.

    Raises:
        EdgekitError: they differ in more than width.
    """
    for first, second in ((mine, theirs), (_joined(mine), _joined(theirs))):
        if first and len(first) == len(second):
            pairs = list(zip(first, second, strict=True))
            if all(_comparable(a, b) for a, b in pairs):
                return pairs
    raise EdgekitError(
        f"The features of {where} cannot be compared.",
        f"The student gives {_shapes(mine)}, the teacher {_shapes(theirs)}; only widths may "
        "differ, not positions.",
        "Distil by logits alone, or choose a teacher with the same positions.",
    )


def width_axis(mine: Tensor, theirs: Tensor) -> int | None:
    """The axis of channels if the two differ there, or None: they are of one shape."""
    if mine.shape == theirs.shape:
        return None
    differing = [i for i, (a, b) in enumerate(zip(mine.shape, theirs.shape, strict=True)) if a != b]
    return differing[0]


def _comparable(mine: Tensor, theirs: Tensor) -> bool:
    if mine.dim() != theirs.dim() or mine.dim() < 2:
        return False
    last = mine.dim() - 1
    widths = {last} if last != 3 else {1, last}
    differing = {i for i in range(mine.dim()) if mine.shape[i] != theirs.shape[i]}
    return len(differing) <= 1 and differing <= widths


def _joined(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Streams (batch, tokens, width) one behind the other, if they are as wide."""
    ends = {(each.dim(), len(each), each.shape[2:]) for each in tensors}
    if len(ends) != 1 or tensors[0].dim() != 3:
        return []
    return [torch.cat(list(tensors), 1)]


def _shapes(tensors: Sequence[Tensor]) -> str:
    return ", ".join("x".join(map(str, each.shape)) for each in tensors) or "nothing"
