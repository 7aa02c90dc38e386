"""The Core ML runtime: the evaluator here, Core ML itself on macOS."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pytest
import torch
from torch import nn

from edgekit.converters import coreml as converter
from edgekit.errors import EdgekitError
from edgekit.find import find
from edgekit.model import BATCH, Graph, Input, Model, State
from edgekit.targets import Target

TARGET = Target(
    name="phone",
    title="A phone",
    runtime="coreml",
    formats=("coreml",),
    dtypes=("fp32",),
    float_dtype="fp16",
    deployment="iOS17",
    sources={},
)
runtime = find("runtimes", "coreml")


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.head(self.table(ids))
        return scores


@pytest.fixture(scope="module")
def graph() -> Graph:
    torch.manual_seed(0)
    return Model(Words(), (Input("ids", (2, 6), "int64"),), ("y",), "test").export()


@pytest.fixture(scope="module")
def package(graph: Graph, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("package") / "m.mlpackage"
    return converter.convert(graph, path, TARGET).path


IDS = {"ids": np.arange(12).reshape(2, 6) % 10}


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS runs Core ML")
def test_infers_as_the_source_and_restores_threads(graph: Graph, package: Path) -> None:
    before = torch.get_num_threads()
    with runtime.open(package, threads=1) as opened:
        assert opened.batch == 2
        got = opened.infer(IDS)["y"]
    np.testing.assert_allclose(got, graph.run(IDS)["y"], atol=1e-6)
    assert torch.get_num_threads() == before


def test_a_dynamic_batch_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model(Words(), (Input("ids", (BATCH, 4), "int64"),), ("y",), "test")
    package = converter.convert(model.export(), tmp_path / "m.mlpackage", TARGET).path
    assert runtime.open(package).batch is None
    monkeypatch.setattr(sys, "platform", "darwin")
    assert runtime.open(package).batch is None


def test_says_that_it_is_not_timed_here(monkeypatch: pytest.MonkeyPatch) -> None:
    assert runtime.unavailable() == ""
    monkeypatch.setattr(sys, "platform", "linux")
    assert "Apple" in runtime.untimed()
    monkeypatch.setattr(sys, "platform", "darwin")
    assert runtime.untimed() == ""


def test_traces_values_between(graph: Graph, package: Path) -> None:
    values = runtime.trace(package, IDS)
    assert len(values) > 1
    np.testing.assert_allclose(values["y"], graph.run(IDS)["y"], atol=1e-6)


def test_a_missing_package_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EdgekitError, match=r"No Core ML package at .*absent\.mlpackage"):
        runtime.open(tmp_path / "absent.mlpackage")


def test_macos_predicts_with_core_mls_own_types(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def predict(self: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        seen.update(inputs)
        return {"y": np.zeros(1)}

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ct.models.MLModel, "predict", predict)
    with runtime.open(package) as opened:
        assert opened.batch == 2
        assert list(opened.infer(IDS)) == ["y"]
    assert seen["ids"].dtype == np.int32
    with pytest.raises(EdgekitError, match="cannot be run with 2 threads"):
        runtime.open(package, threads=2)


class Sum(nn.Module):
    def forward(self, x: torch.Tensor, sum_0: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return 2 * x, sum_0 + x


def test_macos_writes_and_reads_the_states_that_core_ml_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = TARGET.model_copy(update={"deployment": "iOS18"})
    states = (State("sum_0", (1, 3)),)
    graph = Model(Sum(), (Input("x", (1, 3)),), ("y",), "sum", states=states).export()
    path = tmp_path / "m.mlpackage"
    converter.convert(dataclasses.replace(graph, precision="fp16"), path, target)

    class Held(dict[str, Any]):
        write_state, read_state = dict.__setitem__, dict.__getitem__

    def predict(self: Any, inputs: dict[str, Any], state: Held) -> dict[str, Any]:
        assert state["sum_0"].dtype == np.float16
        state["sum_0"] = state["sum_0"] + inputs["x"].astype(np.float16)
        return {"y": 2 * inputs["x"]}

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ct.models.MLModel, "make_state", lambda self: Held())
    monkeypatch.setattr(ct.models.MLModel, "predict", predict)
    with runtime.open(path) as opened:
        x = {"x": np.array([[1, 2, 3]], np.float32)}
        first = opened.infer(x)
        second = opened.infer({**x, "sum_0": first["sum_0_next"]})
    np.testing.assert_array_equal(second["sum_0_next"], 2 * x["x"])
    assert second.keys() == {"y", "sum_0_next"}
