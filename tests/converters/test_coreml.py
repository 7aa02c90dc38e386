"""Core ML packages: equal to their source, named, whole or absent."""

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
from edgekit.edit import Editor
from edgekit.errors import EdgekitError
from edgekit.families import torchvision
from edgekit.model import BATCH, Graph, Input, Model
from edgekit.targets import Target
from edgekit.targets.runtimes import coreml as runtime
from edgekit.work import trace_graph

TARGET = Target(
    name="phone",
    title="A phone",
    runtime="coreml",
    formats=("coreml",),
    dtypes=("fp32", "fp16", "int8"),
    float_dtype="fp16",
    deployment="iOS17",
    sources={},
)
Arrays = dict[str, np.ndarray[Any, Any]]
#: The families of the issue, as small as they still have all their operators.
FAMILIES: dict[str, dict[str, Any]] = {
    "deit_tiny_patch16_224": {"img_size": 32, "depth": 2, "embed_dim": 48, "num_heads": 3},
    "fastvit_t8": {"layers": (1, 1, 1, 1), "embed_dims": (16, 16, 32, 32)},
    "hiera_tiny_224": {"img_size": (64, 64), "embed_dim": 24, "stages": (1, 1, 2, 1)},
    "swin_tiny_patch4_window7_224": {
        "img_size": 56,
        "depths": (2, 1),
        "embed_dim": 24,
        "num_heads": (2, 4),
    },
}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.stem(x).flatten(2).mT
        return self.head(F.gelu(self.norm(tokens))).mean(1)


class Lambda(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.function(x)
        return result


class Outer(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.inner = Lambda(function)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.inner(x)
        return result


def _graph(module: nn.Module, *shape: int | str, precision: str = "fp32") -> Graph:
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2)
    graph = Model(module, (Input("x", shape),), ("y",), "test").export()
    return dataclasses.replace(graph, precision=precision)


def _x(*shape: int) -> Arrays:
    return {"x": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}


def _cosine(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    a, b = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def _family(name: str) -> tuple[Graph, Arrays]:
    """A small model of a family, with no weight left at zero, and an input."""
    torchvision.repair()
    import timm

    torch.manual_seed(0)
    module = timm.create_model(name, num_classes=5, **FAMILIES[name])
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.02)
    size = FAMILIES[name].get("img_size", 64)
    side = size if isinstance(size, int) else size[0]
    graph = Model(module, (Input("x", (1, 3, side, side)),), ("y",), name).export()
    return graph, _x(1, 3, side, side)


@pytest.mark.parametrize("name", FAMILIES)
def test_families_equal_their_source(name: str, tmp_path: Path) -> None:
    graph, x = _family(name)
    artifact = coreml.convert(graph, tmp_path / "m.mlpackage", TARGET)
    want = graph.run(x)["y"]
    assert np.abs(want).max() > 0.01
    assert np.abs(Evaluator(artifact.path).run(x)["y"] - want).max() < 1e-4


def test_float16_agrees_in_half_the_size(tmp_path: Path) -> None:
    graph, x = _family("deit_tiny_patch16_224")
    full = coreml.convert(graph, tmp_path / "full.mlpackage", TARGET)
    half_graph = dataclasses.replace(graph, precision="fp16")
    half = coreml.convert(half_graph, tmp_path / "half.mlpackage", TARGET)
    got = Evaluator(half.path).run(x)["y"]
    assert got.dtype == np.float32
    assert _cosine(got, graph.run(x)["y"]) > 0.9999
    assert half.details["bytes"] < 0.6 * full.details["bytes"]


def test_details_say_what_was_built(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    artifact = coreml.convert(_graph(Block(), 1, 3, 16, 16), tmp_path / "m.mlpackage", TARGET)
    assert artifact.details["deployment"] == "iOS17"
    assert artifact.details["specification_version"] == 8
    assert artifact.details["operators"]["conv"] == 1
    assert artifact.details["bytes"] > 1000
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "MIL" not in captured.err
    assert "coremltools" not in captured.err


def _int8(graph: Graph) -> Graph:
    """W8A8 on every linear and conv2d, with a fixed activation scale."""
    from torch.ao.quantization.fx import _decomposed  # noqa: F401

    ops = torch.ops.quantized_decomposed
    editor = Editor(graph)
    for index, node in enumerate(editor.calls("aten.linear.default", "aten.conv2d.default")):
        source, weight = node.args[:2]
        levels = (0.03125, 0, -128, 127, torch.int8)
        q = editor.call(ops.quantize_per_tensor.default, source, *levels, like=node)
        dq = editor.call(ops.dequantize_per_tensor.default, q, *levels, like=node)
        value = editor.tensor(weight)
        assert value is not None
        scale = (value.flatten(1).abs().amax(1) / 127).half().float()
        codes = torch.round(value / scale.reshape(-1, *[1] * (value.ndim - 1))).clamp(-127, 127)
        stored = [
            editor.buffer(f"{kind}{index}", tensor)
            for kind, tensor in (
                ("codes", codes.to(torch.int8)),
                ("scales", scale),
                ("zeros", torch.zeros(len(scale), dtype=torch.int64)),
            )
        ]
        rest = (0, -127, 127, torch.int8)
        wide = editor.call(ops.dequantize_per_channel.default, *stored, *rest, like=node)
        node.args = (dq, wide, *node.args[2:])
    return editor.done("int8")


def test_int8_is_stored_and_computed_as_in_the_graph(tmp_path: Path) -> None:
    graph = _int8(_graph(Block(), 1, 3, 16, 16))
    artifact = coreml.convert(graph, tmp_path / "m.mlpackage", TARGET)
    operators = artifact.details["operators"]
    assert operators["quantize"] == operators["dequantize"] == 2
    assert operators["constexpr_affine_dequantize"] == 2
    evaluator = Evaluator(artifact.path)
    x = _x(1, 3, 16, 16)
    assert _cosine(evaluator.run(x)["y"], graph.run(x)["y"]) > 0.9999
    codes = [value for value in evaluator.run_all(x).values() if value.dtype == np.int8]
    assert len(codes) == 2


def test_values_keep_the_names_of_the_graphs_nodes(tmp_path: Path) -> None:
    graph = _int8(_graph(Block(), 1, 3, 16, 16))
    artifact = coreml.convert(graph, tmp_path / "m.mlpackage", TARGET)
    x = _x(1, 3, 16, 16)
    reference, traced = trace_graph(graph, x), runtime.trace(artifact.path, x)
    same = [n for n, v in reference.items() if n in traced and v.dtype.kind == "f"]
    assert len(same) > 4
    assert min(_cosine(reference[n], traced[n]) for n in same) > 0.999


def test_a_dynamic_batch_takes_any_size(tmp_path: Path) -> None:
    graph = _graph(Block(), BATCH, 3, 16, 16)
    artifact = coreml.convert(graph, tmp_path / "m.mlpackage", TARGET)
    evaluator = Evaluator(artifact.path)
    for batch in (1, 3):
        x = _x(batch, 3, 16, 16)
        np.testing.assert_allclose(evaluator.run(x)["y"], graph.run(x)["y"], atol=1e-5)
    assert artifact.details["dynamic_sizes"] == {"batch": str(BATCH)}


def test_int64_inputs_become_int32_and_are_reported(tmp_path: Path) -> None:
    table = torch.randn(10, 4)
    module = Lambda(lambda x: F.embedding(x, table))
    graph = Model(module, (Input("x", (1, 6), "int64"),), ("y",), "test").export()
    artifact = coreml.convert(graph, tmp_path / "m.mlpackage", TARGET)
    assert artifact.details["int64_inputs_taken_as_int32"] == ["x"]
    x = {"x": np.array([[0, 9, 3, 3, 1, 2]])}
    np.testing.assert_array_equal(Evaluator(artifact.path).run(x)["y"], graph.run(x)["y"])


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.gelu(x, approximate="tanh"),
        lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True),
        lambda x: F.scaled_dot_product_attention(x, x, x, scale=0.5),
        lambda x: torch.div(x, 0.3, rounding_mode="floor"),
    ],
    ids=["gelu", "causal", "scale", "floor"],
)
def test_keyword_arguments_are_not_lost(function: Any, tmp_path: Path) -> None:
    graph = _graph(Lambda(function), 1, 2, 8, 16)
    artifact = coreml.convert(graph, tmp_path / "m.mlpackage", TARGET)
    x = _x(1, 2, 8, 16)
    np.testing.assert_allclose(Evaluator(artifact.path).run(x)["y"], graph.run(x)["y"], atol=2e-6)


@pytest.mark.parametrize("weighted", [False, True])
def test_rms_norm_of_values_as_small_as_its_epsilon(weighted: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    weight = torch.rand(16) if weighted else None
    graph = _graph(Lambda(lambda x: F.rms_norm(x, (16,), weight, 1e-4)), 1, 4, 16)
    artifact = coreml.convert(graph, tmp_path / "m.mlpackage", TARGET)
    x = {"x": _x(1, 4, 16)["x"] * np.float32([[0], [1e-3], [0.1], [1e4]])}
    np.testing.assert_allclose(Evaluator(artifact.path).run(x)["y"], graph.run(x)["y"], rtol=1e-5)


def test_a_keyword_that_would_be_ignored_is_an_error(tmp_path: Path) -> None:
    graph = _graph(Lambda(lambda x: torch.add(x, x, alpha=2)), 1, 4)
    with pytest.raises(EdgekitError, match=r"aten\.add\.Tensor.*\n.*alpha=2"):
        coreml.convert(graph, tmp_path / "m.mlpackage", TARGET)


@pytest.mark.parametrize("function", [torch.lgamma, lambda x: x[None, None, None, None].cumsum(0)])
def test_an_operator_without_a_form_is_named_with_its_module(function: Any, tmp_path: Path) -> None:
    graph = _graph(Outer(function), 1, 4, 3)
    with pytest.raises(EdgekitError, match=r"Core ML at aten\.\w+\.default .*in module inner"):
        coreml.convert(graph, tmp_path / "m.mlpackage", TARGET)
    assert list(tmp_path.iterdir()) == []


def test_a_package_is_replaced_whole(tmp_path: Path) -> None:
    out = tmp_path / "m.mlpackage"
    coreml.convert(_graph(Block(), 1, 3, 16, 16), out, TARGET)
    coreml.convert(_graph(Lambda(torch.relu), 1, 4), out, TARGET)
    assert [path.name for path in tmp_path.iterdir()] == ["m.mlpackage"]
    assert list(Evaluator(out).run(_x(1, 4))) == ["y"]


@pytest.mark.parametrize(
    "name", [n for n in targets.names() if "coreml" in targets.load(n).formats]
)
def test_every_apple_target_can_be_made(name: str, tmp_path: Path) -> None:
    graph = _int8(_graph(Block(), 1, 3, 16, 16))
    artifact = coreml.convert(graph, tmp_path / "m.mlpackage", targets.load(name))
    assert artifact.details["deployment"] == targets.load(name).deployment


@pytest.mark.parametrize("deployment", [None, "iOS99"])
def test_an_unknown_deployment_is_an_error(deployment: str | None, tmp_path: Path) -> None:
    target = TARGET.model_copy(update={"deployment": deployment})
    with pytest.raises(EdgekitError, match="known: iOS"):
        coreml.convert(_graph(Lambda(torch.relu), 1, 4), tmp_path / "m.mlpackage", target)


def test_int8_needs_ios17(tmp_path: Path) -> None:
    target = TARGET.model_copy(update={"deployment": "iOS16"})
    graph = _graph(Lambda(torch.relu), 1, 4, precision="int8")
    with pytest.raises(EdgekitError, match="cannot run int8 activations"):
        coreml.convert(graph, tmp_path / "m.mlpackage", target)


def test_boolean_inputs_are_an_error(tmp_path: Path) -> None:
    model = Model(Lambda(lambda x: ~x), (Input("x", (1, 4), "bool"),), ("y",), "test")
    with pytest.raises(EdgekitError, match="Input x is bool"):
        coreml.convert(model.export(), tmp_path / "m.mlpackage", TARGET)
