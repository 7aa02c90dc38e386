"""Attention of spikes in the place of softmax attention, fitted to what it stands for.

See ``modules/spiking_attention.py`` for what it computes. Attentions are done in the network's
order, each on what those before it give: queries and keys lose their means over the data, each unit
gets its thresholds, one a head (one a channel before ``proj``), and each head the factor

    s = argmin E |s y - o|^2 = E[y o] / E[y^2]

with y what it gives without one, and o what the softmax attention did. ``proj`` is then refit to
give what it did in the network as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from edgekit import interrupt
from edgekit.compress import attentions
from edgekit.compress.attentions import SelfAttention
from edgekit.compress.conversion import fitting
from edgekit.compress.conversion.places import Place, Reader
from edgekit.compress.layers import replace
from edgekit.compress.modules.spiking_attention import TAKEN, SpikingAttention

if TYPE_CHECKING:
    from edgekit.compress.batches import Batch
    from edgekit.compress.conversion.fitting import Rules
    from edgekit.compress.layers import Layers
    from edgekit.model import Model


@dataclass(frozen=True)
class Pair:
    """A model with units, the one that it was made of, and an attention in both."""

    made: Model
    original: Model
    own: SelfAttention
    before: SelfAttention


def find(made: Model, original: Model) -> Layers:
    """The attentions (``Pair``) that can be of spikes, and why others are left."""
    found = attentions.find(made, ())
    before = attentions.find(original, ()).chosen
    for path, own in found.chosen.items():
        found.chosen[path] = Pair(made, original, own, before[path])
    return found


def swap(pair: Pair, batches: Sequence[Batch], rules: Rules, refit: bool) -> None:
    """Put spiking attention into the model with units, in the place of the attention.

    Args:
        refit: whether ``proj`` makes up for what is lost.

    Raises:
        EdgekitError: what it computes on the data is not finite, or never above zero.
    """
    made, parts = pair.made, pair.own
    x, _ = fitting.seen(made.module, [parts.module], batches[0])[parts.module]
    new = SpikingAttention(parts.heads, parts.head_dim, x.shape[1] > parts.head_dim)
    for name in TAKEN:
        setattr(new, name, getattr(parts, name))
    replace(made, {parts.module: new})
    _centre(made, new, batches)
    for name in ("query_unit", "key_unit", "value_unit"):
        place = Place(f"{parts.path}.{name}", getattr(new, name), False, 1, parts.heads, ())
        fitting.fit(made, place, batches, rules)
    _scale(pair, new, batches)
    leaving = _leaving(pair, new)
    fitting.fit(made, leaving, batches, rules)
    if refit:
        fitting.refit(made, pair.original, leaving, batches)


def _leaving(pair: Pair, new: SpikingAttention) -> Place:
    """Where the unit in front of ``proj`` goes."""
    path, before = pair.own.path, pair.before
    name = next(n for n, each in before.module.named_children() if each is before.proj)
    channels = torch.arange(before.proj.in_features)
    reader = Reader(f"{path}.{name}", new.proj, channels)
    return Place(f"{path}.output_unit", new.output_unit, False, -1, len(channels), (reader,))


def _centre(made: Model, new: SpikingAttention, batches: Sequence[Batch]) -> None:
    """Take queries and keys from their means over the data, channel by channel."""
    units, means = (new.query_unit, new.key_unit), (new.query_mean, new.key_mean)
    sums, count = [torch.zeros_like(mean, dtype=torch.float64) for mean in means], 0
    with torch.no_grad():
        for batch in batches:
            interrupt.check()
            found = fitting.seen(made.module, units, batch)
            for total, unit in zip(sums, units, strict=True):
                total += found[unit][0].double().sum((0, 2))[:, None]
            count += found[units[0]][0][:, 0, :, 0].numel()
        for total, mean in zip(sums, means, strict=True):
            mean.copy_(total / count)


def _scale(pair: Pair, new: SpikingAttention, batches: Sequence[Batch]) -> None:
    """Give each head the factor with which it is nearest to softmax attention."""
    before = pair.before
    cross = square = torch.zeros(new.heads, dtype=torch.float64)
    with torch.no_grad():
        for batch in batches:
            interrupt.check()
            x, _ = fitting.seen(pair.original.module, [before.module], batch)[before.module]
            wanted = F.scaled_dot_product_attention(*before.split(x)).double()
            x, _ = fitting.seen(pair.made.module, [new], batch)[new]
            given = new.mixed(x).double()
            cross = cross + (given * wanted).sum((0, 2, 3))
            square = square + given.square().sum((0, 2, 3))
        new.factor.copy_((cross / square.clamp_min(1e-30))[:, None, None])
