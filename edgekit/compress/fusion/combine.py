"""Combine: the other model's weights, carried to the student's units, and the mean of both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from edgekit.compress.fusion import vit
from edgekit.compress.fusion.moments import Moments
from edgekit.compress.fusion.transport import Map, Transport, rotation

Basis = Literal["rotation", "units"]
Stream = Literal["last", "all"]


@dataclass(frozen=True)
class Alignment:
    """How units are matched.

    Attributes:
        transport: of MLP units and of whole heads; with ``units``, of everything.
        basis: of the residual stream and within heads, where no unit is special: ``rotation``
            turns the other's basis onto the student's; ``units`` transports unit to unit.
        stream: where the residual stream is compared: before the head, or before every layer.
    """

    transport: Transport
    basis: Basis
    stream: Stream

    def residual(self, moments: dict[str, Moments]) -> Map:
        """One map for the whole residual stream."""
        names = [name for name in moments if name.startswith("stream/")]
        seen = [moments[name] for name in (["stream/last"] if self.stream == "last" else names)]
        if self.basis == "units":
            return self.transport.map(_mean([m.correlation() for m in seen]))
        turned = rotation(_mean([m.cross / m.count for m in seen]))
        # A normalised stream's norm is the root of its width.
        return Map(turned, turned * (turned.shape[0] / turned.shape[1]) ** 0.5)

    def within(self, moments: list[Moments], rows: slice, columns: slice) -> tuple[Map, float]:
        """The map between units of two heads, and how alike it makes them, at most 1."""
        if self.basis == "units":
            alike = _mean([m.correlation()[rows, columns] for m in moments])
            found = self.transport.map(alike)
            return found, float((found.out * alike).sum() / alike.shape[1])
        cross = _mean([m.covariance()[rows, columns] / _size(m, rows, columns) for m in moments])
        turned = rotation(cross)
        return Map(turned, turned), float((turned * cross).sum())


def _mean(values: list[Tensor]) -> Tensor:
    return torch.stack(values).mean(0)


def _size(moments: Moments, rows: slice, columns: slice) -> float:
    first = moments.variance(0)[rows].sum()
    second = moments.variance(1)[columns].sum()
    return float((first * second).sqrt().clamp_min(1e-12))


@torch.no_grad()
def combine(
    other: Any, student: Any, moments: dict[str, Moments], alignment: Alignment, weight: float
) -> None:
    """Make the student the mean of both: ``weight * carried(other) + (1 - weight) * student``."""
    stream = alignment.residual(moments)
    mix = _Mix(weight)
    mix.layer(other.patch_embed.proj, student.patch_embed.proj, stream, None)
    own = vit.tokens(student)
    for name, value in vit.tokens(other).items():
        mix.tensor(value.double() @ stream.out, own[name])
    for place, (theirs, ours) in enumerate(zip(other.blocks, student.blocks, strict=True)):
        asked, valued = _attention(theirs.attn, ours.attn, moments, place, alignment)
        whole = torch.block_diag(asked.out, asked.out, valued.out)  # type: ignore[no-untyped-call]
        qkv = Map(whole, whole)
        mix.layer(theirs.attn.qkv, ours.attn.qkv, qkv, stream)
        mix.layer(theirs.attn.proj, ours.attn.proj, stream, valued)
        hidden = alignment.transport.map(moments[f"hidden/{place}"].correlation())
        mix.layer(theirs.mlp.fc1, ours.mlp.fc1, hidden, stream)
        mix.layer(theirs.mlp.fc2, ours.mlp.fc2, stream, hidden)
    for theirs, ours in zip(vit.heads(other), vit.heads(student), strict=True):
        mix.layer(theirs, ours, None, stream)


@dataclass(frozen=True)
class _Mix:
    weight: float

    def tensor(self, carried: Tensor, own: Tensor) -> None:
        own.copy_(self.weight * carried + (1 - self.weight) * own.double())

    def layer(self, theirs: Any, ours: Any, out: Map | None, into: Map | None) -> None:
        """A layer (outputs, inputs, ...); None leaves that side as it is."""
        weight = theirs.weight.double()
        if into is not None:
            weight = weight @ into.into
        if out is not None:
            weight = torch.einsum("nm,n...->m...", out.out, weight)
        self.tensor(weight, ours.weight)
        if theirs.bias is None and ours.bias is None:
            return
        bias = _bias(theirs) if out is None else out.out.T @ _bias(theirs)
        if ours.bias is None:
            ours.bias = nn.Parameter(ours.weight.new_zeros(len(ours.weight)))
        self.tensor(bias, ours.bias)


def _bias(layer: Any) -> Tensor:
    if layer.bias is None:
        return torch.zeros(len(layer.weight), dtype=torch.float64)
    bias: Tensor = layer.bias.double()
    return bias


def _attention(
    theirs: Any, ours: Any, moments: dict[str, Moments], place: int, alignment: Alignment
) -> tuple[Map, Map]:
    """Maps of all queries (and keys), and of all values: whole heads are transported too."""
    seen = moments[f"qkv/{place}"]
    sizes = theirs.qkv.out_features // 3, ours.qkv.out_features // 3
    queries, keys = (seen.part(*(slice(i * n, (i + 1) * n) for n in sizes)) for i in (0, 1))
    values = moments[f"values/{place}"]
    rows, columns = _slices(theirs), _slices(ours)
    asked = [[alignment.within([queries, keys], r, c) for c in columns] for r in rows]
    valued = [[alignment.within([values], r, c) for c in columns] for r in rows]
    alike = torch.tensor(
        [[(a[1] + v[1]) / 2 for a, v in zip(*pair, strict=True)]
         for pair in zip(asked, valued, strict=True)]
    )  # fmt: skip
    heads = alignment.transport.map(alike)
    # The products of queries and keys are scaled by the width of a head.
    gain = (theirs.scale / ours.scale) ** 0.5
    return _joined(heads, asked, gain), _joined(heads, valued, 1.0)


def _slices(attention: Any) -> list[slice]:
    width = attention.head_dim
    return [slice(i * width, (i + 1) * width) for i in range(attention.num_heads)]


def _joined(heads: Map, within: list[list[tuple[Map, float]]], gain: float) -> Map:
    """The maps within heads as one, each weighted by how much of a head is carried there."""
    out, into = (
        torch.cat([
            torch.cat([heads_to[r, c] * getattr(one[0], name) for c, one in enumerate(row)], 1)
            for r, row in enumerate(within)
        ])
        for name, heads_to in (("out", heads.out), ("into", heads.into))
    )  # fmt: skip
    return Map(out * gain, into)
