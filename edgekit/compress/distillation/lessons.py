"""Lessons: what is compared in a step. A lesson holds all that learns: the student, projections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edgekit.compress.distillation import losses
from edgekit.compress.distillation.blocks import Pair
from edgekit.compress.distillation.projections import Projections, aligned
from edgekit.compress.distillation.watch import Inputs, Seen, Watch, floats
from edgekit.errors import EdgekitError


class Outputs(nn.Module):
    """The outputs: by divergence or by square, each as its kind says."""

    def __init__(self, kinds: Sequence[str], temperature: float) -> None:
        super().__init__()
        self.kinds, self.temperature = tuple(kinds), temperature

    def forward(self, seen: Seen, told: Seen, labels: Tensor | None) -> Tensor:
        """(batch,)"""
        pairs = zip(self.kinds, seen["outputs"], told["outputs"], strict=True)
        return _sum(
            losses.divergence(mine, theirs, self.temperature)
            if kind == "kl"
            else losses.squared(mine, theirs)
            for kind, mine, theirs in pairs
        )


class Labels(nn.Module):
    """The first output and the samples' classes."""

    def forward(self, seen: Seen, told: Seen, labels: Tensor | None) -> Tensor:
        """(batch,)"""
        if labels is None:
            raise ValueError("no labels")
        return losses.labelled(seen["outputs"][0], labels)


class Features(nn.Module):
    """What each block gives, and what the end of its teacher's run gives."""

    def __init__(self, pairs: Sequence[Pair], seen: Seen, told: Seen) -> None:
        super().__init__()
        self.ends = [(pair.student, pair.last) for pair in pairs]
        self.maps = nn.ModuleList(
            Projections(_both(seen["features"], told["features"], *end)) for end in self.ends
        )

    def forward(self, seen: Seen, told: Seen, labels: Tensor | None) -> Tensor:
        """(batch,): the mean over blocks."""
        found = [
            _distance(_both(seen["features"], told["features"], *end), maps)
            for end, maps in zip(self.ends, self.maps, strict=True)
        ]
        return _sum(found) / len(found)


class Attention(nn.Module):
    """How positions meet in each block and in its own block of the teacher.

    By attention relations or probabilities where both attend, else by what their mixers give.
    """

    def __init__(self, pairs: Sequence[Pair], seen: Seen, told: Seen) -> None:
        super().__init__()
        self.ends = [(pair.student, pair.own) for pair in pairs]
        attends = [_attending(seen, told, *end) for end in self.ends]
        #: Pairs that attend in ways that cannot be compared.
        self.differing = [
            f"{mine} and {theirs}"
            for attend, (mine, theirs) in zip(attends, self.ends, strict=True)
            if not attend and (_calls(seen, mine) or _calls(told, theirs))
        ]
        self.maps = nn.ModuleList(
            nn.Identity() if attend else Projections(_both(seen["mixing"], told["mixing"], *end))
            for end, attend in zip(self.ends, attends, strict=True)
        )

    def forward(self, seen: Seen, told: Seen, labels: Tensor | None) -> Tensor:
        """(batch,): the mean over blocks."""
        found = []
        for (mine, theirs), maps in zip(self.ends, self.maps, strict=True):
            if isinstance(maps, Projections):
                mixed = _both(seen["mixing"], told["mixing"], mine, theirs)
                found.append(_distance(mixed, maps))
                continue
            samples = len(seen["outputs"][0])
            calls = zip(seen["attention"][mine], told["attention"][theirs], strict=True)
            each = [
                losses.relations(a, b, samples)
                if len(a) == 3
                else losses.probabilities(a[0], b[0], samples)
                for a, b in calls
            ]
            found.append(_sum(each) / len(each))
        return _sum(found) / len(found)


class Whole(nn.Module):
    """The student runs by itself and is judged by several terms."""

    def __init__(self, student: nn.Module, watch: Watch, terms: Sequence[tuple[float, nn.Module]]):
        """
        Args:
            watch: of the student.
            terms: weights and terms: what was seen in the student, what in the teacher, and labels
                to (batch,).
        """
        super().__init__()
        self.student, self.watch = student, watch
        self.weights = [weight for weight, _ in terms]
        self.terms = nn.ModuleList(term for _, term in terms)

    def forward(self, inputs: Inputs, told: Seen, labels: Tensor | None) -> Tensor:
        """(batch,)"""
        seen = self.watch(inputs)
        return _sum(
            weight * term(seen, told, labels)
            for weight, term in zip(self.weights, self.terms, strict=True)
        )


class Layers(nn.Module):
    """Each block takes what its teacher's run takes, and is judged by what that gives.

    The blocks learn at once and apart: Z. Yao et al., "ZeroQuant", NeurIPS 2022, section 3.3.
    """

    def __init__(self, student: nn.Module, pairs: Sequence[Pair]) -> None:
        super().__init__()
        self.student, self.pairs = student, list(pairs)

    def forward(self, inputs: Inputs, told: Seen, labels: Tensor | None) -> Tensor:
        """(batch,): the mean over blocks."""
        found = []
        for pair in self.pairs:
            given, named = told["calls"][pair.first]
            mine = floats(self.student.get_submodule(pair.student)(*given, **named))
            sides = aligned(mine, told["features"][pair.last], f"{pair.student} and {pair.last}")
            if any(a.shape != b.shape for a, b in sides):
                raise _too_narrow(pair, sides)
            each = [losses.relative(a, b) for a, b in sides]
            found.append(_sum(each) / len(each))
        return _sum(found) / len(found)


def _both(
    seen: dict[str, list[Tensor]], told: dict[str, list[Tensor]], mine: str, theirs: str
) -> list[tuple[Tensor, Tensor]]:
    return aligned(seen.get(mine, []), told.get(theirs, []), f"{mine} and {theirs}")


def _distance(sides: list[tuple[Tensor, Tensor]], maps: Any) -> Tensor:
    mine = maps([a for a, _ in sides])
    each = [losses.relative(a, b) for a, (_, b) in zip(mine, sides, strict=True)]
    return _sum(each) / len(each)


def _attending(seen: Seen, told: Seen, mine: str, theirs: str) -> bool:
    """Whether both attend, as often, in the same way and over the same positions."""

    def form(calls: list[tuple[Tensor, ...]]) -> list[list[tuple[int, ...]]]:
        # Batch and positions of queries, keys and values; all but the heads of probabilities.
        return [
            [(len(t), *(t.shape[2:] if len(call) == 1 else t.shape[2:3])) for t in call]
            for call in calls
        ]

    own, wanted = _calls(seen, mine), _calls(told, theirs)
    return bool(own and wanted) and form(own) == form(wanted)


def _calls(seen: Seen, path: str) -> list[tuple[Tensor, ...]]:
    """The attentions in a block."""
    found: list[tuple[Tensor, ...]] = seen.get("attention", {}).get(path, [])
    return found


def _sum(values: Any) -> Tensor:
    first, *others = values
    total: Tensor = torch.stack([first, *others]).sum(0)
    return total


def _too_narrow(pair: Pair, sides: list[tuple[Tensor, Tensor]]) -> EdgekitError:
    mine, theirs = sides[0]
    return EdgekitError(
        f"{pair.student} cannot be trained alone.",
        f"It gives {tuple(mine.shape[1:])} a sample where the teacher's {pair.last} gives "
        f"{tuple(theirs.shape[1:])}: a block learns alone where it is as wide as the teacher's.",
        "Leave layerwise_steps at 0, and add features to the losses.",
    )
