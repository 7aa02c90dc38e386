"""What coremltools lacks or gets wrong when it translates from torch, in one place.

Its translations read some arguments only by position, or not at all, and take the default
for one given by keyword: a tanh GELU became an exact one, a causal attention a full one.
"""

from __future__ import annotations

import copy
import functools
import inspect
from typing import TYPE_CHECKING, Any

from edgekit.errors import EdgekitError
from edgekit.quantize.schemes import QMAX

if TYPE_CHECKING:
    from torch.fx import Graph as Program
    from torch.fx import Node

#: Keywords that change no value of a Core ML program, which has its own types and places.
HARMLESS = {"device", "dtype", "layout", "memory_format", "non_blocking", "out_dtype", "pin_memory"}


@functools.cache
def register() -> None:
    """Teach coremltools, once a process, the operators below."""
    from coremltools.converters.mil import register_torch_op
    from coremltools.converters.mil.frontend.torch.ops import _get_inputs, cat, lstm
    from coremltools.converters.mil.mil import Builder as mb
    from coremltools.converters.mil.mil import types

    @register_torch_op(override=True)  # type: ignore[untyped-decorator]
    def alias(context: Any, node: Any) -> None:
        x = _get_inputs(context, node, expected=1)[0]
        context.add(mb.identity(x=x, name=node.name))

    @register_torch_op(override=True)  # type: ignore[untyped-decorator]
    def gelu(context: Any, node: Any) -> None:
        x = _get_inputs(context, node, expected=1)[0]
        approximate = (node.kwinputs or {}).get("approximate", ("none",))[0]
        mode = {"none": "EXACT", "tanh": "TANH_APPROXIMATION"}[approximate]
        context.add(mb.gelu(x=x, mode=mode, name=node.name))

    @register_torch_op(override=True)  # type: ignore[untyped-decorator]
    def rms_norm(context: Any, node: Any) -> None:
        """coremltools' own adds eps to the mean square of x over its largest value, not of x."""
        x, shape, weight, eps = _get_inputs(context, node, expected=4)
        y = _rms_norm(mb, x, list(range(-len(shape.val), 0)), eps)
        context.add(mb.mul(x=y, y=1.0 if weight is None else weight, name=node.name))

    @register_torch_op(override=True)  # type: ignore[untyped-decorator]
    def concatenate(context: Any, node: Any) -> None:
        cat(context, node)

    @register_torch_op(torch_alias=["scatter.value"], override=True)  # type: ignore[untyped-decorator]
    def scatter_number(context: Any, node: Any) -> None:
        """coremltools' own wants to know how many indices there are."""
        data, axis, indices, number = _get_inputs(context, node, expected=4)
        updates = mb.fill(shape=mb.shape(x=indices), value=float(number.val))
        updates = mb.cast(x=updates, dtype=types.builtin_to_string(data.dtype))
        places = {"data": data, "indices": indices, "axis": axis.val, "mode": "update"}
        context.add(mb.scatter_along_axis(updates=updates, name=node.name, **places))

    @register_torch_op(torch_alias=["edgekit::latest"])  # type: ignore[untyped-decorator]
    def latest(context: Any, node: Any) -> None:
        x, count = _get_inputs(context, node, expected=2)
        size = mb.gather(x=mb.shape(x=x), indices=[2], axis=0)
        first = mb.maximum(x=mb.sub(x=size, y=count.val), y=0)
        begin = mb.concat(values=[[0, 0], first, [0]], axis=0)
        rest = {"end": mb.shape(x=x), "end_mask": [True] * 4}
        context.add(mb.slice_by_index(x=x, begin=begin, name=node.name, **rest))

    @register_torch_op(torch_alias=["edgekit::sparse_codes"])  # type: ignore[untyped-decorator]
    def sparse_codes(context: Any, node: Any) -> None:
        """The matrix itself, which is larger: the file is not as small as it is elsewhere."""
        import torch

        values, packed, atoms = (var.val for var in _get_inputs(context, node, expected=3))
        given = torch.from_numpy(values), torch.from_numpy(packed.astype("uint8"))
        matrix = torch.ops.edgekit.sparse_codes(*given, int(atoms)).numpy()
        context.add(mb.const(val=matrix, name=node.name))

    @register_torch_op(torch_alias=["lstm.input"], override=True)  # type: ignore[untyped-decorator]
    def lstm_of_export(context: Any, node: Any) -> None:
        """coremltools' own, whose three results it takes for three nodes."""
        traced = copy.copy(node)
        traced.outputs = [f"{node.name}_{part}" for part in ("sequence", "h", "c")]
        lstm(context, traced)
        context.add(tuple(context[name] for name in traced.outputs), torch_name=node.name)

    @register_torch_op(torch_alias=["edgekit::dequantize_groups"])  # type: ignore[untyped-decorator]
    def dequantize_groups(context: Any, node: Any) -> None:
        levels, scale = (var.val for var in _get_inputs(context, node)[:2])
        context.add(_blockwise(mb, levels, scale, node.name))

    @register_torch_op(override=True)  # type: ignore[untyped-decorator]
    def col2im(context: Any, node: Any) -> None:
        x, *sizes = _get_inputs(context, node, expected=6)
        context.add(_fold(mb, x, node.name, *(list(size.val) for size in sizes)))


def _blockwise(mb: Any, levels: Any, scale: Any, name: str) -> Any:
    """Levels times scales by block, the levels stored in 4 bits where they fit."""
    import numpy as np
    from coremltools.converters.mil.mil import types

    fits = np.abs(levels).max() <= QMAX["int4"]
    data = levels.astype(types.np_int4_dtype if fits else np.int8)
    return mb.constexpr_blockwise_shift_scale(data=data, scale=scale, name=name)


def _rms_norm(mb: Any, x: Any, axes: list[int], eps: Any) -> Any:
    """x / sqrt(mean(x^2) + eps) with nothing squared that is above 1: float16 ends at 65504.

    With s = max(|x|, sqrt(eps)), it is (x / s) / sqrt(mean((x / s)^2) + (sqrt(eps) / s)^2).
    """
    import numpy as np

    root = np.sqrt(np.finfo(np.float32).eps if eps is None else eps.val).astype(np.float32)
    largest = mb.reduce_max(x=mb.abs(x=x), axes=axes, keep_dims=True)
    scale = mb.maximum(x=largest, y=root)
    scaled = mb.real_div(x=x, y=scale)
    mean = mb.reduce_mean(x=mb.square(x=scaled), axes=axes, keep_dims=True)
    added = mb.square(x=mb.real_div(x=root, y=scale))
    return mb.real_div(x=scaled, y=mb.sqrt(x=mb.add(x=mean, y=added)))


def _fold(
    mb: Any,
    x: Any,
    name: str,
    output: list[int],
    kernel: list[int],
    dilation: list[int],
    padding: list[int],
    stride: list[int],
) -> Any:
    """Sum overlapping blocks into an image: a transposed convolution with unit kernels.

    ``x`` is (batch, channels * kernel elements, blocks); the result (batch, channels, *output).
    """
    import numpy as np

    taps = kernel[0] * kernel[1]
    channels = int(x.shape[1]) // taps
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    blocks = [
        (size + 2 * pad - span) // step + 1
        for size, pad, span, step in zip(output, padding, spans, stride, strict=True)
    ]
    units = np.eye(taps, dtype=np.float32).reshape(taps, 1, *kernel)
    image = mb.conv_transpose(
        x=mb.reshape(x=x, shape=[-1, int(x.shape[1]), *blocks]),
        weight=np.tile(units, (channels, 1, 1, 1)),
        strides=stride,
        dilations=dilation,
        groups=channels,
    )
    covered = [(n - 1) * step + span for n, step, span in zip(blocks, stride, spans, strict=True)]
    widths = [
        width
        for size, pad, have in zip(output, padding, covered, strict=True)
        for width in (0, max(size + pad - have, 0))
    ]
    if any(widths):
        image = mb.pad(x=image, pad=widths)
    begin, size = [0, 0, *padding], [-1, -1, *output]
    return mb.slice_by_size(x=image, begin=begin, size=size, name=name)


def settle_keywords(program: Program) -> None:
    """Give by position every argument that coremltools would ignore by keyword.

    Raises:
        EdgekitError: one can be given by keyword only, and would be ignored in silence.
    """
    for node in program.nodes:
        if node.op != "call_function":
            continue
        for name in node.kwargs.keys() - HARMLESS:
            if not _reads(node, name):
                _by_position(node, name)


def _reads(node: Node, keyword: str) -> bool:
    """Whether the translation's own code asks for the keyword; there is no declaration."""
    from coremltools.converters.mil.frontend.torch.torch_op_registry import _TORCH_OPS_REGISTRY

    kind = node.target.name().split("::")[-1].split(".")[0]  # type: ignore[union-attr]
    translate = _TORCH_OPS_REGISTRY.get_func(kind)
    return translate is None or f'"{keyword}"' in inspect.getsource(translate)


def _by_position(node: Node, keyword: str) -> None:
    parameters = node.target._schema.arguments  # type: ignore[union-attr]
    place = next(i for i, parameter in enumerate(parameters) if parameter.name == keyword)
    given = dict(node.kwargs)
    if given[keyword] == parameters[place].default_value:
        del given[keyword]
    elif parameters[place].kwarg_only:
        raise EdgekitError(
            f"The model cannot be expressed in Core ML at {node.target} ({node.name}).",
            f"coremltools ignores its argument {keyword}={given[keyword]}.",
            "Write the operator in the model without that argument.",
        )
    else:
        node.args = (
            *node.args,
            *(given.pop(p.name, p.default_value) for p in parameters[len(node.args) : place + 1]),
        )
    node.kwargs = given
