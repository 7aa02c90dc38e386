"""Rules: what each runtime wants of a graph. One readable place, one row a runtime."""

from __future__ import annotations

from dataclasses import dataclass, replace

from edgekit.targets import Target


@dataclass(frozen=True)
class Rules:
    """How a graph is shaped for a runtime before it is converted.

    Attributes:
        rewrites: files of ``converters/rewrites`` that are applied, in order.
        quantized_rewrites: those that are applied too where the graph is quantized.
        operators: those that are quantized: ``linear``, ``conv``, ``attention``.
        matmul: whether a quantized linear becomes ``x @ W[in, out] + bias[1, 1, out]``.
        unsigned: the operators whose 8-bit inputs are stored as level + 128, of the same value.
        int4: whether 4-bit weights are stored in 4 bits; else in 8, with the same values.
        float_after: aten operators whose result enters a layer in float.
        explicit_casts: whether fp16 is written into the graph as casts.
        native: our operators, by file in ``edgekit/operators``, that it has kernels of its own for.
        why: what the rules rest on.
    """

    rewrites: tuple[str, ...]
    quantized_rewrites: tuple[str, ...]
    operators: frozenset[str]
    matmul: bool
    unsigned: frozenset[str]
    int4: bool
    float_after: frozenset[str]
    explicit_casts: bool
    native: frozenset[str]
    why: str

    def takes(self, operator: str) -> bool:
        """Whether an operator is quantized."""
        return operator in self.operators


#: Recurrences of a known or short length, as products of matrices and sums.
WITHOUT_LOOPS = ("scan_by_doubling", "chunked_ssd", "chunked_delta", "chunked_lmu", "unrolled_fire")

_TENSORRT = Rules(
    rewrites=("spiking_units", "sign_codes", "attention", *WITHOUT_LOOPS),
    quantized_rewrites=(),
    operators=frozenset({"linear", "conv"}),
    matmul=True,
    unsigned=frozenset(),
    int4=True,
    float_after=frozenset(),
    explicit_casts=True,
    native=frozenset(),
    why="TensorRT fuses Q/DQ around linears and convolutions; attention stays whole in fp16.",
)

RULES = {
    "onnxruntime": Rules(
        rewrites=("truncated_units", "spiking_units", "sign_codes", "attention", "softplus"),
        quantized_rewrites=("conv_as_linear",),
        operators=frozenset({"linear"}),
        matmul=True,
        unsigned=frozenset({"linear"}),
        int4=True,
        float_after=frozenset(),
        explicit_casts=True,
        native=frozenset({"causal_attention", "gated_delta", "ssd"}),
        why=(
            "ONNX Runtime turns MatMul + Add of a low-rank bias into a float Gemm, which has no "
            "INT8 kernel. It runs signed activations by making them unsigned, and only where one "
            "quantization feeds one product. Its INT8 convolution is slower than float, but for "
            "those that are products. Its LinearAttention takes 0.8 (ssd) and 0.5 (gated_delta) of "
            "the time of chunks and a Scan. Its GroupQueryAttention over 4096 positions takes 0.4 "
            "of the time of products and a softmax, and never holds all scores."
        ),
    ),
    "openvino": Rules(
        rewrites=("spiking_units", "sign_codes", "attention"),
        quantized_rewrites=("conv_as_linear",),
        operators=frozenset({"linear", "attention"}),
        matmul=True,
        unsigned=frozenset(),
        int4=True,
        float_after=frozenset({"aten.mean.dim"}),
        explicit_casts=True,
        native=frozenset(),
        why=(
            "OpenVINO fuses the quantization of a linear's input into the LayerNorm or GELU before "
            "it, and has integer products of attention. Its version 2026.4 gives wrong numbers "
            "where an INT8 convolution reads a concatenation of signed levels, and where a scaled "
            "mean is quantized: neither is written."
        ),
    ),
    "tensorrt": _TENSORRT,
    "tensorrt_rtx": _TENSORRT,
    "coreml": Rules(
        rewrites=("spiking_units", "sign_codes", *WITHOUT_LOOPS, "causal_attention", "rank5"),
        quantized_rewrites=(),
        operators=frozenset({"linear", "conv"}),
        matmul=False,
        unsigned=frozenset(),
        int4=True,
        float_after=frozenset(),
        explicit_casts=False,
        native=frozenset(),
        why=(
            "Core ML wants weights as constants of linear and conv, and casts a whole program "
            "to fp16 itself: its Neural Engine has no fp32."
        ),
    ),
    "nir": Rules(
        rewrites=(),
        quantized_rewrites=(),
        operators=frozenset(),
        matmul=False,
        unsigned=frozenset(),
        int4=False,
        float_after=frozenset(),
        explicit_casts=False,
        native=frozenset({"qcfs", "fire"}),
        why="NIR has neurons of its own: units and neurons stay whole.",
    ),
}


def rules_for(target: Target) -> Rules:
    """The rules of the target's runtime; TensorRT before 8.6 has no LayerNormalization.

    ONNX cannot convert a Split to what it reads.
    """
    rules = RULES[target.runtime]
    if target.opset is not None and target.opset < 18:
        return replace(rules, rewrites=(*rules.rewrites, "layer_norm", "split_as_slices"))
    return rules
