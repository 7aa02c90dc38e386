"""Observe: what one streaming pass keeps of an activation. Memory does not grow with samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from torch.fx import Node

BINS = 2048
#: Weight of the newest batch in a moving average.
MOMENTUM = 0.1
#: Least limit of a histogram: its inverse must be a float32.
_LEAST = 2.0**-100
#: Rows whose products are all kept, however few inputs a layer has.
_ALL = 2048

Array = np.ndarray[Any, Any]


@dataclass
class Statistics:
    """What was seen of one tensor.

    Attributes:
        peak: largest magnitude.
        average_peak: moving average of the batches' largest magnitudes.
        counts: histogram of magnitudes in ``BINS`` equal bins over [0, limit].
        limit: a power of two, not below ``peak``.
        channel_peak: largest magnitude of each channel, (C,).
        channel_sum: sum of each channel, (C,).
        rows: values summed in each channel.
        gram: sum over rows of x x^T, (K, K), where K are the inputs of one output; or empty.
        gram_sum: sum of the same rows, (K,).
        gram_rows: how many they are.
    """

    peak: float = 0.0
    average_peak: float = 0.0
    counts: Array = field(default_factory=lambda: np.zeros(BINS))
    limit: float = 0.0
    channel_peak: Array = field(default_factory=lambda: np.zeros(0, np.float32))
    channel_sum: Array = field(default_factory=lambda: np.zeros(0))
    rows: int = 0
    gram: Array = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    gram_sum: Array = field(default_factory=lambda: np.zeros(0))
    gram_rows: int = 0

    @property
    def channel_mean(self) -> Array:
        """Mean of each channel, (C,)."""
        return self.channel_sum / max(self.rows, 1)

    @property
    def centres(self) -> Array:
        """The middle of each bin, (BINS,)."""
        return (np.arange(BINS) + 0.5) * (self.limit / BINS)

    def add(self, value: torch.Tensor, channel: int) -> None:
        """Take in one call's tensor; ``channel`` is the axis of its channels."""
        by_channel = value.detach().movedim(channel, -1).reshape(-1, value.shape[channel]).float()
        magnitudes = by_channel.abs()
        peaks = magnitudes.amax(0).numpy()
        peak = float(peaks.max())
        first = self.rows == 0
        self.average_peak = (
            peak if first else self.average_peak + MOMENTUM * (peak - self.average_peak)
        )
        self.peak = float(np.maximum(self.peak, peak))  # NaN stays
        self.channel_peak = peaks if first else np.maximum(self.channel_peak, peaks)
        sums = by_channel.sum(0).double().numpy()
        self.channel_sum = sums if first else self.channel_sum + sums
        self.rows += len(by_channel)
        if np.isfinite(peak):
            self._count(magnitudes, peak)

    def _count(self, magnitudes: torch.Tensor, peak: float) -> None:
        if peak == 0 and self.limit == 0:
            return
        if self.limit == 0:
            self.limit = max(2.0 ** np.ceil(np.log2(peak)), _LEAST)
        while self.limit < peak:
            merged = self.counts.reshape(-1, 2).sum(1)
            self.counts = np.concatenate([merged, np.zeros(BINS // 2)])
            self.limit *= 2
        # Many times as fast as torch.histc, and as exact: the factor is a power of two.
        bins = (magnitudes * (BINS / self.limit)).int().clamp_max_(BINS - 1)
        self.counts = self.counts + torch.bincount(bins.flatten(), minlength=BINS).numpy()

    def add_products(self, rows: torch.Tensor) -> None:
        """Take in rows (n, K) that a weight multiplies, after ``add``.

        Those of every call at first; after K rows, and at least ``_ALL``, of every third, after
        twice as many of every fifth, and so on: out of N rows about sqrt(K N) count.
        """
        width = rows.shape[1]
        if not self.gram_rows:
            self.gram = np.zeros((width, width), np.float32)
            self.gram_sum = np.zeros(width)
        stride = 1 + 2 * (self.gram_rows // max(width, _ALL))
        if self.rows // len(rows) % stride == 0:
            torch.from_numpy(self.gram).addmm_(rows.T, rows)
            self.gram_sum = self.gram_sum + rows.sum(0).double().numpy()
            self.gram_rows += len(rows)


def save_arrays(seen: Mapping[str, Statistics]) -> dict[str, Array]:
    """All statistics as arrays by ``tensor/field``."""
    return {
        f"{name}/{item.name}": np.asarray(getattr(statistics, item.name))
        for name, statistics in seen.items()
        for item in fields(Statistics)
    }


def load_arrays(arrays: Mapping[str, Array]) -> dict[str, Statistics]:
    """The inverse of ``save_arrays``."""
    seen: dict[str, Statistics] = {}
    for key, array in arrays.items():
        name, _, item = key.rpartition("/")
        statistics = seen.setdefault(name, Statistics())
        setattr(statistics, item, array.item() if array.ndim == 0 else array)
    return seen


def probabilities(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """softmax(s Q K^T + M), which torch's attention keeps to itself; arguments as there."""
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
    scores = query * (scale or query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, float("-inf"))
    elif attn_mask is not None:
        scores = scores + attn_mask
    return scores.softmax(-1)


def rows_of(node: Node, value: torch.Tensor) -> torch.Tensor | None:
    """The rows (n, K) that a linear's or convolution's weight (out, K) multiplies.

    None for a grouped or one-dimensional convolution, whose outputs do not share their rows.
    """
    if str(node.target) == "aten.linear.default":
        return value.reshape(-1, value.shape[-1]).float()
    weight: Any = node.args[1]
    options = dict(zip(("stride", "padding", "dilation", "groups"), node.args[3:], strict=False))
    kernel = weight.meta["val"].shape[2:]
    if len(kernel) != 2 or options.get("groups", 1) != 1 or isinstance(options.get("padding"), str):
        return None
    patches = torch.nn.functional.unfold(
        value.float(),
        tuple(kernel),
        dilation=_pair(options.get("dilation", 1)),
        padding=_pair(options.get("padding", 0)),
        stride=_pair(options.get("stride", 1)),
    )
    return patches.movedim(1, -1).reshape(-1, patches.shape[1])


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    return (value[0], value[-1])
