"""factorize: a model whose linears are products that take fewer bytes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from edgekit import interrupt
from edgekit.compress import Context, layers, structure
from edgekit.errors import EdgekitError
from edgekit.progress import say, track

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from edgekit.compress.factors import Choice
    from edgekit.compress.factors.dictionary import DictionaryFit
    from edgekit.compress.factors.low_rank import LowRankFit
    from edgekit.model import Model

#: (block, atoms) that are tried for each layer where neither is given.
SHAPES = ((32, 32), (96, 48), (96, 96))


@dataclass(frozen=True)
class Factorize:
    """Replace the weights of linears by products of two matrices that take fewer bytes.

    ``svd`` makes two thin linears of each (low rank), of the ranks at which the layers' outputs on
    calibration data change least: Wang et al., SVD-LLM (ICLR 2025). ``dictionary`` cuts a weight
    into blocks of rows, whose columns become sparse combinations of the few columns of a small
    dense matrix: Chand et al., DSFormer (2023), with its straight-through factoriser on each
    layer's own error. The latter is small as a file; a runtime multiplies by the codes as a dense
    matrix, which is no faster than the layer was.

    The budget is shared among all layers, each byte going where it saves the most error; a layer
    that gains nothing stays as it is. Bytes of a dictionary are those of D, of the codes' values,
    and of their places at ceil(log2 atoms) bits each.

    Attributes:
        ratio: share of the model's stored bytes (all its weights) to keep, between 0 and 1.
        method: ``svd`` or ``dictionary``.
        exclude: globs of paths of layers, or of what holds them, that stay as they are.
        calibrated: weigh errors by what enters each layer; else all inputs count the same, and no
            data is needed (plain SVD).
        samples: of calibration data, at most.
        batch_size: samples of a call.
        block: rows of a block at most (dictionary); None tries several for each layer.
        atoms: columns of the dense matrix, at most ``block``; None is as many.
        steps: of gradient descent a layer (dictionary).
    """

    ratio: float
    method: Literal["svd", "dictionary"] = "svd"
    exclude: tuple[str, ...] = ()
    calibrated: bool = True
    samples: int = 128
    batch_size: int = 16
    block: int | None = None
    atoms: int | None = None
    steps: int = 100

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise EdgekitError(
                f"factorize: ratio={self.ratio} is not between 0 and 1.",
                "It is the share of the model's bytes to keep.",
                "Write factorize:ratio=0.5 for half of them.",
            )
        least = {"samples": 1, "batch_size": 1, "block": 2, "atoms": 2, "steps": 0}
        for name, smallest in least.items():
            value = getattr(self, name)
            if value is not None and value < smallest:
                raise EdgekitError(
                    f"factorize: {name}={value} is too small.", "", f"Give {smallest} or more."
                )
        if self.atoms is not None and (self.block is None or self.atoms > self.block):
            raise EdgekitError(
                f"factorize: atoms={self.atoms} goes with a block of as many rows or more.",
                f"block is {self.block}.",
                f"Give block={self.atoms} or more.",
            )

    def requires(self, model: Model, context: Context) -> None:
        """Raise without data, where errors are weighed by it."""
        if self.calibrated and context.data is None:
            raise EdgekitError(
                "There is no data to weigh errors by.",
                "What enters each layer says which errors matter.",
                "Pass --calibration DATA, or accept more loss with factorize:calibrated=false.",
            )

    def call(self, model: Model, context: Context) -> Model:
        """The model with products in the place of linears.

        Raises:
            EdgekitError: no linear to factorise, or none of the layers' sizes meets the ratio.
        """
        from torch import nn

        made = structure.copied(model)
        found = layers.find(made, (nn.Linear,), self.exclude)
        if not found.chosen:
            raise EdgekitError(
                f"{made.source} has no linear to factorise.",
                "; ".join(f"{', '.join(paths[:5])}: {why}" for why, paths in found.left.items()),
                "Exclude less, or leave this pass out.",
            )
        seen = self._seen(made, found.chosen, context)
        chosen = self._chosen(made, found.chosen, seen)
        products: dict[nn.Module, nn.Module] = {}
        for path, choice in track(chosen.items(), "Factorising layers", len(chosen)):
            interrupt.check()
            if choice.size:
                layer = found.chosen[path]
                fit = self._fit(layer, seen[path], self._shapes[choice.fit])
                products[layer] = self._product(path, fit, choice.size, context.folder)
        _replace(made, products)
        found.tell()
        say(f"{len(products)} of {len(chosen)} linears are products now.")
        return made

    def _seen(
        self, made: Model, chosen: Mapping[str, nn.Module], context: Context
    ) -> dict[str, Tensor | None]:
        """What enters each layer, or None where it does not count."""
        if not self.calibrated:
            return dict.fromkeys(chosen)
        data = context.samples("what enters each layer").take(self.samples, context.seed)
        found = layers.grams(made, chosen, data, self.batch_size)
        return {path: found[path][0] for path in chosen}

    def _chosen(
        self, made: Model, chosen: Mapping[str, Any], seen: Mapping[str, Tensor | None]
    ) -> dict[str, Choice]:
        """The size of each layer."""
        from edgekit.compress.factors import allot

        options = {}
        for path, layer in track(chosen.items(), "Measuring what sizes cost", len(chosen)):
            interrupt.check()
            options[path] = [
                dataclasses.replace(choice, fit=place)
                for place, shape in enumerate(self._shapes)
                for choice in self._fit(layer, seen[path], shape).choices()
            ]
        total = layers.stored_bytes(made.module)
        rest = total - sum(layer.weight.nbytes for layer in chosen.values())
        least = sum(min(choice.bytes for choice in choices) for choices in options.values())
        if rest + least > self.ratio * total:
            raise EdgekitError(
                f"ratio={self.ratio} cannot be had of {made.source}.",
                f"At their smallest its {len(chosen)} linears and what else it holds take "
                f"{(rest + least) / total:.3f} of its bytes.",
                f"Ask for {(rest + least) / total + 0.01:.2f} or more.",
            )
        return allot(options, self.ratio * total - rest)

    @property
    def _shapes(self) -> tuple[tuple[int, int], ...]:
        """(block, atoms) that are tried for each layer; of a low rank there is one form only."""
        if self.method == "svd":
            return ((0, 0),)
        return SHAPES if self.block is None else ((self.block, self.atoms or self.block),)

    def _fit(
        self, layer: nn.Linear, gram: Tensor | None, shape: tuple[int, int]
    ) -> LowRankFit | DictionaryFit:
        """What a layer can become."""
        from edgekit.compress.factors import damped, dictionary, low_rank

        hessian = damped(gram, layer.in_features)
        if self.method == "svd":
            return low_rank.fit(layer, hessian)
        return dictionary.fit(layer, hessian, *shape)

    def _product(
        self, path: str, fit: LowRankFit | DictionaryFit, size: int, folder: Path | None
    ) -> nn.Module:
        """What takes a layer's place; of a dictionary, as it was learned before a stop."""
        from edgekit.compress.factors.dictionary import DictionaryFit, kept

        if not isinstance(fit, DictionaryFit):
            return fit.made(size)
        if folder is None:
            return fit.made(size, self.steps)
        return kept(folder / f"{path}.safetensors", lambda: fit.made(size, self.steps))


def _replace(made: Model, products: Mapping[nn.Module, nn.Module]) -> None:
    """Put products in the places of their layers, in what is exported too, and run once.

    Raises:
        EdgekitError: something asks a layer for what a product does not have, its weight.
    """
    layers.replace(made, products)
    try:
        layers.run_once(made)
    except AttributeError as error:
        raise EdgekitError(
            f"{made.source} does not run with products in the place of its linears.",
            f"{error}.",
            "Leave the layers of that kind out with exclude=[GLOB].",
        ) from error


PASS = Factorize
