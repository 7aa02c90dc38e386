"""interface: what an ONNX file says of its sizes and states, written by us and read back."""

import json

import onnx
import pytest
import torch

from edgekit import targets
from edgekit.converters import onnx as converter
from edgekit.converters import tensorrt
from edgekit.converters.interface import DIMS, interface
from edgekit.errors import EdgekitError
from edgekit.model import BATCH, Dim, Input, Model, State

LENGTH, PAST = Dim("length", 1, 16, 64), Dim("past", 0, 8, 32)


class Cached(torch.nn.Module):
    """Sums of x over a cache that grows, and over all that was before by a fixed state."""

    def __init__(self):
        super().__init__()
        self.mix = torch.nn.Linear(4, 4)

    def forward(self, tokens, key, total):
        x = self.mix(tokens)
        key = torch.cat([key, x], 1)
        return x + key.mean(1, keepdim=True) + total, key, total + x.sum(1, keepdim=True)


def stream(batch):
    states = (State("key", (batch, PAST, 4)), State("total", (batch, 1, 4)))
    module = Cached()
    inputs = (Input("tokens", (batch, LENGTH, 4)),)
    return Model(module, inputs, ("y",), "cached", traced=module, states=states).export()


@pytest.mark.parametrize("target", ["rtx-4090", "jetson-xavier-nx"])
def test_our_files_name_their_sizes_and_say_their_ranges_and_states(tmp_path, target):
    path = tmp_path / "model.onnx"
    converter.convert(stream(BATCH), path, targets.load(target))
    found = interface(onnx.load(path))
    assert {spec["name"]: spec["shape"] for spec in found["inputs"]} == {
        "tokens": ["batch", "length", 4],
        "key": ["batch", "past", 4],
        "total": ["batch", 1, 4],
    }
    outputs = {spec["name"]: spec["shape"] for spec in found["outputs"]}
    assert outputs["y"] == ["batch", "length", 4]
    assert list(outputs) == ["y", "key_next", "total_next"]
    assert found["dims"] == {
        dim.name: [dim.least, dim.usual, dim.most] for dim in (BATCH, LENGTH, PAST)
    }
    assert found["states"] == [["key", "key_next"], ["total", "total_next"]]


def test_a_file_of_fixed_sizes_says_nothing(tmp_path):
    model = Model(torch.nn.ReLU(), (Input("input", (1, 4)),), ("y",), "relu")
    converter.convert(model.export(), tmp_path / "model.onnx", targets.load("cpu"))
    assert not onnx.load(tmp_path / "model.onnx").metadata_props


def test_an_engine_is_built_for_the_ranges_from_an_empty_cache_on(tmp_path):
    source, target = tmp_path / "model.onnx", targets.load("rtx-4090")
    converter.convert(stream(1), source, target)
    details = tensorrt.convert(source, tmp_path / "engine.plan", target).details
    assert details["dims"] == {"length": [1, 16, 64], "past": [0, 8, 32]}
    assert details["warnings"] == []


RELU = """
<ir_version: 10, opset_import: ["" : 20]>
relu (float[{shape}] x) => (float[{shape}] y) {{ y = Relu(x) }}
"""


@pytest.mark.parametrize(
    ("shape", "dims", "told"),
    [
        ("1, width", None, "Input 'x' has the size 'width' on axis 1, of no known range."),
        ("n, width", None, "Input 'x' has the size 'width' on axis 1, of no known range."),
        ("n, 4", {"length": [1, 2, 3]}, "Input 'x' has the size 'n' on axis 0, of no known range."),
    ],
)
def test_a_size_of_no_known_range_is_refused(tmp_path, shape, dims, told):
    source, target = tmp_path / "model.onnx", targets.load("rtx-4090")
    model = onnx.parser.parse_model(RELU.format(shape=shape))
    if dims is not None:
        onnx.helper.set_model_props(model, {DIMS: json.dumps(dims)})
    onnx.save(model, source)
    with pytest.raises(EdgekitError) as caught:
        tensorrt.convert(source, tmp_path / "engine.plan", target)
    assert caught.value.what == f"{source}: {told}"
    assert "LEAST..USUAL..MOST" in caught.value.fix
    assert [path.name for path in tmp_path.iterdir()] == [source.name]


def test_a_file_that_is_not_onnx_is_refused(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"\xff" * 64)
    with pytest.raises(EdgekitError, match="cannot be read as ONNX"):
        tensorrt.check(tmp_path / "model.onnx")
