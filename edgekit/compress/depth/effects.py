"""Effects: how far a model's outputs move when blocks are left out.

The effect of leaving out a set of blocks is the squared distance of the outputs over their squares,

    sum_x |f(x) - f'(x)|^2 / sum_x |f(x)|^2,

over samples x. Where a sample has a timestep, samples are grouped into levels of noise, and the
effect is the mean of the levels', so that each level counts the same however many samples it has
and however large its outputs are.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from edgekit import files, interrupt
from edgekit.compress.batches import Batch, batches, outputs
from edgekit.compress.depth.stacks import Stack
from edgekit.data import Dataset
from edgekit.progress import track

#: Groups of equal width that timesteps are put into.
LEVELS = 10
TIMESTEPS = ("timestep", "timesteps")
#: A block: its stack's path and its place there.
Block = tuple[str, int]


class Effects:
    """Effects on one model, measured when they are asked for.

    Args:
        module: is changed while a measurement runs, and is then as before.
        data: what is measured on.
        size: samples of a call.
        by_level: group samples by their timestep.
        folder: where effects are kept; None keeps nothing.
    """

    def __init__(
        self,
        module: nn.Module,
        stacks: Sequence[Stack],
        data: Dataset,
        size: int,
        by_level: bool,
        folder: Path | None,
    ) -> None:
        self.module, self.stacks = module, {stack.path: stack for stack in stacks}
        self._batches = list(batches(data, size))
        self._key = files.digest([data.fingerprint, size, by_level, _sums(module)])
        self._path = folder / "effects.json" if folder else None
        self._known = self._read()
        levels = [_levels(batch) for batch in self._batches]
        self._levels = _grouped(torch.cat(levels)) if by_level else torch.zeros(len(data)).long()
        self._expected: list[tuple[Tensor, ...]] = []

    def of(self, blocks: Iterable[Block]) -> float:
        """The effect of leaving these blocks out."""
        named = sorted(set(blocks))
        key = " ".join(f"{path}.{place}" for path, place in named)
        if key not in self._known:
            interrupt.check()
            self._run_whole()
            with left_out(self.module, self.stacks, named):
                self._known[key] = self._measure()
            self._write()
        return self._known[key]

    @torch.no_grad()
    def _measure(self) -> float:
        wrong, total = [], []
        for batch, expected in zip(self._batches, self._expected, strict=True):
            actual = outputs(self.module, batch)
            differences = (a - b for a, b in zip(expected, actual, strict=True))
            wrong.append(_squares(differences))
            total.append(_squares(expected))
        return _relative(torch.cat(wrong), torch.cat(total), self._levels)

    @torch.no_grad()
    def _run_whole(self) -> None:
        """What all is compared with; once."""
        if not self._expected:
            self._expected = [outputs(self.module, batch) for batch in self._batches]

    def _read(self) -> dict[str, float]:
        if self._path is None or not self._path.exists():
            return {}
        held = json.loads(self._path.read_text(encoding="utf-8"))
        return dict(held["effects"]) if held["key"] == self._key else {}

    def _write(self) -> None:
        if self._path is not None:
            held = {"key": self._key, "effects": self._known}
            files.write_text(self._path, json.dumps(held, indent=1))


def choose(effects: Effects, count: int, remeasure: bool) -> list[Block]:
    """The blocks to drop, those of the least effect; every stack keeps one.

    Args:
        count: how many, fewer than there are by one a stack.
        remeasure: take them one by one, and measure the others again without those that are gone.
    """
    left = {path: set(stack.skips) for path, stack in effects.stacks.items()}
    gone: list[Block] = []
    ranked: list[Block] = []
    while len(gone) < count:
        if remeasure or not ranked:
            text = f"Effects of blocks ({len(gone)} of {count} found)"
            ranked = _ranked(effects, left, gone, text)
        path, place = ranked.pop(0)
        if len(left[path]) > 1:
            left[path].remove(place)
            gone.append((path, place))
    return gone


@contextmanager
def left_out(
    module: nn.Module, stacks: Mapping[str, Stack], blocks: Iterable[Block]
) -> Iterator[None]:
    """The module without some blocks, for a while."""
    before = []
    try:
        for path, place in blocks:
            held = stacks[path].blocks(module)
            before.append((held, place, held[place]))
            held[place] = stacks[path].skips[place]
        yield
    finally:
        for held, place, block in before:
            held[place] = block


def _ranked(
    effects: Effects, left: Mapping[str, set[int]], gone: list[Block], text: str
) -> list[Block]:
    """The blocks that may go, least effect first."""
    possible = [
        (path, place)
        for path, places in left.items()
        for place in sorted(places)
        if len(places) > 1
    ]
    scores = {block: effects.of([*gone, block]) for block in track(possible, text)}
    return sorted(possible, key=lambda block: scores[block])


def _squares(tensors: Iterable[Tensor]) -> Tensor:
    """The sum of each sample's squares (b,)."""
    found = [each.double().flatten(1).square().sum(1) for each in tensors]
    return torch.stack(found).sum(0)


def _levels(batch: Batch) -> Tensor:
    """Each sample's timestep (b,), or 0."""
    for name in TIMESTEPS:
        if name in batch.inputs:
            return batch.inputs[name].double().reshape(len(batch), -1).mean(1)
    return torch.zeros(len(batch), dtype=torch.float64)


def _grouped(times: Tensor) -> Tensor:
    """The level of each sample: timesteps between the least and the most, in equal parts."""
    span = float(times.max() - times.min()) or 1.0
    return ((times - times.min()) / span * LEVELS).long().clamp(max=LEVELS - 1)


def _relative(wrong: Tensor, total: Tensor, levels: Tensor) -> float:
    """The mean over levels of squared errors over squares."""
    zero = torch.zeros(int(levels.max()) + 1, dtype=torch.float64)
    errors, squares = zero.index_add(0, levels, wrong), zero.index_add(0, levels, total)
    return float((errors[squares > 0] / squares[squares > 0]).mean()) if squares.any() else 0.0


def _sums(module: nn.Module) -> list[float]:
    """What other weights of the same model would differ in."""
    return [float(value.detach().sum(dtype=torch.float64)) for value in module.parameters()]
