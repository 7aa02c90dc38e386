"""fuse: two trained models of one architecture into one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edgekit.errors import EdgekitError

if TYPE_CHECKING:
    from edgekit.compress import Context
    from edgekit.model import Model

REQUIRES = {"ot": "pot", "timm": "timm"}


@dataclass(frozen=True)
class Fuse:
    """Fuse a second trained vision transformer into the model, of whose size the result is.

    Transformer Fusion with Optimal Transport (Imfeld et al., ICLR 2024): the other's units are
    carried onto the model's by what both do on the same samples, then the weights are averaged,
    ``W = weight * T_out' W_other T_in + (1 - weight) * W``. The residual stream has one map, the
    MLPs one each, and so have the heads. Of any width; depth, patches and classes must be the
    same. Fine-tune the result, as with ``distill``. For timm's VisionTransformer and DeiT.

    Attributes:
        other: the other model as ``--model`` takes it; None is the model's own architecture.
        checkpoint: the other model's weights; None are those that ``other`` comes with.
        weight: of the other model, 0 to 1.
        solver: of the transport: ``exact`` (a permutation, between equal sizes) or ``sinkhorn``.
        regularisation: of Sinkhorn, in units of 1 - correlation.
        basis: of the residual stream and within heads: ``rotation`` turns the other's basis, which
            leaves its function as it is; ``units`` carries unit to unit, as the paper does.
        stream: where residual streams are compared: ``last`` before the head, ``all`` everywhere.
        samples: how many are compared, at most.
    """

    other: str | None = None
    checkpoint: Path | None = None
    weight: float = 0.5
    solver: Literal["exact", "sinkhorn"] = "exact"
    regularisation: float = 0.02
    basis: Literal["rotation", "units"] = "rotation"
    stream: Literal["last", "all"] = "all"
    samples: int = 256

    def __post_init__(self) -> None:
        if self.other is None and self.checkpoint is None:
            raise EdgekitError(
                "fuse: there is no other model.",
                "It makes one model of two.",
                "Give other=MODEL, or checkpoint=FILE with other weights of the same model.",
            )
        if not 0 <= self.weight <= 1:
            raise EdgekitError(f"fuse: weight is {self.weight}.", "It is a share, from 0 to 1.")
        if self.regularisation <= 0:
            raise EdgekitError(
                f"fuse: regularisation is {self.regularisation}.", "It must be above 0."
            )
        if self.samples < 2:
            raise EdgekitError(f"fuse: samples is {self.samples}.", "It takes 2 or more.")

    def requires(self, model: Model, context: Context) -> None:
        """Raise unless the model can be fused and there is data."""
        from edgekit import packages

        packages.require("passes", ["fuse"])
        from edgekit.compress.fusion import vit

        vit.check(model.module, model.source)
        context.samples("comparing activations")

    def call(self, model: Model, context: Context) -> Model:
        """The fused model.

        Raises:
            EdgekitError: the other model cannot be had, or is of another structure.
        """
        from edgekit.compress import structure
        from edgekit.compress.fusion import combine, moments, transport, vit
        from edgekit.progress import say

        other, made = self._other(model), structure.copied(model)
        data = context.samples("comparing activations")
        data = data.take(min(self.samples, len(data)), context.seed)
        for module in (other.module, made.module):
            vit.normalise(module.eval())
        sites = vit.sites(other.module), vit.sites(made.module)
        seen = moments.collect(other.module, made.module, sites, data)
        alignment = combine.Alignment(
            transport.Transport(self.solver, self.regularisation), self.basis, self.stream
        )
        combine.combine(other.module, made.module, seen, alignment, self.weight)
        say(f"Fused {other.source} into {model.source}, by {len(data)} samples.")
        return made

    def _other(self, model: Model) -> Model:
        """The other parent, of the same structure but for its widths."""
        import dataclasses

        from edgekit import checkpoint, families
        from edgekit.compress import structure
        from edgekit.compress.fusion import vit

        if self.other is not None:
            found = families.load(self.other, families.Options(checkpoint=self.checkpoint))
        else:
            found = dataclasses.replace(structure.copied(model), source=str(self.checkpoint))
            state = checkpoint.load_state(Path(str(self.checkpoint)))
            checkpoint.apply(found.module, state, found.source, False)
        vit.check(found.module, found.source)
        first, second = vit.shape(found.module), vit.shape(model.module)
        wrong = [name for name, value in first.items() if value != second[name]]
        if wrong:
            raise EdgekitError(
                f"{found.source} cannot be fused into {model.source}.",
                "; ".join(f"{name}: {first[name]} and {second[name]}" for name in wrong) + ".",
                "Only the widths (embedding, heads, MLP) may differ.",
            )
        return found


PASS = Fuse
