"""Attention: heads, with the rows of Q, K and V and the columns after them.

With grouped queries an item is a head of K and V with all the query heads that read it, so that
what remains has the same grouping. Joint attention over two streams has one set of heads, which
both streams' projections carry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain

import torch
from torch import nn

from edgekit.compress.pruning import groups
from edgekit.compress.pruning.groups import Block, Count, Group, Port, Slice

#: One linear layer for Q, K and V, and the one behind.
FUSED = (("qkv", "proj"), ("Wqkv", "out_proj"), ("qkv_proj", "o_proj"))
#: One each, and the one behind.
APART = (
    ("q_proj", "k_proj", "v_proj", "o_proj"),
    ("q_proj", "k_proj", "v_proj", "out_proj"),
    ("q_proj", "k_proj", "v_proj", "proj"),
    ("wq", "wk", "wv", "proj"),
    ("to_q", "to_k", "to_v", "to_out.0"),
    ("to_q", "to_k", "to_v", "to_out"),
)
#: The same of a second stream in joint attention; its output may be missing.
SECOND = (
    ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    ("to_q_t", "to_k_t", "to_v_t", "to_out_t"),
)
HEADS = ("num_heads", "heads", "n_heads", "num_attention_heads")
KEY_HEADS = ("num_kv_heads", "num_key_value_heads", "kv_heads")
WIDTHS = ("attn_dim", "attention_dim", "all_head_size", "inner_dim", "dim_out", "kv_dim")
KEY_WIDTHS = ("kv_dim", "inner_kv_dim")
#: Parameters of a number a head, and their axis.
PER_HEAD = {"relative_position_bias_table": 1, "logit_scale": 0, "sinks": 0}
#: Normalisations, which may be over all query heads together, or all heads of K.
QUERY_NORMS = ("q_norm", "norm_q", "norm_added_q", "q_rms_norm", "q_rms_norm_t", "norm")
KEY_NORMS = ("k_norm", "norm_k", "norm_added_k", "k_rms_norm", "k_rms_norm_t")
#: Parameters of a number for each channel of the heads.
PER_CHANNEL = ("q_bias", "k_bias", "v_bias")


def find(path: str, module: nn.Module) -> Block | None:
    """The heads of a module that is attention of a known form."""
    forms: Iterator[tuple[tuple[str, ...], Callable[..., Block | None]]] = chain(
        ((names, _fused) for names in FUSED), ((names, _apart) for names in APART)
    )
    for names, found in forms:
        layers = [_layer(module, name) for name in names]
        if None not in layers:
            return found(path, module, *layers)
    return None


def _fused(path: str, module: nn.Module, qkv: nn.Linear, out: nn.Linear) -> Block | None:
    heads, inner = _heads(module), out.in_features
    if heads is None or inner % heads or qkv.out_features != 3 * inner:
        return None
    each = inner // heads
    slices = groups.rows(qkv, groups.grid(heads, each, 0, inner, 2 * inner))
    slices += groups.columns(out, groups.grid(heads, each, 0))
    return _block(path, module, slices, (heads, 1, each), [qkv], [out])


def _apart(
    path: str, module: nn.Module, q: nn.Linear, k: nn.Linear, v: nn.Linear, out: nn.Linear
) -> Block | None:
    heads, inner = _heads(module, q), q.out_features
    if heads is None or inner % heads or k.out_features != v.out_features:
        return None
    each = inner // heads
    if k.out_features % each or inner % k.out_features or out.in_features != inner:
        return None
    shared = inner // k.out_features
    queries, keys = (
        groups.grid(heads // shared, each * shared, 0),
        groups.grid(heads // shared, each, 0),
    )
    slices = groups.rows(q, queries) + groups.columns(out, queries)
    slices += groups.rows(k, keys) + groups.rows(v, keys)
    takes, gives = [q, k, v], [out]
    for names in SECOND:
        for layer, name in zip((q, k, v), names[:3], strict=True):
            second = _layer(module, name)
            if second is not None:
                slices += groups.rows(second, queries if layer is q else keys)
                takes.append(second)
        second = _layer(module, names[3])
        if second is not None:
            slices += groups.columns(second, queries)
            gives.append(second)
    return _block(path, module, slices, (heads // shared, shared, each), takes, gives)


def _block(
    path: str,
    module: nn.Module,
    slices: list[Slice],
    sizes: tuple[int, int, int],
    takes: list[nn.Linear],
    gives: list[nn.Linear],
) -> Block:
    """The block of a group of heads.

    Args:
        sizes: heads of K, query heads to each, channels of a head.
    """
    items, shared, each = sizes
    whole = each * shared
    separate = True
    places = groups.grid(items, whole, 0)
    for name, axis in PER_HEAD.items():
        held = getattr(module, name, None)
        if isinstance(held, torch.Tensor) and held.shape[axis] == items * shared:
            slices.append(Slice(Port(module, name, axis), groups.grid(items, shared, 0)))
    for name in PER_CHANNEL:
        if isinstance(getattr(module, name, None), torch.Tensor):
            slices.append(Slice(Port(module, name), places))
    gate = module._modules.get("gate")
    if isinstance(gate, nn.Linear) and gate.out_features == items * whole:
        slices += groups.rows(gate, places)
        takes = [*takes, gate]
    for names, run in ((QUERY_NORMS, whole), (KEY_NORMS, each)):
        for norm in (module._modules.get(name) for name in names):
            weight = getattr(norm, "weight", None)
            if norm is not None and weight is not None and len(weight) == items * run != each:
                slices += groups.rows(norm, groups.grid(items, run, 0))
                separate = False
    counts = tuple(_counts(module, items, shared, each))
    heads = Group(path, "heads", tuple(slices), counts, whole=True, separate=separate)
    return Block(path, module, (heads,), groups.inputs(*takes), groups.outputs(*gives))


def _counts(module: nn.Module, items: int, shared: int, each: int) -> Iterator[Count]:
    """Attributes that hold how many heads or channels there are."""
    found = vars(module)
    for names, size, fall in (
        (HEADS, items * shared, shared),
        (KEY_HEADS, items, 1),
        (WIDTHS, items * shared * each, shared * each),
        (KEY_WIDTHS, items * each, each),
    ):
        seen = set()
        for name in names:
            if name in found and found[name] == size and name not in seen:
                seen.add(name)
                yield Count(module, name, fall)


def _heads(module: nn.Module, q: nn.Linear | None = None) -> int | None:
    """How many query heads; from the width of one where it is not said."""
    for name in HEADS:
        if isinstance(vars(module).get(name), int):
            return int(vars(module)[name])
    each = vars(module).get("head_dim")
    return q.out_features // each if q is not None and isinstance(each, int) else None


def _layer(module: nn.Module, name: str) -> nn.Linear | None:
    for part in name.split("."):
        children = module._modules
        if children.get(part) is None:
            return None
        module = children[part]  # type: ignore[assignment]
    return module if isinstance(module, nn.Linear) else None
