"""Core ML packages of streaming models: their states, and lengths that vary."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgekit import targets
from edgekit.converters import coreml
from edgekit.converters.mil import Evaluator
from edgekit.errors import EdgekitError
from edgekit.find import find
from edgekit.model import Dim, Graph, Input, Model, State
from edgekit.operators.causal_attention import causal_attention
from edgekit.operators.latest import latest
from edgekit.operators.linear_scan import linear_scan
from edgekit.operators.mamba_scan import mamba_scan
from edgekit.operators.ssd import ssd
from edgekit.targets import Target
from edgekit.targets.rules import RULES
from edgekit.targets.runtimes import coreml as runtime

Arrays = dict[str, np.ndarray[Any, Any]]
PHONE, LAPTOP = targets.load("iphone-15-pro"), targets.load("macbook-m4")
LENGTH, PAST = Dim("length", 1, 4, 64), Dim("past", 0, 4, 32)


class Stream(nn.Module):
    """One of each kind of layer, and their states."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 8)
        self.taps = nn.Parameter(torch.empty(8, 1, 3))
        self.project = nn.Linear(8, 24)
        self.rates = nn.Parameter(torch.empty(8, 4))
        self.head = nn.Linear(8, 10)

    def forward(
        self, ids: Tensor, conv_0: Tensor, scan_0: Tensor, scan_1: Tensor, key_2: Tensor
    ) -> tuple[Tensor, ...]:
        x = torch.cat([conv_0, self.table(ids).mT], 2)
        conv_0, x = x[..., -2:], F.conv1d(x, self.taps, groups=8).mT
        step, keys, queries = self.project(x).split(8, -1)
        rates = -torch.exp(self.rates)
        y, scan_0 = mamba_scan(x, F.softplus(step), rates, keys[..., :4], queries[..., :4], scan_0)
        heads = [v.unflatten(-1, (2, 4)) for v in (y, keys, queries)]
        z, scan_1 = ssd(heads[0], -F.softplus(step[..., :2]), heads[1], heads[2], scan_1)
        key_2 = torch.cat([key_2, z.transpose(1, 2)], 2)
        y = causal_attention(heads[2].transpose(1, 2), key_2, key_2, 0.5)
        return self.head(y.transpose(1, 2).flatten(2) + x), conv_0, scan_0, scan_1, key_2


@pytest.fixture(scope="module")
def stream() -> Graph:
    torch.manual_seed(0)
    module = Stream()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    states = (
        State("conv_0", (1, 8, 2)),
        State("scan_0", (1, 4, 8)),
        State("scan_1", (1, 2, 4, 4)),
        State("key_2", (1, 2, PAST, 4)),
    )
    inputs = (Input("ids", (1, LENGTH), "int64"),)
    return Model(module, inputs, ("scores",), "stream", states=states).export()


def _x(*shape: int) -> Arrays:
    return {"x": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}


def _lowered(graph: Graph, precision: str = "fp32") -> Graph:
    for name in RULES["coreml"].rewrites:
        graph = find("rewrites", name).rewrite(graph)
    return dataclasses.replace(graph, precision=precision)


@pytest.mark.parametrize(
    ("target", "precision", "held", "error"),
    [
        (PHONE, "fp32", [], 1e-5),
        (
            LAPTOP,
            "fp16",
            ["conv_0", "scan_0", "scan_0_rest", "scan_1", "scan_1_rest"],
            5e-3,
        ),
    ],
)
def test_a_stream_goes_on_from_its_states(
    stream: Graph, target: Target, precision: str, held: list[str], error: float, tmp_path: Path
) -> None:
    artifact = coreml.convert(_lowered(stream, precision), tmp_path / "m.mlpackage", target)
    assert artifact.details["states_held"] == held
    assert artifact.details["dynamic_sizes"] == {"length": "1..4..64", "past": "0..4..32"}
    ids = np.random.default_rng(0).integers(0, 10, (1, 20))
    states: Arrays = {}
    with runtime.open(artifact.path) as session:
        assert session.states == stream.states
        assert [spec.name for spec in session.inputs] == ["ids"]
        for start, end in ((0, 7), (7, 8), (8, 19), (19, 20)):
            got = session.infer({"ids": ids[:, start:end], **states})
            states = {state.name: got[state.output] for state in session.states}
    want = stream.run({"ids": ids})
    np.testing.assert_allclose(got["scores"], want["scores"][:, -1:], atol=error)
    for name in [state.output for state in stream.states]:
        assert got[name].dtype == np.float32
        np.testing.assert_allclose(got[name], want[name], atol=error)


class Total(nn.Module):
    """Adds to a state in float32."""

    def forward(self, x: Tensor, sum_0: Tensor) -> tuple[Tensor, Tensor]:
        y, sum_0 = linear_scan(x, torch.ones_like(x), sum_0)
        return y, sum_0


def test_a_held_state_keeps_what_float16_would_lose(tmp_path: Path) -> None:
    inputs, states = (Input("x", (1, 1, 3)),), (State("sum_0", (1, 3)),)
    graph = Model(Total(), inputs, ("y",), "sum", states=states).export()
    artifact = coreml.convert(_lowered(graph, "fp16"), tmp_path / "m.mlpackage", LAPTOP)
    session = runtime.open(artifact.path)
    total: Arrays = {"sum_0": np.full((1, 3), 1000, np.float32)}
    for _ in range(8):  # float16 has steps of 0.5 here
        total = {
            "sum_0": session.infer({"x": np.full((1, 1, 3), 0.125, np.float32), **total})[
                "sum_0_next"
            ]
        }
    np.testing.assert_allclose(total["sum_0"], 1001, rtol=1e-6)


def test_a_recurrence_of_a_long_length_that_varies_is_an_error(tmp_path: Path) -> None:
    inputs = (Input("x", (1, Dim("length", 1, 64, 4096), 3)),)
    states = (State("sum_0", (1, 3)),)
    graph = Model(Total(), inputs, ("y",), "sum", states=states).export()
    with pytest.raises(EdgekitError, match=r"linear_scan.*\n.*length 1\.\.64\.\.4096\.\nFix"):
        coreml.convert(_lowered(graph), tmp_path / "m.mlpackage", PHONE)


def test_only_the_latest_of_a_cache_are_kept(tmp_path: Path) -> None:
    class Window(nn.Module):
        def forward(self, x: Tensor, key_0: Tensor) -> tuple[Tensor, Tensor]:
            key_0 = torch.cat([key_0, x], 2)
            return key_0.sum(2), latest(key_0, 3)

    states = (State("key_0", (1, 2, Dim("window_3", 0, 3, 3), 4)),)
    inputs = (Input("x", (1, 2, LENGTH, 4)),)
    graph = Model(Window(), inputs, ("y",), "window", states=states).export()
    artifact = coreml.convert(graph, tmp_path / "m.mlpackage", PHONE)
    session, carried = runtime.open(artifact.path), graph.run(_x(1, 2, 2, 4))
    for length in (2, 1, 5):
        x = {**_x(1, 2, length, 4), "key_0": carried["key_0_next"]}
        carried, got = graph.run(x), session.infer(x)
        for name, value in carried.items():
            np.testing.assert_allclose(got[name], value, atol=1e-6)


def test_numbers_are_scattered_among_any_number_of_rows(tmp_path: Path) -> None:
    class Scatter(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.zeros_like(x).scatter(-1, x.topk(2, -1).indices, 3.0)

    graph = Model(Scatter(), (Input("x", (LENGTH, 6)),), ("y",), "test").export()
    package = coreml.convert(graph, tmp_path / "m.mlpackage", PHONE).path
    for rows in (1, 5):
        x = _x(rows, 6)
        np.testing.assert_array_equal(Evaluator(package).run(x)["y"], graph.run(x)["y"])
