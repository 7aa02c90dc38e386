"""Rules: what each runtime wants of a graph. One readable place, one row a runtime."""

from __future__ import annotations

from dataclasses import dataclass, replace

from edgekit.targets import Target


@dataclass(frozen=True)
class Rules:
    """How a graph is shaped for a runtime before it is converted.

    Attributes:
        rewrites: files of ``converters/rewrites`` that are applied, in order.
        operators: those that are quantized: ``linear``, ``conv``.
        matmul: whether a quantized linear becomes ``x @ W[in, out] + bias[1, 1, out]``.
        conv_output: whether a quantized convolution's output is quantized too.
        int4: whether 4-bit weights are stored in 4 bits; else in 8, with the same values.
        explicit_casts: whether fp16 is written into the graph as casts.
        why: what the rules rest on.
    """

    rewrites: tuple[str, ...]
    operators: frozenset[str]
    matmul: bool
    conv_output: bool
    int4: bool
    explicit_casts: bool
    why: str

    def takes(self, operator: str) -> bool:
        """Whether an operator is quantized."""
        return operator in self.operators


_TENSORRT = Rules(
    rewrites=("attention",),
    operators=frozenset({"linear", "conv"}),
    matmul=True,
    conv_output=False,
    int4=True,
    explicit_casts=True,
    why="TensorRT fuses Q/DQ around linears and convolutions; attention stays whole in fp16.",
)

RULES = {
    "onnxruntime": Rules(
        rewrites=("attention",),
        operators=frozenset({"linear"}),
        matmul=True,
        conv_output=False,
        int4=False,
        explicit_casts=True,
        why=(
            "ONNX Runtime turns MatMul + Add of a low-rank bias into a float Gemm, which has no "
            "INT8 kernel; its INT8 convolution needs a quantized output and an integer bias."
        ),
    ),
    "tensorrt": _TENSORRT,
    "tensorrt_rtx": _TENSORRT,
    "coreml": Rules(
        rewrites=("rank5",),
        operators=frozenset({"linear", "conv"}),
        matmul=False,
        conv_output=False,
        int4=True,
        explicit_casts=False,
        why=(
            "Core ML wants weights as constants of linear and conv, and casts a whole program "
            "to fp16 itself: its Neural Engine has no fp32."
        ),
    ),
}


def rules_for(target: Target) -> Rules:
    """The rules of the target's runtime; TensorRT before 8.6 has no LayerNormalization."""
    rules = RULES[target.runtime]
    if target.opset is not None and target.opset < 18:
        return replace(rules, rewrites=(*rules.rewrites, "layer_norm"))
    return rules
