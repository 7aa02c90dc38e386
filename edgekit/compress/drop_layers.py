"""drop_layers: a model with fewer blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from edgekit.compress import Context, structure
from edgekit.errors import EdgekitError
from edgekit.progress import say

if TYPE_CHECKING:
    from edgekit.compress.depth.effects import Block
    from edgekit.compress.depth.stacks import Stack
    from edgekit.model import Model


@dataclass(frozen=True)
class DropLayers:
    """Drop the blocks that a model's outputs depend on least (depth pruning by ablation).

    A block's effect is the relative squared error of the outputs, on calibration data, with the
    block left out. Give one of ``count``, ``ratio`` and ``keep``; the last needs no data.
    The measure and the averaging are those of Yang et al., Amber-Image (2026), section 3.

    Attributes:
        count: blocks to drop.
        ratio: share of the blocks to drop, between 0 and 1.
        keep: places of the blocks to keep, from 0, in one stack.
        stack: glob of the paths of the stacks that blocks are dropped from (``*layers``).
        average: let a kept block start as the mean of itself and the dropped blocks that are
            nearest to it and of its shapes, as the paper does before distillation. In small
            models kept blocks do better as they are, before distillation and after it
            (benchmarks/amber.py); neighbours in a stack of 60 are more alike.
        remeasure: drop one block at a time, and measure the rest anew after each; else measure
            once.
        timesteps: for a model with a timestep, ``levels`` lets every level of noise count the
            same, ``samples`` every sample's squared error.
        samples: of calibration data that effects are measured on, at most.
        batch_size: samples of a call.
    """

    count: int | None = None
    ratio: float | None = None
    keep: tuple[int, ...] | None = None
    stack: str = "*"
    average: bool = False
    remeasure: bool = True
    timesteps: Literal["levels", "samples"] = "levels"
    samples: int = 64
    batch_size: int = 16

    def __post_init__(self) -> None:
        given = [name for name in ("count", "ratio", "keep") if getattr(self, name) is not None]
        if len(given) != 1:
            raise EdgekitError(
                "drop_layers takes one of count, ratio and keep.",
                f"Given: {', '.join(given) or 'none'}.",
                "Write drop_layers:count=6, drop_layers:ratio=0.5 or drop_layers:keep=[0,2,4].",
            )
        if self.ratio is not None and not 0 < self.ratio < 1:
            raise EdgekitError(
                f"drop_layers: ratio is {self.ratio}.", "", "Give a share between 0 and 1."
            )
        for name in ("count", "samples", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise EdgekitError(f"drop_layers: {name} is {value}.", "", "Give 1 or more.")

    def requires(self, model: Model, context: Context) -> None:
        """Raise for a stream, or for effects without data."""
        if model.states:
            raise EdgekitError(
                f"{model.source} is a stream, whose blocks cannot be dropped.",
                "Its states belong to its blocks.",
                "Load it in mode whole, drop blocks, and stream what is left.",
            )
        if self.keep is None:
            context.samples("the effect of each block")

    def call(self, model: Model, context: Context) -> Model:
        """The model with the dropped blocks' places taken by modules that do nothing.

        Raises:
            EdgekitError: no such stack, or fewer blocks than are to be dropped or kept.
        """
        from edgekit.compress.depth import stacks

        made = structure.copied(model)
        found = stacks.chosen(made, self.stack)
        gone = self._kept(found) if self.keep is not None else self._least(made, found, context)
        for stack in found:
            self._drop(made, stack, sorted(place for path, place in gone if path == stack.path))
        return made

    def _kept(self, found: list[Stack]) -> list[Block]:
        """The blocks that are not among those to keep."""
        keep = self.keep or ()
        if len(found) > 1:
            raise EdgekitError(
                f"keep={list(keep)} does not say of which stack.",
                f"There are {', '.join(map(str, found))}.",
                "Name one with stack=PATH.",
            )
        (stack,) = found
        gone = [place for place in stack.skips if place not in keep]
        if not gone or len(gone) == len(stack.skips) or set(keep) - {*stack.skips, *stack.fixed}:
            stay = f"; {', '.join(map(str, stack.fixed))} stay in any case" if stack.fixed else ""
            raise EdgekitError(
                f"keep={list(keep)} does not fit {stack}.",
                f"Blocks that can be dropped: {', '.join(map(str, stack.skips))}{stay}.",
                "Give the places of one or more of them, but not of all.",
            )
        return [(stack.path, place) for place in gone]

    def _least(self, made: Model, found: list[Stack], context: Context) -> list[Block]:
        """The blocks of the least effect."""
        from edgekit.compress.depth.effects import Effects, choose

        depth = sum(len(stack.skips) for stack in found)
        count = self.count if self.count is not None else round((self.ratio or 0) * depth)
        most = depth - len(found)
        if not 1 <= count <= most:
            asked = f"count={count}" if self.ratio is None else f"ratio={self.ratio} ({count})"
            raise EdgekitError(
                f"{asked} blocks cannot be dropped from {made.source}.",
                f"It has {', '.join(map(str, found))}, and every stack keeps one.",
                f"Drop 1 to {most}.",
            )
        data = context.samples("the effect of each block").take(self.samples, context.seed)
        by_level = self.timesteps == "levels"
        made.module.eval()
        effects = Effects(made.module, found, data, self.batch_size, by_level, context.folder)
        gone = choose(effects, count, self.remeasure)
        say(f"Relative error of the outputs without these blocks: {effects.of(gone):.3g}")
        return gone

    def _drop(self, made: Model, stack: Stack, gone: list[int]) -> None:
        from edgekit.compress.depth.average import alike, average, stood_for

        blocks = stack.blocks(made.module)
        kept = [place for place in range(len(blocks)) if place not in gone]
        if self.average:
            groups = stood_for(kept, gone, lambda a, b: alike(blocks[a], blocks[b]))
            for place, others in groups.items():
                average(blocks[place], [blocks[other] for other in others])
        for place in gone:
            blocks[place] = stack.skips[place]
        left = sum(place not in gone for place in stack.skips) + len(stack.fixed)
        say(f"{stack.path}: {left} blocks are left without {', '.join(map(str, gone)) or 'any'}.")


PASS = DropLayers
