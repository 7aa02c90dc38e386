"""attention: the products of attention in an ONNX graph, where they are not one operator.

    scores = queries keys^T    (a product of two values, neither a constant)
    weights = softmax(scores)  (scaled, masked, capped or cast before)
    output = weights values

What lies between the two products is part of attention. A softmax without them is not: a
classifier's, or a router's.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

_PRODUCTS = {"MatMul", "Gemm", "Einsum", "FusedMatMul"}
#: What may stand between a product and the softmax, or keep a value as it is.
_BETWEEN = {
    *("Add", "Sub", "Mul", "Div", "Where", "Cast", "Clip", "Tanh", "Min", "Max", "IsNaN"),
    *("Reshape", "Squeeze", "Unsqueeze", "Transpose", "Concat", "Slice", "Expand", "Identity"),
    *("QuantizeLinear", "DequantizeLinear", "Dropout", "Softcap"),
}
#: The longest chain between a softmax and a product that is looked through.
_REACH = 12


def products(nodes: Sequence[Any], constants: Collection[str]) -> set[str]:
    """The first outputs of all nodes that are part of attention."""
    makers = {value: node for node in nodes for value in node.output}
    readers: dict[str, list[Any]] = {}
    for node in nodes:
        for value in set(node.input):
            readers.setdefault(value, []).append(node)
    found: set[str] = set()
    for node in nodes:
        if node.op_type != "Softmax":
            continue
        scores = _before(node.input[0], makers, constants, _REACH)
        output = _after(node.output[0], readers, constants, _REACH)
        if scores and output:
            found |= {*scores, node.output[0], *output}
    return found


def _before(
    value: str, makers: Mapping[str, Any], constants: Collection[str], reach: int
) -> set[str]:
    """What leads from a product of two values to this value; nothing if there is none."""
    node = makers.get(value)
    if node is None or reach == 0:
        return set()
    if _is_product(node, constants):
        return {node.output[0]}
    if node.op_type not in _BETWEEN:
        return set()
    parts = [_before(given, makers, constants, reach - 1) for given in node.input]
    return {node.output[0], *set().union(*parts)} if any(parts) else set()


def _after(
    value: str, readers: Mapping[str, list[Any]], constants: Collection[str], reach: int
) -> set[str]:
    """What leads from this value to a product with another; nothing if there is none."""
    found: set[str] = set()
    for node in readers.get(value, ()) if reach else ():
        if _is_product(node, constants):
            found.add(node.output[0])
        elif node.op_type in _BETWEEN:
            rest = _after(node.output[0], readers, constants, reach - 1)
            found |= {node.output[0], *rest} if rest else set()
    return found


def _is_product(node: Any, constants: Collection[str]) -> bool:
    return node.op_type in _PRODUCTS and not any(value in constants for value in node.input)
