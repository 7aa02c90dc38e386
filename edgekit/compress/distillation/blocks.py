"""Blocks: a model's repeated layers, and which of a teacher's a student's stands for."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from itertools import chain

from torch import nn

from edgekit.compress.modules.skip import Skip
from edgekit.compress.structure import origin


@dataclass(frozen=True)
class Pair:
    """A block of the student, and the run of the teacher's blocks whose work it does.

    Attributes:
        student: its path.
        first, last: paths of the teacher's run: it takes what the first takes, and should give
            what the last gives.
        own: the block of the run whose attention it should have.
    """

    student: str
    first: str
    last: str
    own: str


def blocks(module: nn.Module) -> dict[str, list[str]]:
    """Paths of blocks by the path of the list that holds them, in order.

    A list is a ModuleList or Sequential that is in no other block and holds modules of a
    library's own, none of torch.nn.
    """
    found: dict[str, list[str]] = {}
    inside: tuple[str, ...] = ()
    for path, each in module.named_modules():
        if path.startswith(inside) or not isinstance(each, nn.ModuleList | nn.Sequential):
            continue
        items = [(name, item) for name, item in each.named_children() if not _is_place(item)]
        if items and not any(type(item).__module__.startswith("torch.nn") for _, item in items):
            found[path] = [f"{path}.{name}" if path else name for name, _ in items]
            inside += tuple(f"{item}." for item in found[path])
    return found


def pairs(
    student: nn.Module, teacher: nn.Module, by_origin: bool, chained: Collection[str]
) -> list[Pair]:
    """All of the student's blocks with their parts of the teacher; none where one has no blocks.

    Lists of the same paths are matched on their own, otherwise all blocks together. Within a
    list the teacher's blocks are divided by the origins of the student's (a dropped block's work
    is done by the last that is kept before it), else evenly.

    Args:
        by_origin: whether the student's origins are paths of this teacher.
        chained: paths of the teacher's blocks whose output is the next one's input; a run goes
            over others only where there are as many as those.
    """
    mine, theirs = blocks(student), blocks(teacher)
    if mine.keys() == theirs.keys():
        matched = [(mine[path], theirs[path]) for path in mine]
    else:
        matched = [(list(chain(*mine.values())), list(chain(*theirs.values())))]
    found = []
    for own, wanted in matched:
        if own and wanted:
            origins = [origin(student.get_submodule(path)) for path in own] if by_origin else []
            known = [origin(teacher.get_submodule(path)) or path for path in wanted]
            places = [known.index(path) if path in known else -1 for path in origins]
            found += _divided(own, wanted, places, set(wanted[:-1]) <= set(chained))
    return found


def _divided(mine: list[str], theirs: list[str], own: list[int], chained: bool) -> list[Pair]:
    """Args:
    own: the places among the teacher's that the student's had, -1 or nothing if unknown.
    """
    count = len(theirs)
    even = [max(0, round((i + 1) * count / len(mine)) - 1) for i in range(len(mine))]
    if own and own == sorted(set(own)) and own[0] >= 0:
        lasts = [*(place - 1 for place in own[1:]), count - 1]
    else:
        own = lasts = even
    if not chained:
        lasts = own
    firsts = [0, *(last + 1 for last in lasts[:-1])] if chained else own
    return [
        Pair(path, theirs[min(first, last)], theirs[last], theirs[middle])
        for path, first, last, middle in zip(mine, firsts, lasts, own, strict=True)
    ]


def _is_place(module: nn.Module) -> bool:
    """Whether it only holds the place of a block that is not there."""
    return type(module) in (nn.Identity, Skip)
