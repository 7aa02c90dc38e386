"""A kit's profile: which nodes and modules TensorRT's layers come from."""

import json
import os
import subprocess
import sys

import numpy as np
import onnx
import onnx.reference
import pytest

from edgekit import targets
from edgekit.converters import on_device
from edgekit.converters.kit.profile import Nodes, common, shares
from edgekit.converters.kit_facts import layer_facts
from edgekit.converters.onnx import MODULE_PATH

pytest.importorskip("tensorrt_rtx")

#: (node, operator, module), in the order of the graph.
NODES = [
    ("q", "MatMul", "blocks.0.attn.qkv"),
    ("scale", "Mul", "blocks.0.attn"),
    ("softmax", "Softmax", "blocks.0.attn"),
    ("proj", "MatMul", "blocks.0.attn.proj"),
    ("add", "Add", "blocks.0"),
    ("fc1", "MatMul", "blocks.0.mlp.fc1"),
    ("gelu", "Gelu", "blocks.0.mlp.act"),
    ("head", "MatMul", "head"),
]


#: Second inputs: a weight, a bias.
SECOND = {"MatMul": ["w"], "Mul": ["b"], "Add": ["b"]}


def graph():
    """These nodes in a row, with the paths that our exporter notes."""
    made = []
    for place, (name, operator, module) in enumerate(NODES):
        node = onnx.helper.make_node(
            operator if operator != "Gelu" else "Relu",
            [f"v{place}", *SECOND.get(operator, [])],
            [f"v{place + 1}"],
            name=name,
        )
        node.metadata_props.add(key=MODULE_PATH, value=repr(["", module, f"{name}_node"]))
        made.append(node)
    value = onnx.helper.make_tensor_value_info
    arrays = {"w": np.eye(4) + 0.5, "b": np.ones(4)}
    weights = [onnx.numpy_helper.from_array(np.float32(a), name) for name, a in arrays.items()]
    ends = [value(name, 1, [1, 4]) for name in ("v0", f"v{len(NODES)}")]
    built = onnx.helper.make_graph(made, "blocks", [ends[0]], [ends[1]], weights)
    opset = onnx.helper.make_opsetid("", 17)
    return onnx.helper.make_model(built, opset_imports=[opset], ir_version=8)


@pytest.fixture(scope="module")
def nodes():
    return Nodes(layer_facts(graph()))


@pytest.mark.parametrize(
    ("layer", "detail", "module", "operator"),
    [
        ("fc1", "", "blocks.0.mlp.fc1", "MatMul"),
        ("fc1 + gelu", "", "blocks.0.mlp", "MatMul and 1 more"),
        ("PWN(PWN(add), gelu)", "", "blocks.0", "Relu and 1 more"),
        ("q || fc1", "", "blocks.0", "MatMul"),
        ("{ForeignNode[q...proj]}", "", "blocks.0.attn", "MatMul and 3 more"),
        ("{ForeignNode[scale + softmax...gelu]}", "", "blocks.0", "MatMul and 5 more"),
        ("{ForeignNode[q...head]}", "", "", "MatMul and 7 more"),
        ("Reformatting CopyNode for Input Tensor 0 to fc1 + gelu", "", "blocks.0.mlp", None),
        ("__myl_Fc_myl0_3", "[ONNX Layer: fc1]\x1f[ONNX Layer: gelu]", "blocks.0.mlp", None),
        ("__myl_A_myl0_4", "[ONNX Layer: q]\x1e[ONNX Layer: proj]", "blocks.0.attn", "MatMul"),
        ("__myl_Move_myl0_5", "", "", "__myl_Move_myl0_5"),
        ("__myl_Move_myl0_6", "[ONNX Layer: of another graph]", "", "__myl_Move_myl0_6"),
        ("Reformatting CopyNode for Output Tensor 0 to ??", "", "", "Reformatting"),
    ],
)
def test_the_module_of_a_layer_is_what_its_nodes_have_in_common(
    layer, detail, module, operator, nodes
):
    found = nodes.of(layer, detail)
    assert found.module == module
    assert operator in (None, found.operator)


def test_the_class_of_a_layer_is_that_of_its_costliest_node(nodes):
    assert nodes.of("add + fc1 + gelu").kind == "linear"
    assert nodes.of("scale + softmax").kind == "softmax"
    assert nodes.of("add").kind == "elementwise"


def test_no_class_is_said_to_take_what_several_costly_ones_share():
    operators = (("conv", "Conv"), ("fc", "MatMul"), ("act", "Relu"))
    made = [onnx.helper.make_node(op, [name], [f"{name}_out"], name=name) for name, op in operators]
    built = onnx.helper.make_model(onnx.helper.make_graph(made, "two", [], []))
    nodes = Nodes(layer_facts(built))
    assert nodes.of("{ForeignNode[conv...act]}").kind == "other"
    assert nodes.of("fc + act").kind == "linear"


def test_an_unknown_module_says_nothing_of_what_is_common():
    assert common(["a.b", "", "a.b.c"]) == "a.b"
    assert common(["", ""]) == ""


def test_shares_are_of_all_layers():
    times = (("a.0.x", 1), ("b", 2), ("a.0.y", 5))
    layers = [{"module": module, "milliseconds": ms} for module, ms in times]
    assert shares(layers, "module") == [("a.0", 0.75), ("b", 0.25)]
    assert shares([], "class") == []


@pytest.fixture
def kit(tmp_path):
    onnx.save(graph(), tmp_path / "blocks.onnx")
    target = targets.load("jetson-orin-nano-super")
    kit = on_device.convert(tmp_path / "blocks.onnx", tmp_path / "kit", target).path
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    evaluator = onnx.reference.ReferenceEvaluator(graph())
    y = np.concatenate([evaluator.run(None, {"v0": row[None]})[0] for row in x])
    np.savez(kit / "reference.npz", **{"input/v0": x, f"output/v{len(NODES)}": y})
    return kit


#: How many layers each stand-in fuses the nodes into.
LAYERS = {"10.3": 1, "10.13": len(NODES) / 2}


@pytest.mark.parametrize("version", LAYERS)
def test_a_profile_names_the_modules(version, kit, jetson, run_kit):
    done = run_kit(kit, "--iterations", "1", "--profile", **{**jetson, "FAKE_TENSORRT": version})
    assert done.returncode == 0, done.stderr
    found = json.loads((kit / "result.json").read_text())["profile"]
    assert found["whole_ms"] > 0
    assert found["profiled_ms"] > 0
    # The stand-in's layers take 0.25, 0.5, 0.75 ms, ...
    assert [part["milliseconds"] for part in found["layers"]] == [
        0.25 * (place + 1) for place in range(int(LAYERS[version]))
    ]
    modules = [part["module"] for part in found["layers"]]
    assert (
        modules
        == {
            "10.3": [""],
            "10.13": ["blocks.0.attn", "blocks.0.attn", "blocks.0", ""],
        }[version]
    )
    assert "By class: " in done.stdout
    assert "By module: " in done.stdout


def test_the_runtime_gives_the_same_layers(kit, jetson, run_kit):
    environment = {**jetson, "FAKE_TENSORRT": "10.13"}
    assert run_kit(kit, "--iterations", "1", **environment).returncode == 0
    code = """
import sys
from pathlib import Path
import numpy as np
from edgekit.profiling import profile
found = profile(Path(sys.argv[1]), "tensorrt", {"v0": np.ones((1, 4), np.float32)})
assert found.slowdown > 0
print(*(f"{layer.name} {layer.module} {layer.kind}" for layer in found.layers), sep="\\n")
"""
    for beside in ("kit.json", "model.onnx", ""):
        done = subprocess.run(
            [sys.executable, "-c", code, str(kit / "engine.plan")],
            capture_output=True,
            text=True,
            env={**os.environ, **environment},
        )
        assert done.returncode == 0, done.stderr
        first = done.stdout.splitlines()[0]
        assert first == f"__myl_Fused_myl0_0 {'blocks.0.attn linear' if beside else ' other'}"
        if beside:
            (kit / beside).unlink()
