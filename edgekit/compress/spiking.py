"""spiking: a network whose activations count spikes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal

from edgekit.compress import Context
from edgekit.errors import EdgekitError

if TYPE_CHECKING:
    from torch import nn

    from edgekit.compress.layers import Layers
    from edgekit.compress.modules.qcfs import QCFS
    from edgekit.model import Model


@dataclass(frozen=True)
class Spiking:
    """Replace activations by spiking units of T steps, and calibrate them (ANN to SNN conversion).

    T. Bu et al., "Optimal ANN-SNN Conversion for High-accuracy and Ultra-low-latency Spiking
    Neural Networks" (QCFS), ICLR 2022. A unit gives one of T + 1 levels, which is how often an
    integrate-and-fire neuron fires in T steps. Its two forms are equal bit for bit: `folded`
    computes the level at once, and is what engines run; `temporal` runs the neurons step by step.
    In INT8 a unit's levels are those of the tensor behind it.

    Units stand for activations whose values reach linears and convolutions only, such as those of
    MLPs, and for the input of a patch embedding, there with a sign. What cannot become a unit is
    named with its reason. Thresholds are found on calibration data, one a channel; what a level
    stands for goes into the weights behind it, and these make up for what the unit loses.

    Then `distill` trains through the units, whose thresholds stay. On a model that has units, the
    pass gives them another form and leaves all else as it is (`spiking:form=temporal`).

    Attributes:
        steps: T, 1 to 127; the largest level.
        threshold: `mse` (least squared error) or `percentile` (of what is above zero).
        percentile: above 0, to 100; of `threshold=percentile`.
        granularity: thresholds for each `channel` or one a `tensor`.
        form: `folded` or `temporal`.
        places: `activations`, `patch_embedding` or both.
        layers: globs of paths of activations, or of what holds them, that alone become units.
        exclude: globs of paths, as in `layers`, that stay as they are.
        refit: whether layers behind units make up for them, by least squares.
        spiking_attention: also replace softmax attention by products of spikes (Z. Zhou et al.,
            Spikformer, ICLR 2023; M. Yao et al., Spike-driven Transformer, NeurIPS 2023). It is
            another function: what it costs is said, and `distill` is needed to win that back.
            Until then INT8 drifts more, too.
        samples: of calibration data, at most.
        batch_size: samples of a call.
    """

    steps: int = 8
    threshold: Literal["mse", "percentile"] = "mse"
    percentile: float = 99.9
    granularity: Literal["channel", "tensor"] = "channel"
    form: Literal["folded", "temporal"] = "folded"
    places: tuple[Literal["activations", "patch_embedding"], ...] = (
        "activations",
        "patch_embedding",
    )
    layers: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    refit: bool = True
    spiking_attention: bool = False
    samples: int = 128
    batch_size: int = 16

    def __post_init__(self) -> None:
        from edgekit.compress.modules.qcfs import check_steps

        check_steps(self.steps)
        if not 0 < self.percentile <= 100:
            raise EdgekitError(
                f"spiking: percentile={self.percentile} is not above 0 and at most 100.",
                "It is the share of values that thresholds do not cut off, in percent.",
                "Give 99.9, or less where few values are very large.",
            )
        if self.percentile != type(self).percentile and self.threshold != "percentile":
            raise EdgekitError(
                f"spiking: percentile={self.percentile} goes with threshold=percentile.",
                f"threshold is {self.threshold}, which cuts off what leaves the least error.",
                "Give both, or neither.",
            )
        for name, value in (("samples", self.samples), ("batch_size", self.batch_size)):
            if value < 1:
                raise EdgekitError(f"spiking: {name}={value} is below 1.", "", "Give 1 or more.")
        if not self.places:
            raise EdgekitError(
                "spiking: places is empty.",
                "No unit would be put anywhere.",
                "Give activations, patch_embedding or both.",
            )

    def requires(self, model: Model, context: Context) -> None:
        """Raise without data, where thresholds are to be found."""
        if not units(model.module):
            context.samples("the thresholds of spiking units")

    def call(self, model: Model, context: Context) -> Model:
        """The model with units.

        Raises:
            EdgekitError: there is no place for one, a glob matches none, what is computed on the
                data is not finite, or the model has units of other steps.
        """
        from edgekit.compress import structure

        made = structure.copied(model)
        made.module.eval()
        if units(made.module):
            self._change_form(made)
            return made
        attended = self._attentions(made, model)
        found = self._places(made, attended)
        self._convert(made, model, (found, attended), context)
        for path, unit in units(made.module).items():
            unit.check(path)
        return made

    def _attentions(self, made: Model, model: Model) -> Layers:
        """The attentions that become those of spikes, by path; none where that is not asked."""
        from edgekit.compress.conversion import attention
        from edgekit.compress.layers import Layers

        if not self.spiking_attention:
            return Layers()
        found = attention.find(made, model)
        self._choose(found)
        if not found.chosen:
            raise EdgekitError(
                f"{made.source} has no attention that can be one of spikes.",
                _reasons(found) or "It has none over a fused linear of queries, keys and values.",
                "Leave spiking_attention out.",
            )
        return found

    def _choose(self, found: Layers) -> None:
        """Leave what was not asked for."""
        for path in list(found.chosen):
            if self.layers and not _any(path, self.layers):
                found.chosen.pop(path)
            elif _any(path, self.exclude):
                found.leave(path, "as asked")

    def _places(self, made: Model, attended: Layers) -> Layers:
        """Where units go, by path."""
        from edgekit.compress.conversion import places

        found = places.find(made, self.places)
        _check(made, found, attended, self.layers, self.exclude)
        self._choose(found)
        if not found.chosen and not attended.chosen:
            raise EdgekitError(
                f"{made.source} has no place for a spiking unit.",
                _reasons(found) or "It has no activation in front of a linear or a convolution.",
                "Exclude less, or leave this pass out.",
            )
        return found

    def _convert(
        self, made: Model, model: Model, chosen: tuple[Layers, Layers], context: Context
    ) -> None:
        """Place by place, in the network's order; then attentions in theirs."""
        from edgekit.compress.batches import batches
        from edgekit.compress.conversion import attention, fitting
        from edgekit.compress.measure import relative_error
        from edgekit.progress import say, track

        found, attended = chosen
        data = context.samples("the thresholds of spiking units").take(self.samples, context.seed)
        held = list(batches(data, self.batch_size))
        by_channel = self.granularity == "channel"
        rules = fitting.Rules(self.steps, self.threshold, self.percentile, by_channel, self.form)
        for place in track(found.chosen.values(), "Fitting spiking units", len(found.chosen)):
            fitting.fit(made, place, held, rules)
            if self.refit:
                fitting.refit(made, model, place, held)
        encoders = sum(place.signed for place in found.chosen.values())
        say(
            f"{len(found.chosen) - encoders} activations are spiking units of {self.steps} steps "
            f"now, and {encoders} patch embeddings take spikes."
        )
        single = [path for path, place in found.chosen.items() if not place.followed]
        if by_channel and single:
            say(f"One threshold for all channels, which cannot be followed: {', '.join(single)}.")
        found.tell()
        if attended.chosen:
            before = relative_error(model, made, data, self.batch_size)
            for pair in track(attended.chosen.values(), "Fitting attention", len(attended.chosen)):
                attention.swap(pair, held, rules, self.refit)
            after = relative_error(model, made, data, self.batch_size)
            say(
                f"{len(attended.chosen)} attentions are of spikes now: the outputs' squared error "
                f"on the calibration data, {before:.4f} of their squares, becomes {after:.4f}."
            )
            attended.tell()

    def _change_form(self, made: Model) -> None:
        """Give the units that there are this pass's form.

        Raises:
            EdgekitError: they have other steps, or more is asked for.
        """
        from edgekit.progress import say

        if self.spiking_attention:
            raise EdgekitError(
                f"{made.source} has units already: its attentions stay as they are.",
                "Attention becomes one of spikes together with the activations.",
                "Leave spiking_attention out to change the units' form, or convert the source.",
            )
        held = units(made.module) | units(made.traced)
        for path, unit in held.items():
            if unit.steps != self.steps:
                raise EdgekitError(
                    f"{made.source} has units of {unit.steps} steps already; {path} is one.",
                    f"steps={self.steps} asks for others, which need the activations "
                    "that they stand for.",
                    f"Give steps={unit.steps} to change their form, or convert the source again.",
                )
        asked = [name for name in ("layers", "exclude", "spiking_attention") if getattr(self, name)]
        if asked:
            raise EdgekitError(
                f"{', '.join(asked)} cannot be had of {made.source}.",
                "It has units already, of which the pass changes only the form.",
                "Drop the option, or convert the source again.",
            )
        for unit in held.values():
            unit.form = self.form
        say(f"{len(held)} units that the model has are {self.form} now; their thresholds stay.")


def units(module: nn.Module | None) -> dict[str, QCFS]:
    """All units of a module, by path."""
    from edgekit.compress.modules.qcfs import QCFS

    found = module.named_modules() if module is not None else ()
    return {path: each for path, each in found if isinstance(each, QCFS)}


def _any(path: str, globs: Iterable[str]) -> bool:
    from edgekit.compress.layers import matches

    return any(matches(path, glob) for glob in globs)


def _reasons(found: Layers) -> str:
    """Why what was left is."""
    return "; ".join(f"{', '.join(paths[:5])}: {why}" for why, paths in found.left.items())


def _check(
    made: Model, found: Layers, attended: Layers, layers: Iterable[str], exclude: Iterable[str]
) -> None:
    """Raise for a glob of no place, or that names what cannot become a unit."""
    left, unlike = (
        {path: why for why, paths in each.left.items() for path in paths}
        for each in (found, attended)
    )
    known = (*found.chosen, *left, *attended.chosen, *unlike)
    for name, globs in (("layers", layers), ("exclude", exclude)):
        for glob in globs:
            named = [path for path in left if fnmatchcase(path, glob)]
            if name == "layers" and named:
                raise _formless(glob, named[0], left[named[0]])
            if not any(_any(path, [glob]) for path in known):
                raise _unmatched(made, found, name, glob)


def _unmatched(made: Model, found: Layers, name: str, glob: str) -> EdgekitError:
    """For a glob that matches no place: what it matches, if anything."""
    from edgekit.compress.conversion.places import root_of

    for path, module in root_of(made).named_modules():
        if name == "layers" and path and fnmatchcase(path, glob):
            return _formless(glob, path, _why(module))
    return EdgekitError(
        f"{name}={glob!r} matches no layer.",
        f"Places for units are, for example, {', '.join(list(found.chosen)[:8]) or 'none'}.",
        "Write a path, or a glob over paths, such as blocks.0.* or *.mlp.act.",
    )


def _formless(glob: str, path: str, why: str) -> EdgekitError:
    return EdgekitError(
        f"layers={glob!r} names {path}, which has no spiking form.",
        f"It is one of {why}." if why.startswith(("activations", "functions")) else why,
        "Leave it out of layers; `edgekit passes spiking` says what becomes a unit.",
    )


def _why(module: Any) -> str:
    """Why a module that is no activation has no spiking form."""
    return (
        f"It is a {type(module).__name__}; units stand for activations in front of linears and "
        "convolutions, and for the input of a patch embedding."
    )


PASS = Spiking
