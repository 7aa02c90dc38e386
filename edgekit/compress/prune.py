"""prune: heads, channels and states that matter least are taken out, and layers get smaller."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from edgekit.errors import EdgekitError

if TYPE_CHECKING:
    from edgekit.compress import Context
    from edgekit.model import Model

Dimension = Literal["heads", "mlp", "embedding", "channels", "state"]
REQUIRES = {"torch_pruning": "torch-pruning"}
#: The options of which exactly one is given.
BUDGETS = ("ratio", "parameters", "flops", "latency")


@dataclass(frozen=True)
class Prune:
    """Structured pruning: dense layers of smaller sizes, found by importance for cost.

    Coupled layers are found through torch-pruning's dependency graph (G. Fang et al., "DepGraph",
    CVPR 2023), and each coupling is proven on the model before it is used. What every layer keeps
    follows from one order over the whole model: importance lost for cost saved.

    Attributes:
        ratio: share of the widths that goes, in (0, 1), over all groups together.
        parameters: weights that may stay: a count, or a share below 1 of those there are.
        flops: multiply-accumulates of a call that may stay, likewise.
        latency: milliseconds of a call on the target at most.
        importance: ``taylor`` (change of the outputs, first order), ``activation`` (energy that
            goes into the next layer) or ``magnitude`` (of the weights; needs no data).
        dimensions: what may shrink: ``heads``, ``mlp``, ``embedding``, ``channels``, ``state``;
            None is all but the embedding.
        round_to: what widths are a multiple of; None is 16 on NVIDIA's targets, whose tensor
            cores take INT8 so, and 8 elsewhere, less for widths below 32. Heads are whole.
        exclude: globs of modules that stay as they are.
        refit: fit the layers behind to the outputs before, by least squares on the samples.
        samples: that importance and fit are measured on.
        batch_size: of one pass through the model.
    """

    ratio: float | None = None
    parameters: float | None = None
    flops: float | None = None
    latency: float | None = None
    importance: Literal["taylor", "activation", "magnitude"] = "taylor"
    dimensions: tuple[Dimension, ...] | None = None
    round_to: int | None = None
    exclude: tuple[str, ...] = ()
    refit: bool = True
    samples: int = 256
    batch_size: int = 16

    def __post_init__(self) -> None:
        given = [name for name in BUDGETS if getattr(self, name) is not None]
        if len(given) != 1:
            raise EdgekitError(
                f"prune has {'no budget' if not given else 'budgets of ' + ' and '.join(given)}.",
                f"It takes exactly one of {', '.join(BUDGETS)}.",
                "Pass --pass prune:ratio=0.5, or parameters=0.5, flops=0.5 or latency=2.0.",
            )
        if self.ratio is not None and not 0 < self.ratio < 1:
            raise _out_of_range("ratio", self.ratio, "a share between 0 and 1")
        for name in ("parameters", "flops", "latency"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise _out_of_range(name, value, "above 0")
        for name in ("round_to", "samples", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise _out_of_range(name, value, "1 or more")
        if self.dimensions == ():
            raise _out_of_range("dimensions", "empty", "one or more of what may shrink")

    def requires(self, model: Model, context: Context) -> None:
        """Raise for what is missing before any work is done."""
        from edgekit import packages
        from edgekit.compress.pruning.importance import NEED_DATA

        packages.require("passes", ["prune"])
        if self.importance in NEED_DATA:
            context.samples(f"{self.importance} importance")
        if self.latency is not None and context.latency is None:
            raise EdgekitError(
                "There is no target for a budget of latency.",
                "It is measured on the target, or predicted for it.",
                "Pass --target NAME.",
            )

    def call(self, model: Model, context: Context) -> Model:
        """The model with smaller layers.

        Raises:
            EdgekitError: torch-pruning cannot follow the model, nothing of what may shrink is
                found, or the budget cannot be met; the message states the least that can.
        """
        from edgekit.compress import structure
        from edgekit.compress.pruning.work import Work

        return Work(self, structure.copied(model), context).result()


def _out_of_range(name: str, value: object, needed: str) -> EdgekitError:
    return EdgekitError(f"prune: {name} is {value}.", f"It has to be {needed}.")


PASS = Prune
