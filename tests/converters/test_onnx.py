"""onnx: the file's interface, its structure in each precision, and that it equals its graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from edgekit import targets
from edgekit.converters import onnx as converter
from edgekit.converters.rewrites import attention
from edgekit.data import open_data
from edgekit.drift import compare, cosine
from edgekit.errors import EdgekitError
from edgekit.model import Input, Model
from edgekit.quantize.effort import plan_for
from edgekit.quantize.fp16 import rewrite_fp16
from edgekit.quantize.place import place
from edgekit.quantize.post_training import quantize
from edgekit.quantize.schemes import SCHEMES
from edgekit.targets.rules import RULES
from edgekit.targets.runtimes import onnxruntime
from edgekit.work import trace_graph

FLOAT, HALF, INT8 = (
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.INT8,
)
IMAGES = np.random.default_rng(0).standard_normal((6, 3, 8, 8)).astype(np.float32)


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 16, 4, stride=4)
        self.norm = torch.nn.LayerNorm(16)
        self.qkv = torch.nn.Linear(16, 48)
        self.head = torch.nn.Linear(16, 5)

    def forward(self, pixels, gain):
        x = self.conv(pixels).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        x = x + torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return self.head(x.mean(1)) * gain, x


def model():
    torch.manual_seed(0)
    inputs = (Input("pixels", (1, 3, 8, 8)), Input("gain", (1, 1)))
    return Model(Net(), inputs, ("scores", "features"), "net")


def feed(count=1):
    return {"pixels": IMAGES[:count], "gain": np.full((count, 1), 2, np.float32)}


@pytest.fixture(scope="module")
def graph():
    return attention.rewrite(model().export())


@pytest.fixture(scope="module")
def int8(graph):
    samples = [{"pixels": image, "gain": np.ones(1, np.float32)} for image in IMAGES]
    plan = plan_for(SCHEMES["int8"], "quick", None)
    table = quantize(graph, open_data(samples, graph.inputs, None), plan).table
    return place(graph, table, RULES["tensorrt"])


def converted(graph, out, target="cpu"):
    artifact = converter.convert(graph, out, targets.load(target))
    return artifact, onnx.shape_inference.infer_shapes(onnx.load(out))


def agrees(graph, out, count=1):
    with onnxruntime.open(out) as session:
        return compare([graph.run(feed(count))], [session.infer(feed(count))])


def producers(proto):
    return {name: node for node in proto.graph.node for name in node.output}


def kinds(proto):
    """name -> element type, of every value and initializer."""
    values = (*proto.graph.value_info, *proto.graph.input, *proto.graph.output)
    known = {value.name: value.type.tensor_type.elem_type for value in values}
    return known | {tensor.name: tensor.data_type for tensor in proto.graph.initializer}


def test_interface_opset_and_equality(graph, tmp_path):
    artifact, proto = converted(graph, tmp_path / "model.onnx")
    assert [value.name for value in proto.graph.input] == ["pixels", "gain"]
    assert [value.name for value in proto.graph.output] == ["scores", "features"]
    assert [opset.version for opset in proto.opset_import if opset.domain == ""] == [20]
    assert artifact.details["opset"] == 20
    assert artifact.details["nodes"]["Conv"] == 1
    assert sum(artifact.details["nodes"].values()) == len(proto.graph.node)
    drift = agrees(graph, tmp_path / "model.onnx")
    assert drift.max_abs < 1e-5
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_dynamic_batch(tmp_path):
    graph = attention.rewrite(model().with_batch("dynamic").export())
    _, proto = converted(graph, tmp_path / "model.onnx")
    sizes = [value.type.tensor_type.shape.dim[0] for value in proto.graph.input]
    assert all(size.dim_param for size in sizes)
    for count in (1, 3, 6):
        assert agrees(graph, tmp_path / "model.onnx", count).max_abs < 1e-5
    with onnxruntime.open(tmp_path / "model.onnx") as session:
        assert session.batch is None


def test_weights_beyond_the_limit_lie_beside_the_file(graph, tmp_path, monkeypatch):
    monkeypatch.setattr(converter, "_EXTERNAL_ABOVE", 1000)
    converted(graph, tmp_path / "model.onnx")
    assert {path.name for path in tmp_path.iterdir()} == {"model.onnx", "model.onnx.data"}
    assert agrees(graph, tmp_path / "model.onnx").max_abs < 1e-5


def test_int8_pairs_are_what_opset_20_asks(int8, tmp_path):
    _, proto = converted(int8, tmp_path / "model.onnx")
    made, kind = producers(proto), kinds(proto)
    operators = ("QuantizeLinear", "DequantizeLinear")
    pairs = [node for node in proto.graph.node if node.op_type in operators]
    assert len(pairs) == 3 + 3 + 3
    for node in pairs:
        assert kind[node.input[1]] == FLOAT
        assert kind[node.input[2]] == INT8
    stored = [t for t in proto.graph.initializer if t.data_type == INT8 and len(t.dims) > 1]
    assert sorted(tuple(t.dims) for t in stored) == [(16, 3, 4, 4), (16, 5), (16, 48)]
    products = [node for node in proto.graph.node if node.op_type == "MatMul"]
    weighted = [n for n in products if made[n.input[1]].op_type == "DequantizeLinear"]
    assert len(weighted) == 2
    for node in weighted:
        assert made[node.input[0]].op_type == "DequantizeLinear"
        assert [a.i for a in made[node.input[1]].attribute if a.name == "axis"] == [1]


def test_int8_agrees_with_its_graph_better_than_with_its_source(graph, int8, tmp_path):
    converted(int8, tmp_path / "model.onnx")
    exact, rounded = agrees(int8, tmp_path / "model.onnx"), agrees(graph, tmp_path / "model.onnx")
    assert exact.relative < 0.1 * rounded.relative
    assert rounded.cosine > 0.999


def test_int8_around_fp16_has_fp16_scales(int8, tmp_path):
    half = rewrite_fp16(int8, "int8")
    _, proto = converted(half, tmp_path / "model.onnx", "rtx-4090")
    kind = kinds(proto)
    scales = {kind[n.input[1]] for n in proto.graph.node if n.op_type == "DequantizeLinear"}
    assert scales == {HALF}
    assert kind["pixels"] == kind["scores"] == FLOAT
    assert agrees(half, tmp_path / "model.onnx").cosine > 0.9999


def test_fp16_keeps_softmax_and_norm_in_fp32(graph, tmp_path):
    half = rewrite_fp16(graph)
    _, proto = converted(half, tmp_path / "model.onnx", "rtx-4090")
    kind = kinds(proto)
    for node in proto.graph.node:
        if node.op_type in ("Softmax", "LayerNormalization"):
            assert kind[node.output[0]] == FLOAT
        if node.op_type in ("MatMul", "Gemm", "Conv"):
            assert kind[node.output[0]] == HALF
    assert agrees(graph, tmp_path / "model.onnx").cosine > 0.9999


def test_values_keep_the_names_of_the_graphs_nodes(int8, tmp_path):
    converted(int8, tmp_path / "model.onnx")
    reference = trace_graph(int8, feed())
    traced = onnxruntime.trace(tmp_path / "model.onnx", feed())
    same = [name for name, value in reference.items() if name in traced and value.dtype.kind == "f"]
    assert len(same) > 10
    assert min(cosine(reference[name], traced[name]) for name in same) > 0.99


def test_nodes_name_the_users_modules_and_not_this_machine(graph, tmp_path):
    _, proto = converted(graph, tmp_path / "model.onnx")
    notes = {prop.key for node in proto.graph.node for prop in node.metadata_props}
    assert notes == {converter.MODULE_PATH}
    content = (tmp_path / "model.onnx").read_bytes()
    assert str(Path(torch.__file__).parent).encode() not in content
    assert b'File "' not in content


def test_what_onnx_cannot_express_is_an_error_with_its_reason(tmp_path):
    class Determined(torch.nn.Module):
        def forward(self, x):
            return torch.linalg.eigvals(x).real

    graph = Model(Determined(), (Input("x", (1, 3, 3)),), ("y",), "eig").export()
    with pytest.raises(EdgekitError, match="cannot be expressed in ONNX") as caught:
        converter.convert(graph, tmp_path / "model.onnx", targets.load("cpu"))
    assert "linalg_eig" in caught.value.why
    assert list(tmp_path.iterdir()) == []
