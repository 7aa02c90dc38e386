"""fire: every runtime's form fires as PyTorch does, spike by spike, whole and in pieces."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor

from edgekit import targets
from edgekit.converters import coreml, tensorrt
from edgekit.converters import onnx as converter
from edgekit.converters.mil import Evaluator
from edgekit.converters.rewrites import unrolled_fire
from edgekit.converters.rewrites.unrolled_fire import STEPS
from edgekit.errors import EdgekitError
from edgekit.model import Dim, Graph, Input, Model
from edgekit.quantize.spiking.neurons import IF, LIF, PLIF, Neuron
from edgekit.targets.runtimes import onnxruntime, openvino

CHANNELS, BATCH = 5, 2
SHORT, LONG = Dim("length", 1, 4, 8), Dim("length", 1, 64, 100_000)
NEURONS: dict[str, Callable[[], Neuron]] = {
    "IF": lambda: IF(CHANNELS),
    "LIF, hard": lambda: LIF(CHANNELS, tau=3.0, hard=True),
    "PLIF": lambda: PLIF(CHANNELS),
}
#: A Scan, or its steps written out.
FORMS = pytest.mark.parametrize(
    ("name", "unrolled"),
    [("IF", False), ("LIF, hard", False), ("LIF, hard", True), ("PLIF", True)],
)
Arrays = dict[str, np.ndarray[Any, Any]]


class Layer(torch.nn.Module):
    def __init__(self, neuron: Neuron) -> None:
        super().__init__()
        self.neuron = neuron

    def forward(self, x: Tensor, past: Tensor) -> Any:
        return self.neuron.forward_with(x, past)


def exported(name: str, length: int | Dim) -> Graph:
    inputs = (Input("x", (BATCH, length, CHANNELS)), Input("past", (BATCH, CHANNELS)))
    return Model(Layer(NEURONS[name]()), inputs, ("y", "last"), name).export()


def feed(length: int) -> Arrays:
    random = np.random.default_rng(length)
    x, past = random.standard_normal((BATCH, length, CHANNELS)), np.zeros((BATCH, CHANNELS))
    return {"x": (2 * x).astype("float32"), "past": past.astype("float32")}


def in_pieces(infer: Callable[[Arrays], Arrays], whole: Arrays) -> Arrays:
    """A step, two and the others, each from the state that the one before ended in."""
    past, spikes = whole["past"], []
    for piece in np.split(whole["x"], (1, 3), 1):
        found = infer({"x": piece, "past": past})
        past = found["last"]
        spikes.append(found["y"])
    return {"y": np.concatenate(spikes, 1), "last": past}


def assert_fires_the_same(graph: Graph, infer: Callable[[Arrays], Arrays]) -> None:
    """At several lengths, and in pieces; potentials may differ by a rounding."""
    for length in (1, 2, 8):
        whole = feed(length)
        wanted, found = graph.run(whole), [infer(whole)]
        if length == 8:
            assert 0.05 < wanted["y"].mean() < 0.8
            found.append(in_pieces(infer, whole))
        for each in found:
            np.testing.assert_array_equal(each["y"], wanted["y"])
            np.testing.assert_allclose(each["last"], wanted["last"], rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, bool], tuple[Graph, Path]]:
    """The graph of a neuron and its ONNX file in one of the two forms, made once."""
    folder, made = tmp_path_factory.mktemp("fire"), dict[tuple[str, bool], tuple[Graph, Path]]()

    def get(name: str, unrolled: bool) -> tuple[Graph, Path]:
        if (name, unrolled) not in made:
            graph = exported(name, SHORT)
            path = folder / f"{len(made)}.onnx"
            written = unrolled_fire.rewrite(graph) if unrolled else graph
            converter.convert(written, path, targets.load("rtx-4090"))
            made[name, unrolled] = graph, path
        return made[name, unrolled]

    return get


@FORMS
def test_onnx_runtime(files: Any, name: str, unrolled: bool) -> None:
    graph, path = files(name, unrolled)
    scans = [node for node in onnx.load(path).graph.node if node.op_type == "Scan"]
    assert len(scans) == (0 if unrolled else 1)
    with onnxruntime.open(path) as session:
        assert_fires_the_same(graph, session.infer)


@FORMS
def test_openvino(files: Any, name: str, unrolled: bool) -> None:
    pytest.importorskip("openvino")
    graph, path = files(name, unrolled)
    with openvino.open(path) as session:
        assert_fires_the_same(graph, session.infer)


@FORMS
def test_tensorrt_builds_it(files: Any, name: str, unrolled: bool, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    _, path = files(name, unrolled)
    made = tensorrt.convert(path, tmp_path / "engine.plan", targets.load("rtx-4090"))
    assert made.details["dims"] == {"length": [SHORT.least, SHORT.usual, SHORT.most]}


@pytest.mark.parametrize("name", ["LIF, hard", "PLIF"])
def test_core_ml(name: str, tmp_path: Path) -> None:
    pytest.importorskip("coremltools")
    graph = exported(name, SHORT)
    out = tmp_path / "model.mlpackage"
    coreml.convert(unrolled_fire.rewrite(graph), out, targets.load("iphone-15-pro"))
    assert_fires_the_same(graph, Evaluator(out).run)


@pytest.mark.parametrize("length", [LONG, STEPS + 1])
def test_core_ml_says_that_the_length_must_be_fixed(length: int | Dim, tmp_path: Path) -> None:
    pytest.importorskip("coremltools")
    graph = unrolled_fire.rewrite(exported("IF", length))
    with pytest.raises(EdgekitError) as caught:
        coreml.convert(graph, tmp_path / "model.mlpackage", targets.load("iphone-15-pro"))
    assert caught.value.exit_code == 2
    assert "edgekit.fire" in caught.value.what
    assert f"one length of {STEPS} at most" in caught.value.why
    assert f"Fix the length, as in --input NAME:1x{STEPS}" in caught.value.fix


def test_a_long_sequence_stays_a_scan_of_as_many_nodes(files: Any, tmp_path: Path) -> None:
    graph = exported("LIF, hard", LONG)
    converter.convert(unrolled_fire.rewrite(graph), tmp_path / "m.onnx", targets.load("rtx-4090"))
    nodes = [
        len(onnx.load(p).graph.node) for p in (tmp_path / "m.onnx", files("LIF, hard", False)[1])
    ]
    assert nodes[0] == nodes[1]
    with onnxruntime.open(tmp_path / "m.onnx") as session:
        whole = feed(1000)
        np.testing.assert_array_equal(session.infer(whole)["y"], graph.run(whole)["y"])
