"""Attention and an MLP side by side, with one layer behind both: heads, and hidden channels.

As in the single-stream blocks of Flux: y = W [attention(x), act(V x)].
"""

from __future__ import annotations

from torch import nn

from edgekit.compress.pruning import groups
from edgekit.compress.pruning.groups import Block, Count, Group


def find(path: str, module: nn.Module) -> Block | None:
    """The widths of a block that holds them as diffusers' Flux does."""
    layers = module._modules
    attention, hidden, out = (layers.get(n) for n in ("attn", "proj_mlp", "proj_out"))
    if attention is None or not isinstance(hidden, nn.Linear) or not isinstance(out, nn.Linear):
        return None
    qkv = [attention._modules.get(name) for name in ("to_q", "to_k", "to_v")]
    heads = vars(attention).get("heads")
    if any(not isinstance(layer, nn.Linear) for layer in qkv) or not isinstance(heads, int):
        return None
    inner, width = out.in_features - hidden.out_features, hidden.out_features
    if attention._modules.get("to_out") is not None or inner % heads:
        return None
    if any(layer.out_features != inner for layer in qkv):  # type: ignore[union-attr]
        return None
    places = groups.grid(heads, inner // heads, 0)
    rows = [each for layer in qkv for each in groups.rows(layer, places)]  # type: ignore[arg-type]
    counts = [Count(attention, "heads")]
    if vars(attention).get("inner_dim") == inner:
        counts.append(Count(attention, "inner_dim", inner // heads))
    found = Group(
        f"{path}.attn", "heads", (*rows, *groups.columns(out, places)), tuple(counts), whole=True
    )
    columns = groups.columns(out, groups.grid(width, 1, inner))
    slices = (*groups.rows(hidden, groups.grid(width, 1, 0)), *columns)
    counts = [Count(module, name) for name in ("mlp_hidden_dim",) if name in vars(module)]
    mlp = Group(f"{path}.proj_mlp", "mlp", slices, tuple(counts))
    # What the tokens pass besides, such as modulation, is inside too: their width stays.
    return Block(path, module, (found, mlp), (), ())
