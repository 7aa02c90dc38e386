"""Calibration: one pass, memory that does not grow, an early end, and going on when killed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from edgekit import progress
from edgekit.data import open_data
from edgekit.edit import Editor
from edgekit.errors import EdgekitError
from edgekit.model import BATCH, Dim, Input, Model
from edgekit.quantize import calibrate
from edgekit.quantize.calibrate import Store, observe
from edgekit.quantize.observe import BINS, Statistics, save_arrays
from edgekit.quantize.ranges.minmax import Range
from edgekit.quantize.sites import find_sites

VALUES = np.random.default_rng(0).standard_normal((100, 4, 6)).astype(np.float32)


class Net(torch.nn.Module):
    """Two linears on one tensor, and a third on their sum."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (torch.nn.Linear(6, 6) for _ in range(3))

    def forward(self, x):
        return self.c(torch.relu(self.a(x) + self.b(x)))


def export(batch=1):
    torch.manual_seed(0)
    return Model(Net(), (Input("x", (1, 4, 6)),), ("y",), "net").with_batch(batch).export()


@pytest.fixture(scope="module")
def graph():
    return export()


@pytest.fixture(scope="module")
def sites(graph):
    return find_sites(Editor(graph))


def data(graph, values=VALUES):
    return open_data(values, graph.inputs, None)


def test_statistics_are_those_of_all_values_at_once(graph, sites):
    seen = observe(graph, sites, data(graph), Range())
    a = seen.by_site["a.input"]
    rows = VALUES.reshape(-1, 6)
    assert seen.samples == 100
    assert a is seen.by_site["b.input"]
    assert a.peak == np.abs(rows).max()
    assert np.array_equal(a.channel_peak, np.abs(rows).max(0))
    assert np.allclose(a.channel_mean, rows.mean(0), atol=1e-6)
    assert a.counts.sum() == rows.size
    by_hand, _ = np.histogram(np.abs(rows), BINS, (0, a.limit))
    assert np.abs(a.counts - by_hand).sum() <= 4  # a value on a bin's edge may fall either way


def test_memory_does_not_grow_with_samples(graph, sites):
    sizes = [
        sum(
            array.nbytes
            for array in save_arrays(observe(graph, sites, few, Range()).by_site).values()
        )
        for few in (data(graph, VALUES[:4]), data(graph))
    ]
    assert sizes[0] == sizes[1]


def test_a_range_that_doubles_keeps_its_counts():
    small, large = torch.full((1, 8), 0.75), torch.full((1, 8), 100.0)
    seen = Statistics()
    seen.add(small, -1)
    seen.add(large, -1)
    assert seen.limit == 128
    assert seen.counts.sum() == 16
    assert seen.counts[int(0.75 * BINS / 128)] == 8
    assert seen.counts[int(100 * BINS / 128)] == 8


@pytest.mark.parametrize("size", [1, 7, 32])
def test_the_batch_size_does_not_change_the_result(size):
    graph = export("dynamic")
    sites = find_sites(Editor(graph))
    one = observe(graph, sites, data(graph, VALUES[:33]), Range())
    many = observe(graph, sites, data(graph, VALUES[:33]), Range(), batch_size=size)
    for name, expected in one.by_site.items():
        assert many.by_site[name].peak == pytest.approx(expected.peak, rel=1e-6)
        assert many.by_site[name].rows == expected.rows


def test_it_stops_where_ranges_have_settled_and_says_so(graph, sites, capsys, monkeypatch):
    monkeypatch.setattr(progress, "_enabled", True)
    same = np.concatenate([VALUES[:32]] * 8)
    assert observe(graph, sites, data(graph, same), Range()).samples == 64
    assert "settled after 64 of 256 samples" in capsys.readouterr().err
    growing = same * np.linspace(1, 3, len(same), dtype=np.float32)[:, None, None]
    assert observe(graph, sites, data(graph, growing), Range()).samples == 256


def test_a_killed_pass_goes_on_and_ends_alike(graph, sites, tmp_path, monkeypatch):
    monkeypatch.setattr(calibrate, "SAVE_EVERY", 0.0)
    store = Store(tmp_path / "kept.npz", "key")
    whole = observe(graph, sites, data(graph), Range(), products=True)
    read: list[int] = []
    source = data(graph)

    def read_until(last):
        def read_one(index):
            if index == last:
                raise KeyboardInterrupt
            read.append(index)
            return source.read(index)

        return replace(source, read=read_one)

    with pytest.raises(KeyboardInterrupt):
        observe(graph, sites, read_until(60), Range(), products=True, store=store)
    assert store.path.exists()
    read.clear()
    again = observe(graph, sites, read_until(None), Range(), products=True, store=store)
    assert min(read) > 50
    assert not store.path.exists()
    assert again.samples == whole.samples
    for name, expected in save_arrays(whole.by_site).items():
        assert np.array_equal(save_arrays(again.by_site)[name], expected), name


def test_what_another_calibration_kept_is_not_used(graph, sites, tmp_path, monkeypatch):
    monkeypatch.setattr(calibrate, "SAVE_EVERY", 0.0)
    path = tmp_path / "kept.npz"
    source = data(graph)

    def stop(index):
        if index == 5:
            raise KeyboardInterrupt
        return source.read(index)

    with pytest.raises(KeyboardInterrupt):
        observe(graph, sites, replace(source, read=stop), Range(), store=Store(path, "one"))
    assert observe(graph, sites, source, Range(), store=Store(path, "two")).samples == 100


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.repeat(VALUES[:1], 5, 0), "is constant"),
        (np.zeros((3, 4, 6), np.float32), "is constant"),
        (np.where(np.arange(6) == 2, np.nan, VALUES[:3]), "holds NaN or infinity"),
        (np.where(np.arange(6) == 2, np.inf, VALUES[:3]), "holds NaN or infinity"),
    ],
)
def test_data_that_says_nothing_of_ranges_is_refused(graph, sites, values, message):
    with pytest.raises(EdgekitError, match=message):
        observe(graph, sites, data(graph, values.astype(np.float32)), Range())


class Tokens(torch.nn.Module):
    """An embedding, two inputs, any length."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = torch.nn.Embedding(10, 8), torch.nn.Linear(8, 3)

    def forward(self, ids, mask):
        return self.head(self.embed(ids) * mask[..., None])


def test_tokens_several_inputs_and_variable_lengths():
    length = Dim("length", 1, 5, 16)
    inputs = (Input("ids", (BATCH, length), "int64"), Input("mask", (BATCH, length)))
    graph = Model(Tokens(), inputs, ("y",), "tokens").export()
    random = np.random.default_rng(0)
    lengths = [3, 5, 5, 9, 2, 2, 2, 7]
    samples = [{"ids": random.integers(0, 10, n), "mask": np.ones(n, np.float32)} for n in lengths]
    seen = observe(
        graph, find_sites(Editor(graph)), open_data(samples, inputs, None), Range(), batch_size=2
    )
    assert seen.samples == len(lengths)
    assert seen.by_site["head.input"].rows == sum(lengths)
