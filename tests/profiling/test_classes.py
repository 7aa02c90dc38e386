"""Classes: what operators and kernels are called, in each runtime."""

from __future__ import annotations

import pytest

from edgekit.profiling.classes import _OPERATORS, CLASSES, class_of


@pytest.mark.parametrize(
    ("operator", "name", "kind"),
    [
        ("MatMul", "", "linear"),
        ("FusedMatMul", "node_matmul/MatMulScaleFusion/", "linear"),
        ("com.microsoft::MultiHeadAttention", "", "attention"),
        ("FullyConnected", "node_linear", "linear"),
        ("TensorIterator", "node_mamba_scan__1", "scan"),
        ("aten::addmm", "", "linear"),
        ("aten::scaled_dot_product_attention", "", "attention"),
        ("edgekit::ssd", "", "scan"),
        ("SkipLayerNormalization", "", "normalisation"),
        ("ReorderInput", "", "copy"),
        ("Resize", "", "other"),
        ("QLinearConv", "", "convolution"),
        ("DynamicQuantizeLinear", "", "quantize"),
        # TensorRT and TensorRT for RTX
        ("", "_gemm_mha_v2_myl0_7", "attention"),
        ("", "sm80_xmma_fprop_implicit_gemm_f16f16_f16f32", "convolution"),
        ("", "sm86_xmma_gemm_f16f16_f16f32_tn_n", "linear"),
        ("", "__myl_FcMulSigMul_myl0_3", "linear"),
        ("", "__myl_MeanSubMulMeanAddSqrtDivMulMulAdd_myl0_2", "normalisation"),
        ("", "__myl_MaxrSubExpSumDivMul_myl0_5", "softmax"),
        ("", "Reformatting CopyNode for Input Tensor 0 to /conv1/Conv", "copy"),
        ("", "/conv1/Conv + /relu/Relu", "convolution"),
        ("", "PWN(PWN(/act/Sigmoid), /act/Mul)", "activation"),
        ("", "__myl_MoveReshTran_myl0_9", "copy"),
        ("Frobnicate", "nothing known", "other"),
    ],
)
def test_names(operator, name, kind):
    assert class_of(operator, name) == kind


def test_every_class_has_operators_of_its_own():
    assert set(_OPERATORS) == set(CLASSES) - {"other"}
    listed = [name for names in _OPERATORS.values() for name in names.split()]
    assert len(listed) == len(set(listed))
    assert all(class_of(name) == kind for kind, n in _OPERATORS.items() for name in n.split())
