"""Operators with weights or windows: products, convolutions, pools, norms, attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgekit.converters.mil_ops import Table
from edgekit.errors import EdgekitError

if TYPE_CHECKING:
    from torch import Tensor


def table() -> Table:
    """MIL name -> function."""
    import torch
    from torch.nn import functional

    return {
        "avg_pool": avg_pool,
        "batch_norm": lambda x, mean, variance, gamma=None, beta=None, epsilon=1e-5: (
            functional.batch_norm(x, mean, variance, gamma, beta, False, 0.0, epsilon)
        ),
        "conv": conv,
        "conv_transpose": conv_transpose,
        "einsum": lambda values, equation: torch.einsum(equation, *values),
        "instance_norm": lambda x, gamma=None, beta=None, epsilon=1e-5: functional.instance_norm(
            x, weight=gamma, bias=beta, eps=epsilon
        ),
        "layer_norm": layer_norm,
        "linear": lambda x, weight, bias=None: functional.linear(x, weight, bias),
        "lstm": lstm,
        "matmul": matmul,
        "max_pool": max_pool,
        "scaled_dot_product_attention": attention,
    }


def matmul(x: Tensor, y: Tensor, transpose_x: bool = False, transpose_y: bool = False) -> Tensor:
    """``x @ y``, each transposed in its last two axes if asked."""
    return (x.mT if transpose_x else x) @ (y.mT if transpose_y else y)


def attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """softmax(Q K^T / sqrt(d) + mask) V."""
    from torch.nn import functional

    return functional.scaled_dot_product_attention(query, key, value, attn_mask)


def _widths(
    kind: str, pad: list[int] | None, sizes: list[int], spans: list[int], strides: list[int]
) -> list[int]:
    """(before, after) for each spatial axis; ``spans`` are the dilated kernel sizes."""
    if kind == "custom":
        return pad or [0] * (2 * len(sizes))
    if kind == "valid":
        return [0] * (2 * len(sizes))
    widths = []
    for size, span, stride in zip(sizes, spans, strides, strict=True):
        total = max((-(-size // stride) - 1) * stride + span - size, 0)
        less, more = total // 2, total - total // 2
        widths += [more, less] if kind == "same_lower" else [less, more]
    return widths


def _padded(x: Tensor, widths: list[int], value: float = 0.0) -> Tensor:
    from edgekit.converters.mil_ops.shape import pad

    return pad(x, widths, constant_val=value) if any(widths) else x


def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    strides: list[int] | None = None,
    pad_type: str = "valid",
    pad: list[int] | None = None,
    dilations: list[int] | None = None,
    groups: int = 1,
) -> Tensor:
    """Convolution over one to three spatial axes; ``weight`` is (out, in / groups, *kernel)."""
    from torch.nn import functional

    spatial = x.ndim - 2
    strides, dilations = strides or [1] * spatial, dilations or [1] * spatial
    spans = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilations, strict=True)]
    x = _padded(x, _widths(pad_type, pad, list(x.shape[2:]), spans, strides))
    run: Any = (functional.conv1d, functional.conv2d, functional.conv3d)[spatial - 1]
    result: Tensor = run(x, weight, bias, strides, 0, dilations, groups)
    return result


def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    pad: list[int] | None = None,
    output_shape: list[int] | None = None,
    pad_type: str = "valid",
    strides: list[int] | None = None,
    dilations: list[int] | None = None,
    groups: int = 1,
) -> Tensor:
    """Transposed convolution, cropped by ``pad``; ``weight`` is (in, out / groups, *kernel)."""
    from torch.nn import functional

    if pad_type not in ("valid", "custom"):
        raise EdgekitError(
            f"The Core ML evaluator cannot run conv_transpose with pad_type {pad_type!r}.",
            "It knows valid and custom.",
            "Run the package on macOS.",
        )
    spatial = x.ndim - 2
    strides, dilations = strides or [1] * spatial, dilations or [1] * spatial
    transposed: tuple[Any, ...] = (
        functional.conv_transpose1d,
        functional.conv_transpose2d,
        functional.conv_transpose3d,
    )
    full: Tensor = transposed[spatial - 1](x, weight, None, strides, 0, 0, groups, dilations)
    crop = pad or [0] * (2 * spatial)
    if output_shape is not None:
        sizes = zip(output_shape[2:], full.shape[2:], crop[::2], strict=True)
        crop = [width for want, have, before in sizes for width in (before, have - want - before)]
    full = _padded(full, [-width for width in crop])
    return full if bias is None else full + bias.reshape(-1, *[1] * spatial)


def avg_pool(
    x: Tensor,
    kernel_sizes: list[int],
    pad_type: str,
    strides: list[int] | None = None,
    pad: list[int] | None = None,
    exclude_padding_from_average: bool = False,
    ceil_mode: bool = False,
) -> Tensor:
    """The mean of each window, with or without its padded zeros."""
    import torch
    from torch.nn import functional

    run: Any = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)[x.ndim - 3]
    strides = strides or [1] * len(kernel_sizes)
    widths = _widths(pad_type, pad, list(x.shape[2:]), kernel_sizes, strides)
    result: Tensor
    if ceil_mode:  # MIL allows it with symmetric padding only, and defines it as PyTorch does
        exclude = exclude_padding_from_average
        result = run(x, kernel_sizes, strides, widths[::2], True, not exclude)
        return result
    result = run(_padded(x, widths), kernel_sizes, strides)
    if exclude_padding_from_average and any(widths):
        share = run(_padded(torch.ones_like(x), widths), kernel_sizes, strides)
        result = result / share
    return result


def max_pool(
    x: Tensor,
    kernel_sizes: list[int],
    pad_type: str,
    strides: list[int] | None = None,
    pad: list[int] | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    """The maximum of each window."""
    from torch.nn import functional

    run: Any = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)[x.ndim - 3]
    strides = strides or [1] * len(kernel_sizes)
    widths = _widths(pad_type, pad, list(x.shape[2:]), kernel_sizes, strides)
    x = x if ceil_mode else _padded(x, widths, float("-inf"))
    inside = widths[::2] if ceil_mode else 0
    result: Tensor = run(x, kernel_sizes, strides, inside, ceil_mode=ceil_mode)
    return result


def layer_norm(
    x: Tensor,
    axes: list[int] | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    """(x - mean) / sqrt(variance + epsilon) * gamma + beta over any axes."""
    import torch

    axes = list(range(x.ndim)) if axes is None else sorted(axis % x.ndim for axis in axes)
    shape = [size if axis in axes else 1 for axis, size in enumerate(x.shape)]
    centred = x - x.mean(axes, keepdim=True)
    result = centred * torch.rsqrt(centred.square().mean(axes, keepdim=True) + epsilon)
    result = result if gamma is None else result * gamma.reshape(shape)
    return result if beta is None else result + beta.reshape(shape)


def lstm(
    x: Tensor,
    initial_h: Tensor,
    initial_c: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    weight_ih_back: Tensor | None = None,
    weight_hh_back: Tensor | None = None,
    bias_back: Tensor | None = None,
    direction: str = "forward",
    output_sequence: bool = False,
    recurrent_activation: str = "sigmoid",
    cell_activation: str = "tanh",
    activation: str = "tanh",
) -> list[Tensor]:
    """LSTM over (sequence, batch, features); gates are ordered input, forget, output, cell."""
    import torch

    if (recurrent_activation, cell_activation, activation) != ("sigmoid", "tanh", "tanh"):
        raise EdgekitError(
            "The Core ML evaluator runs an lstm only with sigmoid gates and tanh cells.",
            f"This one has {recurrent_activation}, {cell_activation} and {activation}.",
            "Run the package on macOS.",
        )
    runs = [(weight_ih, weight_hh, bias, direction == "reverse")]
    if direction == "bidirectional":
        runs.append((weight_ih_back, weight_hh_back, bias_back, True))  # type: ignore[arg-type]
    starts = zip(initial_h.chunk(len(runs), 1), initial_c.chunk(len(runs), 1), strict=True)
    results = [_lstm_run(x, *weights, *start) for weights, start in zip(runs, starts, strict=True)]
    steps, h, c = (torch.cat(parts, -1) for parts in zip(*results, strict=True))
    return [steps if output_sequence else h[None], h, c]


def _lstm_run(
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None,
    backward: bool,
    h: Tensor,
    c: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """One direction; returns every step's state in the order of ``x``, and the last two."""
    import torch

    gates = x @ weight_ih.mT + (0.0 if bias is None else bias)
    steps = []
    for gate in gates.flip(0) if backward else gates:
        into, forget, out, cell = (gate + h @ weight_hh.mT).chunk(4, -1)
        c = forget.sigmoid() * c + into.sigmoid() * cell.tanh()
        h = out.sigmoid() * c.tanh()
        steps.append(h)
    sequence = torch.stack(steps)
    return (sequence.flip(0) if backward else sequence), h, c
