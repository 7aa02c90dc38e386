"""Layers: matrix products and convolutions with constant weights, as modules of torch's own.

    MatMul(x, W), Gemm(x, W, b)  =  linear(x, W^T, b)        Conv(x, W, b)  =  conv(x, W, b)

What quantization looks for is a linear or convolution whose weight is constant, ``[out, in, ...]``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from edgekit.families.onnx_graph.reading import Node
from edgekit.families.onnx_graph.spatial import ones, window_pads
from edgekit.families.onnx_graph.table import Known, tensor

Pads = list[tuple[int, int]]


def weight_matrix(node: Node, constants: Mapping[str, Known]) -> Known | None:
    """The weight ``[out, in]`` of a MatMul or Gemm that is a linear layer, else None."""
    weight = constants.get(node.inputs[1])
    if weight is None or weight.ndim != 2 or weight.dtype.kind != "f":
        return None
    if node.kind == "MatMul":
        return weight.T
    if node.attributes.get("transA", 0) or gemm_bias(node, constants, 1) is NotImplemented:
        return None
    scale = weight.dtype.type(node.attributes.get("alpha", 1.0))
    matrix = weight if node.attributes.get("transB", 0) else weight.T
    return matrix if scale == 1 else matrix * scale


def gemm_bias(node: Node, constants: Mapping[str, Known], width: int) -> Any:
    """A Gemm's bias for ``width`` outputs; None without one, NotImplemented if it is none."""
    name = node.inputs[2] if len(node.inputs) > 2 else ""
    if not name:
        return None
    bias = constants.get(name)
    if bias is None or bias.size not in (1, bias.shape[-1] if bias.ndim else 1):
        return NotImplemented
    scaled = bias.reshape(-1) * bias.dtype.type(node.attributes.get("beta", 1.0))
    return scaled if scaled.size > 1 else np.broadcast_to(scaled, (width,))


def linear(weight: torch.nn.Parameter, bias: Known | None) -> torch.nn.Linear:
    """A linear layer of a weight ``[out, in]``."""
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    layer.weight = weight
    if bias is not None:
        layer.bias = torch.nn.Parameter(tensor(bias))
    return layer


def convolution(
    node: Node, weight: torch.nn.Parameter, bias: Known | None, sizes: Sequence[int]
) -> tuple[torch.nn.Module, Pads | None]:
    """A convolution, and what must be padded before it where its two sides differ.

    Args:
        weight: ``[out, in / groups, *kernel]``.
        sizes: of the input's spatial dimensions.
    """
    kernel = tuple(weight.shape[2:])
    rank = len(kernel)
    stride = ones(node.attributes.get("strides"), rank)
    gap = ones(node.attributes.get("dilations"), rank)
    automatic = node.attributes.get("auto_pad", "NOTSET")
    around = window_pads(sizes, kernel, stride, gap, node.attributes.get("pads"), automatic)
    even = all(before == after for before, after in around)
    groups = node.attributes.get("group", 1)
    kind: Any = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)[rank - 1]
    made: Any = kind(
        weight.shape[1] * groups,
        weight.shape[0],
        kernel,
        stride,
        tuple(before for before, _ in around) if even else 0,
        gap,
        groups,
        bias is not None,
        device="meta",
    )
    made.weight = weight
    if bias is not None:
        made.bias = torch.nn.Parameter(tensor(bias))
    return made, None if even else around
