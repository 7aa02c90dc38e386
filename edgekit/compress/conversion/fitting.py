"""Fitting: units in the places of activations, and layers that make up for what those lose.

A unit's level n of T stands for threshold_c / T in channel c, and is stored as scale n, with one
scale for all channels. So the weight of a layer behind it becomes

    W_c threshold_c / (T scale)

which is exact. What the unit loses of its activation, the layer wins back by least squares: with
q the unit's output, y the layer's output in the network as it was, and d a damping,

    W', b' = argmin E |y - W' q - b'|^2 + d |W' - W|^2

Places are done in the network's order, each on what the units before it give, so that it makes up
for their errors too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from edgekit import interrupt
from edgekit.compress.conversion.places import Place, Reader, root_of
from edgekit.compress.layers import assign, matrix_of, replace, rows_of
from edgekit.compress.modules.encoded import Encoded
from edgekit.compress.modules.qcfs import QCFS
from edgekit.errors import EdgekitError
from edgekit.quantize.scales import half_exact
from edgekit.quantize.spiking import thresholds

if TYPE_CHECKING:
    from edgekit.compress.batches import Batch
    from edgekit.model import Model

#: What thresholds are found from, at most: values of a tensor, or if that is more, rows of it.
_VALUES, _ROWS = 2**21, 2**10
#: The largest float16.
_LARGEST = 65504.0
#: d, as a share of the mean square of the unit's outputs.
_DAMPING = 0.01


@dataclass(frozen=True)
class Rules:
    """How thresholds are found; see ``Spiking``."""

    steps: int
    method: thresholds.Method
    percentile: float
    by_channel: bool
    form: str


def fit(made: Model, place: Place, batches: Sequence[Batch], rules: Rules) -> QCFS:
    """Put a unit into ``made``, in its place and with its thresholds.

    Raises:
        EdgekitError: what enters is not finite, or never above zero.
    """
    x = _entering(made, place, batches)
    with torch.no_grad():
        wanted = x if place.signed else _activated(place, x)
    one = place.channels == 1 or not rules.by_channel
    if one:
        x, wanted = x.reshape(-1, 1), wanted.reshape(-1, 1)
    try:
        found = thresholds.find(
            x, wanted, rules.steps, place.signed, rules.method, rules.percentile
        )
    except EdgekitError as error:
        raise EdgekitError(f"{place.path}: {error.what}", error.why, error.fix) from error
    scale = _scale(found, rules.steps, place.path)
    if one:
        found = torch.full_like(found, scale * rules.steps)
    unit = QCFS(len(found), place.axis, rules.steps, scale, place.signed, rules.form)
    unit.threshold = found
    unit.check(place.path)
    if not one:
        for reader in place.readers:
            _fold(reader, found / (rules.steps * scale))
    _put(made, place, unit)
    return unit


def _scale(found: Tensor, steps: int, path: str) -> float:
    """What a level stands for, on average, as a float16 holds it."""
    level = float(found.mean()) / steps
    if level > _LARGEST:
        raise EdgekitError(
            f"{path}: a level of {level:.3g} is more than float16 holds.",
            "Engines store what a level stands for in float16.",
            "Give more steps, or leave it out with exclude=[GLOB].",
        )
    return float(half_exact(np.array(level)))


def _put(made: Model, place: Place, unit: QCFS) -> None:
    new = Encoded(unit, place.module) if place.signed else unit
    replace(made, {place.module: new})


def _activated(place: Place, x: Tensor) -> Tensor:
    """What the activation makes of rows (n, channels)."""
    y: Tensor = place.module(x.clone())
    return y


def _fold(reader: Reader, factors: Tensor) -> None:
    """Multiply a layer's weight by a factor for each of the unit's channels."""
    if reader.channels is None:
        raise TypeError(f"{reader.path} is read elsewhere")
    weight = reader.layer.weight
    groups = getattr(reader.layer, "groups", 1)
    by_group = factors[reader.channels].reshape(groups, -1)
    spread = by_group.repeat_interleave(len(weight) // groups, 0)
    with torch.no_grad():
        weight.mul_(spread.reshape(*spread.shape, *[1] * (weight.dim() - 2)).to(weight.dtype))


def refit(made: Model, original: Model, place: Place, batches: Sequence[Batch]) -> None:
    """Let the layers behind a unit make up for it; not those whose weights are read elsewhere.

    Args:
        original: the model before it had units.

    Raises:
        EdgekitError: what the layers give in ``original`` is not finite.
    """
    readers = [reader for reader in place.readers if reader.channels is not None]
    if not readers:
        return
    known = dict(root_of(original).named_modules())
    own, others = [r.layer for r in readers], [known[r.path] for r in readers]
    sums = [_Sums() for _ in readers]
    with torch.no_grad():
        for batch in batches:
            interrupt.check()
            here, there = seen(made.module, own, batch), seen(original.module, others, batch)
            for each, layer, other in zip(sums, own, others, strict=True):
                given, wanted = _whole(layer, *here[layer]), _whole(other, *there[other])
                each.add(layer, here[layer][0], wanted - given)
        for each, layer, reader in zip(sums, own, readers, strict=True):
            each.solve(layer, reader.path)


class _Sums:
    """Of a layer's inputs q (groups, n, K) and of what is missing in its outputs, r."""

    def __init__(self) -> None:
        self.count = 0
        self.products: Any = 0
        self.cross: Any = 0
        self.total: Any = 0
        self.missing: Any = 0

    def add(self, layer: Any, entered: Tensor, missing: Tensor) -> None:
        """Of a call."""
        q, r = rows_of(layer, entered), _outputs(layer, missing)
        self.count += q.shape[1]
        self.products = self.products + (q.transpose(1, 2) @ q).double()
        self.cross = self.cross + (r.transpose(1, 2) @ q).double()
        self.total = self.total + q.double().sum(1)
        self.missing = self.missing + r.double().sum(1)

    def solve(self, layer: Any, path: str) -> None:
        """Add to the layer's weight and bias what is missing."""
        second, cross = self.products / self.count, self.cross / self.count
        mean, missing = self.total / self.count, self.missing / self.count
        if layer.bias is not None:
            second = second - mean[:, :, None] * mean[:, None]
            cross = cross - missing[:, :, None] * mean[:, None]
        if not (second.isfinite().all() and cross.isfinite().all()):
            raise not_finite(path)
        diagonal = second.diagonal(dim1=1, dim2=2)
        diagonal.add_(_DAMPING * diagonal.mean(1, keepdim=True) + 1e-12)
        added = torch.linalg.solve(second, cross.transpose(1, 2)).transpose(1, 2)
        assign(layer, (matrix_of(layer).double() + added).to(layer.weight.dtype))
        if layer.bias is not None:
            layer.bias += (missing - (added @ mean[:, :, None])[..., 0]).flatten().to(layer.bias)


def _whole(layer: Any, entered: Tensor, given: Tensor) -> Tensor:
    """What a layer gives, of which a class with a forward of its own may leave out a part."""
    kind = next(kind for kind in (nn.Linear, nn.Conv1d, nn.Conv2d) if isinstance(layer, kind))
    if type(layer).forward is kind.forward:
        return given
    whole: Tensor = kind.forward(layer, entered)
    return whole


def _outputs(layer: Any, y: Tensor) -> Tensor:
    """A layer's outputs as rows (groups, n, outputs of a group), in the order of ``rows_of``."""
    if isinstance(layer, nn.Linear):
        return y.reshape(1, -1, layer.out_features)
    rows = y.movedim(1, -1).reshape(-1, layer.groups, layer.out_channels // layer.groups)
    return rows.transpose(0, 1)


def _entering(made: Model, place: Place, batches: Sequence[Batch]) -> Tensor:
    """Rows (n, channels) that enter a place, evenly from all batches.

    Raises:
        EdgekitError: one is not finite.
    """
    samples = sum(len(batch) for batch in batches)
    found = []
    with torch.no_grad():
        for batch in batches:
            interrupt.check()
            x, _ = seen(made.module, [place.module], batch)[place.module]
            if not x.isfinite().all():
                raise not_finite(place.path)
            rows = x.movedim(place.axis, -1).flatten(0, -2)
            most = max(_VALUES // rows.shape[1], _ROWS)
            stride = -(-len(rows) * samples // (len(batch) * most))
            found.append(rows[::stride].clone())
    return torch.cat(found)


def not_finite(path: str) -> EdgekitError:
    """What is raised where calibration gives NaN or infinity."""
    return EdgekitError(
        f"{path}: what it computes on the calibration data is not finite.",
        "NaN or infinity has no threshold; the data or the weights hold some, or a sum overflows.",
        "Look at the data, and run the model on it in PyTorch.",
    )


class _Reached(Exception):
    """Ends a call."""


def seen(
    module: nn.Module, layers: Sequence[nn.Module], batch: Batch
) -> dict[nn.Module, tuple[Tensor, Tensor]]:
    """What enters and leaves layers in a call, which goes no further than the last of them."""
    entered: dict[nn.Module, Tensor] = {}
    found: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def before(layer: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        # A copy: an activation may overwrite what it is given.
        entered[layer] = (args[0] if args else next(iter(named.values()))).clone()

    def after(layer: nn.Module, given: Any, result: Tensor) -> None:
        found[layer] = entered[layer], result.clone()
        if len(found) == len(set(layers)):
            raise _Reached

    with _hooked(layers, before, after), suppress(_Reached):
        module(**batch.inputs)
    return found


@contextmanager
def _hooked(
    layers: Sequence[nn.Module], before: Callable[..., None], after: Callable[..., None]
) -> Iterator[None]:
    hooks = [each.register_forward_pre_hook(before, with_kwargs=True) for each in layers]
    hooks += [each.register_forward_hook(after) for each in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
