"""Origins: what the nodes of an ONNX graph are part of."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.converters.onnx import MODULE_PATH
from edgekit.profiling.origins import Origins, common, role_of


def node(operator: str, inputs: str, outputs: str, scopes: str = "", **attributes: Any) -> Any:
    """A node called as its first output; ``scopes`` are modules and the graph's node."""
    made = helper.make_node(operator, inputs.split(), outputs.split(), outputs.split()[0])
    made.attribute.extend(helper.make_attribute(*item) for item in attributes.items())
    if scopes:
        entry = made.metadata_props.add()
        entry.key, entry.value = MODULE_PATH, repr(["", *scopes.split()])
    return made


def origins(*nodes: Any, constants: str = "w") -> Origins:
    values = [numpy_helper.from_array(np.ones((2, 2), np.float32), n) for n in constants.split()]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 2])]
    outputs = [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)]
    graph = helper.make_graph(list(nodes), "graph", inputs, outputs, values)
    return Origins(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]))


def roles(found: Origins) -> dict[str, str]:
    return {name: origin.role for name, origin in found.by_node.items()}


def test_attention_that_is_several_nodes():
    found = origins(
        node("MatMul", "x w", "q"),
        node("MatMul", "q x", "scores"),
        node("Mul", "scores w", "scaled"),
        node("Add", "scaled w", "masked"),
        node("Softmax", "masked", "weights"),
        node("Cast", "weights", "half", to=TensorProto.FLOAT16),
        node("MatMul", "half x", "mixed"),
        node("MatMul", "mixed w", "out"),
    )
    inside = {"scores", "scaled", "masked", "weights", "half", "mixed"}
    assert {name for name, role in roles(found).items() if role == "attention"} == inside


@pytest.mark.parametrize(
    "nodes",
    [
        [("MatMul", "x w", "h"), ("Softmax", "h", "y")],  # a classifier
        [("MatMul", "x w", "h"), ("Softmax", "h", "g"), ("Mul", "g x", "y")],  # a router
        [("MatMul", "x x", "h"), ("Softmax", "h", "g"), ("MatMul", "g w", "y")],
        [("MatMul", "x x", "h"), ("Relu", "h", "r"), ("Softmax", "r", "g"), ("MatMul", "g x", "y")],
    ],
)
def test_a_softmax_alone_is_no_attention(nodes):
    assert "attention" not in roles(origins(*(node(*each) for each in nodes))).values()


def test_quantized_attention_keeps_its_products():
    found = origins(
        node("MatMul", "x x", "scores"),
        node("Softmax", "scores", "weights"),
        node("QuantizeLinear", "weights w", "levels"),
        node("DequantizeLinear", "levels w", "again"),
        node("MatMul", "again x", "y"),
    )
    assert roles(found)["y"] == "attention"
    assert roles(found)["levels"] == ""  # it is of class quantize
    # A runtime's one kernel for product and quantizing gives the levels.
    assert role_of("QLinearMatMul", found.by_value["levels"].role) == "attention"
    assert role_of("QuantizeLinear", found.by_value["levels"].role) == ""


def test_a_whole_is_known_by_its_node_in_the_exported_graph():
    found = origins(
        node("Mul", "x w", "a", "blocks.0.mixer mamba_scan_1"),
        node("Reshape", "a w", "b", "blocks.0.mixer mamba_scan_1"),
        node("Add", "b w", "c", "blocks.0.mixer add_3"),
        node("Sigmoid", "c", "d", "blocks.0.mixer silu"),
        node("Mul", "d c", "e", "blocks.0.mixer silu"),
        node("Pow", "e w", "rms_norm_2/pow", "blocks.0.mixer pow_1"),
        node("Gather", "w x", "g", "embed embedding"),
        node("Gather", "e w", "h", "blocks.0 index"),
        node("MatMul", "h w", "i", "blocks.0.fc linear_7"),
        node("Add", "i w", "j", "blocks.0.fc linear_7"),
    )
    assert roles(found) == {
        **{"a": "scan", "b": "scan", "c": "", "d": "activation", "e": "activation"},
        **{"rms_norm_2/pow": "normalisation", "g": "embedding", "h": ""},
        **{"i": "", "j": "linear"},
    }


def test_a_norm_of_several_nodes_is_known_by_its_module():
    found = origins(
        node("ReduceMean", "x", "m", "blocks.0 blocks.0.norm1 mean"),
        node("Sub", "x m", "s", "blocks.0 blocks.0.ln_2 sub"),
        node("MatMul", "s w", "y", "blocks.0 blocks.0.norm1 linear"),
        node("Add", "y w", "z", "blocks.0 add"),
    )
    assert roles(found) == {"m": "normalisation", "s": "normalisation", "y": "", "z": ""}


def test_products_in_an_attention_without_a_softmax():
    found = origins(
        node("MatMul", "x x", "kv", "stage.attn matmul"),
        node("MatMul", "kv w", "y", "stage.attn linear"),
        node("MatMul", "y x", "z", "stage.mlp matmul"),
    )
    assert roles(found) == {"kv": "attention", "y": "", "z": ""}


def test_modules_where_the_exporter_or_an_optimizer_left_no_path():
    found = origins(
        node("MatMul", "x w", "a", "blocks.0 blocks.0.in_proj linear"),
        node("Split", "a", "b c"),
        node("Neg", "b", "d", "blocks.0 blocks.0.mixer blocks.0.mixer.conv neg"),
        node("Neg", "c", "e", "blocks.0 blocks.0.mixer blocks.0.mixer.gate neg"),
        node("Neg", "e", "f", "_empty_nn_module_stack_from_metadata_hook neg_1"),
    )
    modules = {name: origin.module for name, origin in found.by_node.items()}
    assert modules == {
        **{"a": "blocks.0.in_proj", "b": "blocks.0.mixer"},
        **{"d": "blocks.0.mixer.conv", "e": "blocks.0.mixer.gate", "f": ""},
    }
    assert found.by_value["c"] == found.by_node["b"]


def test_names_of_the_older_exporter():
    made = node("MatMul", "x x", "y")
    made.name = "/blocks/blocks.0/attn/MatMul_1"
    assert origins(made).by_node[made.name].module == "blocks.0.attn"


def test_a_kernel_counts_for_the_value_that_it_gives_else_for_its_reader():
    found = origins(node("MatMul", "x w", "product", "blocks.0.fc1 linear"))
    kernels = [
        node("DynamicQuantizeLinear", "x", "x_u8"),
        node("MatMulInteger", "x_u8", "product"),
        node("Neg", "product", "y"),
    ]
    modules = {name: origin.module for name, origin in found.of_kernels(kernels).items()}
    assert modules == {"x_u8": "blocks.0.fc1", "product": "blocks.0.fc1", "y": ""}


def test_a_kernel_that_gives_another_value_is_known_by_its_name():
    """As a product whose transposed result an optimizer moved."""
    found = origins(node("MatMul", "x x", "kv", "blocks.0.attn matmul"))
    moved = node("MatMul", "x x", "moved")
    moved.name = "kv/Fusion/"
    assert found.of_kernels([moved])["kv/Fusion/"].role == "attention"


def test_a_kernel_of_several_nodes_is_where_the_last_one_is():
    found = origins(
        node("Conv", "x w", "a", "stem.conv conv2d"),
        node("Relu", "a", "b", "stem.act relu"),
    )
    whole = found.of_names(["a", "unheard of", "b"])
    assert (whole.module, whole.role) == ("stem.act", "activation")
    assert role_of("Convolution", whole.role) == ""  # it stays a convolution
    assert found.of_names(["unheard of"]).module == ""


def test_a_file_is_read_without_its_weights(tmp_path):
    tensor = numpy_helper.from_array(np.ones((64, 64), np.float32), "w")
    graph = helper.make_graph([node("MatMul", "x w", "y", "fc linear")], "g", [], [], [tensor])
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph), path, save_as_external_data=True, size_threshold=0)
    for weights in set(tmp_path.iterdir()) - {path}:
        weights.unlink()
    assert Origins.read(path).by_node["y"].module == "fc"


def test_common():
    assert common(["a.bc", "a.bd"]) == "a"
