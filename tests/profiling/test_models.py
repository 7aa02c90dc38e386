"""Profiles of real models: each layer is of the class and the module that it should be."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from edgekit.errors import EdgekitError
from edgekit.profiling import Layer, Profile, profile, profile_of, profile_source


def kinds(found: Profile, operator: str) -> Counter[tuple[str, str]]:
    """(class, last name of the module) of the layers whose operator this pattern matches."""
    return Counter(
        (layer.kind, layer.module.rpartition(".")[2])
        for layer in found.layers
        if re.fullmatch(operator, layer.operator)
    )


@pytest.fixture(scope="module")
def ort(subject):
    """A model's profile in ONNX Runtime."""
    profiles: dict[str, Profile] = {}

    def get(name: str) -> Profile:
        if name not in profiles:
            found = profile(subject(name).path, "onnxruntime", subject(name).inputs, 1)
            assert found is not None
            profiles[name] = found
        return profiles[name]

    return get


def test_a_vision_transformer(ort):
    found, depth = ort("vit"), 4
    assert kinds(found, "(Fused)?MatMul") == {("attention", "attn"): 2 * depth}
    assert kinds(found, "Softmax") == {("attention", "attn"): depth}
    products = kinds(found, "Gemm")
    assert all(kind == "linear" for kind, _ in products)
    assert products["linear", "qkv"] == products["linear", "fc1"] == depth
    assert kinds(found, "Conv") == {("convolution", "proj"): 1}
    assert set(kinds(found, "Gelu")) == {("activation", "act")}
    assert {kind for kind, _ in kinds(found, "LayerNormalization")} == {"normalisation"}
    assert {share.name for share in found.by_module(2)} > {f"blocks.{n}" for n in range(depth)}


def test_both_branches_of_a_crossvit_and_what_crosses(ort):
    found = ort("crossvit")
    products = [layer for layer in found.layers if re.fullmatch("(Fused)?MatMul", layer.operator)]
    attention = {layer.module for layer in products if layer.kind == "attention"}
    assert attention == {
        "blocks.0.blocks.0.0.attn",
        "blocks.0.blocks.1.0.attn",
        "blocks.0.fusion.0.attn",
        "blocks.0.fusion.1.attn",
    }
    assert {layer.kind for layer in products if layer.module not in attention} <= {"linear"}


def test_the_scans_of_a_vision_mamba(ort):
    found = ort("vision_mamba")
    scans = [layer for layer in found.layers if layer.operator == "Scan"]
    ways = {f"blocks.0.mixer.scan.{way}.scan" for way in ("forwards", "backwards")}
    assert {layer.module for layer in scans} == ways
    assert {layer.kind for layer in scans} == {"scan"}
    # What prepares a scan is part of it; the projections, beside it, are not.
    parts = [layer for layer in found.layers if layer.module in ways and layer.kind == "scan"]
    assert len(parts) > len(scans)
    assert ("linear", "x_proj") in kinds(found, "MatMul|Gemm")
    assert "attention" not in {share.name for share in found.by_class()}
    norm = {layer.kind for layer in found.layers if layer.module == "blocks.0.norm"}
    assert norm == {"normalisation"}  # in several operators
    bodies = [layer for layer in found.layers if "/node_" in layer.name and layer.operator == "Exp"]
    assert bodies == []  # counted once, as their loop


def test_a_mamba_of_transformers(ort):
    found = ort("mamba")
    scans = kinds(found, "Scan")
    assert scans == {("scan", "mixer"): 2}
    assert {kind for kind, _ in kinds(found, "Gather")} == {"embedding"}
    assert {share.name for share in found.by_module()} >= {
        "model.backbone.layers.0",
        "model.backbone.layers.1",
    }


def test_shares_are_parts_of_one_whole(ort):
    found = ort("mamba")
    for shares in (found.by_class(), found.by_module(1), found.by_module(None)):
        assert sum(share.share for share in shares) == pytest.approx(1)
        assert sum(share.milliseconds for share in shares) == pytest.approx(found.milliseconds)
        assert sum(share.layers for share in shares) == len(found.layers)
        assert [s.milliseconds for s in shares] == sorted(s.milliseconds for s in shares)[::-1]
    assert found.covered == pytest.approx(found.milliseconds / found.whole_ms)
    assert found.slowdown == pytest.approx(found.profiled_ms / found.whole_ms)


def test_for_json(ort):
    found = ort("vit").as_dict()
    assert len(found["layers"]) == len(ort("vit").layers)
    assert found["layers"][0]["class"] == ort("vit").layers[0].kind
    assert found["by_class"][0]["share"] == ort("vit").by_class()[0].share
    assert found["runtime"] == "onnxruntime"


@pytest.mark.parametrize("name", ["vit", "mamba"])
def test_openvino_sees_the_same_modules_and_classes(subject, ort, name):
    pytest.importorskip("openvino")
    found = profile(subject(name).path, "openvino", subject(name).inputs, 1)
    main = {"vit": {"linear", "attention", "convolution"}, "mamba": {"scan", "linear"}}[name]
    by_class = {share.name for share in found.by_class()}
    assert main <= by_class
    assert main <= {share.name for share in ort(name).by_class()}
    if name == "mamba":
        assert "attention" not in by_class
    linears = {layer.module for layer in found.layers if layer.operator == "FullyConnected"}
    assert linears <= {layer.module for layer in ort(name).layers}
    assert {layer.kind for layer in found.layers if layer.operator == "FullyConnected"} == {
        "linear"  # whatever activation is fused into it
    }


def test_the_source_in_pytorch(subject):
    found = profile_source(subject("vit").model, subject("vit").inputs, 1)
    assert kinds(found, "aten::scaled_dot_product_attention") == {("attention", "attn"): 4}
    assert kinds(found, "aten::linear")["linear", "qkv"] == 4
    assert set(kinds(found, "aten::gelu")) == {("activation", "act")}
    assert not any(layer.operator == "aten::addmm" for layer in found.layers)  # within a linear
    assert found.profiled_ms > 0
    hooks = [m._forward_hooks for m in subject("vit").model.module.modules()]
    assert not any(hooks)


def test_a_scan_of_the_source_is_one_operator(subject):
    vision = subject("vision_mamba")
    found = profile_source(vision.model, vision.inputs, 1)
    scans = [layer for layer in found.layers if layer.kind == "scan"]
    assert {layer.operator for layer in scans} == {"edgekit::mamba_scan"}
    assert len(scans) == 2


def test_a_runtime_that_does_not_tell(subject, tmp_path):
    assert profile(subject("vit").path, "coreml", subject("vit").inputs) is None
    assert profile(tmp_path, "onnxruntime", {}) is None  # a split model


def test_no_layers_are_no_profile():
    with pytest.raises(EdgekitError, match="gave no profile"):
        profile_of("somewhere", [])


def test_a_list_of_layers_is_enough():
    found = profile_of("device", [Layer("a", "MatMul", "blocks.0.fc", 3.0), Layer("b", "?", "", 1)])
    assert (found.covered, found.slowdown) == (None, None)
    assert [(s.name, s.share) for s in found.by_class()] == [("linear", 0.75), ("other", 0.25)]
    assert [s.name for s in found.by_module()] == ["blocks.0.fc", ""]
