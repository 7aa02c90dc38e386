"""Calibration: one streaming pass over real samples in PyTorch."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from edgekit import files
from edgekit.errors import EdgekitError
from edgekit.progress import say, track
from edgekit.quantize.observe import (
    Statistics,
    load_arrays,
    probabilities,
    rows_of,
    save_arrays,
)
from edgekit.quantize.schemes import QMAX
from edgekit.quantize.sites import Site

if TYPE_CHECKING:
    from torch.fx import Node

    from edgekit.data import Dataset, Sample
    from edgekit.model import Graph

#: Calibration ends where, over this many samples, no range moved by more than this share.
WINDOW, SETTLED = 32, 0.01
#: In place of an axis: the tensor is computed within the node.
PROBABILITIES = 0
#: Seconds between two saves of what was seen.
SAVE_EVERY = 20.0


class Range(Protocol):
    """See ``edgekit.quantize.ranges``."""

    def peak(self, seen: Statistics, qmax: int) -> float:
        """The magnitude that the largest level stands for."""
        ...


@dataclass(frozen=True)
class Seen:
    """What a pass saw.

    Attributes:
        by_site: of every input site, by its name; sites of one tensor share it.
        samples: how many were seen.
    """

    by_site: Mapping[str, Statistics]
    samples: int


@dataclass(frozen=True)
class Store:
    """Where a pass keeps what it saw, so that it can go on after it was killed.

    Attributes:
        path: an ``.npz``; removed when the pass ends.
        key: a digest of all that the pass depends on; what was kept under another is not used.
    """

    path: Path
    key: str


def observe(
    graph: Graph,
    sites: tuple[Site, ...],
    data: Dataset,
    range_: Range,
    products: bool = False,
    batch_size: int = 1,
    store: Store | None = None,
) -> Seen:
    """Run the graph on every sample and keep statistics of each activation site.

    It ends early, and says so, where the ranges have settled.

    Args:
        graph: in fp32; it must take ``batch_size`` samples.
        range_: whose ranges must settle.
        products: whether to keep x x^T, for methods that round weights.
        store: to go on from, and to save in.

    Raises:
        EdgekitError: a site is fed NaN or infinity; the samples are all the same, or too few.
    """
    watcher = _Watcher(graph, sites, products)
    done = _resumed(store, watcher, len(data))
    settled = _Settled(watcher, range_)
    batches = _batched(data, done, batch_size)
    saved = time.monotonic()
    with torch.inference_mode():
        for batch in track(batches, "Calibrating", -(-(len(data) - done) // batch_size)):
            given = graph.complete(batch).values()
            watcher.run(*(torch.from_numpy(value) for value in given))
            done += len(next(iter(batch.values())))
            if settled.after(done):
                say(f"Calibration has settled after {done} of {len(data)} samples.")
                break
            if store and time.monotonic() - saved > SAVE_EVERY:
                _save(store, watcher, done)
                saved = time.monotonic()
    if store:
        store.path.unlink(missing_ok=True)
    return Seen(watcher.by_site(), done)


class _Watcher(torch.fx.Interpreter):
    """Runs the graph and keeps statistics of each watched tensor, once for all its sites."""

    def __init__(self, graph: Graph, sites: tuple[Site, ...], products: bool) -> None:
        module = graph.exported.module(check_guards=False)
        super().__init__(module)
        self._products = products
        self._nodes = {node.name: node for node in module.graph.nodes}
        self._keys = {site.name: self._key(site) for site in sites if site.kind != "weight"}
        self._sites: dict[tuple[str, int], list[Site]] = {}
        for site in sites:
            if site.kind != "weight":
                self._sites.setdefault(self._keys[site.name], []).append(site)
        self.seen = {f"{name} {axis}": Statistics() for name, axis in self._sites}

    def by_site(self) -> dict[str, Statistics]:
        """What was seen, by the names of sites."""
        return {site: self.seen[f"{name} {axis}"] for site, (name, axis) in self._keys.items()}

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        for axis in (-1, 1):
            if (n.name, axis) in self._sites:
                self._add(n.name, axis, value)
        if (n.name, PROBABILITIES) in self._sites:
            arguments, options = self.fetch_args_kwargs_from_env(n)
            self._add(n.name, PROBABILITIES, probabilities(*arguments, **options))
        return value

    def _key(self, site: Site) -> tuple[str, int]:
        """The node that gives a site's tensor, and the axis of its channels."""
        if site.kind == "probabilities":
            return site.node, PROBABILITIES
        call = self._nodes[site.node]
        sources = {"input": 0, "query": 0, "key": 1, "value": 2}
        source: Any = call.args[sources[site.kind]]
        return source.name, 1 if site.operator == "conv" else -1

    def _add(self, name: str, axis: int, value: torch.Tensor) -> None:
        seen, sites = self.seen[f"{name} {axis}"], self._sites[name, axis]
        seen.add(value, -1 if axis == PROBABILITIES else axis)
        if not np.isfinite(seen.peak):
            raise EdgekitError(
                f"{sites[0].name} is not finite during calibration.",
                "The model gives NaN or infinity on a calibration sample.",
                "Check the checkpoint, and the calibration data's scale.",
            )
        layers = [self._nodes[site.node] for site in sites if site.kind == "input"]
        rows = rows_of(layers[0], value) if self._products and layers else None
        if rows is not None:
            seen.add_products(rows)


class _Settled:
    """Whether ranges have stopped moving, looked at every ``WINDOW`` samples."""

    def __init__(self, watcher: _Watcher, range_: Range) -> None:
        self._watcher, self._range = watcher, range_
        self._last: np.ndarray[Any, Any] | None = None
        self._next = WINDOW

    def after(self, done: int) -> bool:
        if done < self._next:
            return False
        self._next = done + WINDOW
        qmax = QMAX["int8"]
        peaks = np.array([self._range.peak(s, qmax) for s in self._watcher.seen.values()])
        last, self._last = self._last, peaks
        if last is None:
            return False
        return bool((np.abs(peaks - last) <= SETTLED * np.maximum(last, 1e-12)).all())


def _batched(data: Dataset, start: int, size: int) -> Iterator[Sample]:
    """Samples from ``start`` in batches of at most ``size``, each of one shape.

    Raises:
        EdgekitError: there are no samples, or more than one and all the same.
    """
    if not len(data):
        raise EdgekitError(f"The calibration set {data.origin} is empty.")
    waiting: list[Sample] = []
    first: Sample | None = None
    differs = len(data) == 1 or start > 0
    for index in range(start, len(data)):
        sample = data.read(index)
        first = first or sample
        differs = differs or not _equal(first, sample)
        if waiting and (len(waiting) == size or not _alike(waiting[0], sample)):
            yield {name: np.stack([s[name] for s in waiting]) for name in sample}
            waiting = []
        waiting.append(sample)
    if not differs:
        raise EdgekitError(
            f"The calibration set {data.origin} is constant.",
            f"All of its {len(data)} samples are equal, so they say nothing of real ranges.",
            "Give samples such as the model will see.",
        )
    if waiting:
        yield {name: np.stack([s[name] for s in waiting]) for name in waiting[0]}


def _alike(a: Sample, b: Sample) -> bool:
    return all(a[name].shape == b[name].shape for name in a)


def _equal(a: Sample, b: Sample) -> bool:
    return all(np.array_equal(a[name], b[name]) for name in a)


def _resumed(store: Store | None, watcher: _Watcher, total: int) -> int:
    """Take over what a killed pass saw; returns the samples that it had done."""
    if store is None or not store.path.exists():
        return 0
    with np.load(store.path, allow_pickle=False) as kept:
        if str(kept["key"]) != store.key:
            return 0
        done = int(kept["done"])
        arrays = {name: kept[name] for name in kept.files if " " in name}
    watcher.seen.update(load_arrays(arrays))
    say(f"Calibration goes on after {done} of {total} samples.")
    return done


def _save(store: Store, watcher: _Watcher, done: int) -> None:
    with files.atomic(store.path) as room, room.open("wb") as stream:
        np.savez(stream, key=store.key, done=done, **save_arrays(watcher.seen))  # type: ignore[arg-type]
