"""Dense x sparse: the columns of a weight's blocks as sparse combinations of a few dense ones.

R. Chand et al., "DSFormer: Effective Compression of Text-Transformers by Dense-Sparse Weight
Factorization", 2023. Its straight-through factoriser is used on each layer's own error: with Z
dense and top_s keeping the s largest of each code,

    min over D, Z of  tr(E H E^T),   E = W - blocks of D top_s(Z)^T,

by gradient descent in which top_s passes gradients on as if it were not there, so that a place
that is not used now may come back. In the end D is the best for the codes, in closed form.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgekit import files, interrupt
from edgekit.compress.factors import Choice, code_bytes, relative_error
from edgekit.compress.modules.dictionary import Dictionary, make

#: Of the first step, as a share of what is learned; it falls to 0 as a cosine.
_RATE = 0.03
#: Values a code whose errors are computed; those between are read off a line.
_COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96)


@dataclass(frozen=True)
class DictionaryFit:
    """A linear that can become a dictionary and codes of any number of values.

    Attributes:
        layer: the linear.
        gram: H, (in, in), in float64.
        block: rows of a block.
        start: D before any step, (block, atoms).
        codes: all values of each code before any step, (in * blocks, atoms).
        errors: about what s = 1, 2, ... values a code leave before any step, (atoms,).
    """

    layer: nn.Linear
    gram: Tensor
    block: int
    start: Tensor
    codes: Tensor
    errors: np.ndarray[Any, Any]

    def choices(self) -> list[Choice]:
        """The numbers of values that take fewer bytes than the layer, and the layer as it is."""
        element = self.layer.weight.element_size()
        whole = self.layer.weight.numel() * element
        codes, atoms = self.codes.shape
        own = self.start.numel() * element
        found = [
            Choice(s, own + code_bytes(codes, s, atoms, element), float(self.errors[s - 1]))
            for s in range(1, atoms + 1)
        ]
        return [*(choice for choice in found if choice.bytes < whole), Choice(0, whole, 0.0)]

    def made(self, nonzeros: int, steps: int) -> Dictionary:
        """The layer with so many values a code, learned in ``steps`` steps."""
        layer, atoms = self.layer, self.codes.shape[1]
        bias = layer.bias is not None
        shape = (layer.in_features, layer.out_features, self.block, atoms, nonzeros, bias)
        out = Dictionary(*shape)
        dictionary, codes = self._learned(nonzeros, steps)
        out.assign(dictionary, codes)
        if out.bias is not None:
            out.bias.data.copy_(layer.bias)
        return out.to(layer.weight)

    def _learned(self, nonzeros: int, steps: int) -> tuple[Tensor, Tensor]:
        """The best (D, codes) that were met."""
        weight = self.layer.weight.detach().float()
        gram = (self.gram / self.gram.diagonal().mean()).float()
        total = ((weight @ gram) * weight).sum()
        dictionary = self.start.float().requires_grad_()
        latent = self.codes.float().clone().requires_grad_()
        groups = [
            {"params": [each], "lr": _RATE * float(each.detach().square().mean().sqrt())}
            for each in (dictionary, latent)
        ]
        optimizer = torch.optim.Adam(groups, betas=(0.9, 0.95))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
        best = (torch.inf, dictionary.detach().clone(), top(latent.detach(), nonzeros))
        for _ in range(steps):
            interrupt.check()
            kept = top(latent.detach(), nonzeros)
            codes = latent + (kept - latent).detach()
            error = weight - joined(dictionary, codes, weight.shape)
            loss = ((error @ gram) * error).sum() / total
            if float(loss.detach()) < best[0]:
                best = (float(loss.detach()), dictionary.detach().clone(), kept)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        return self._settled(best[1], best[2])

    def _settled(self, dictionary: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """D as the least squares for these codes, if that is better."""
        weight = self.layer.weight.detach().double()
        settled = best_dictionary(weight, codes.double(), self.gram, self.block)
        errors = [
            relative_error(weight, joined(each, codes.double(), weight.shape), self.gram)
            for each in (dictionary.double(), settled)
        ]
        return (settled if errors[1] < errors[0] else dictionary), codes


def fit(layer: nn.Linear, gram: Tensor, block: int, atoms: int) -> DictionaryFit:
    """Where learning starts: D holds the main directions of the blocks' outputs.

    Args:
        gram: H, positive definite, (in, in), in float64.
        block: rows of a block at most; the largest such divisor of the outputs is taken.
        atoms: columns of D, at most as many as a block has rows.
    """
    weight, outputs = layer.weight.detach().double(), layer.out_features
    block = next(size for size in range(min(block, outputs), 0, -1) if outputs % size == 0)
    columns = columns_of(weight, block)
    _, directions = torch.linalg.eigh(columns.T @ _mixed(columns, gram))
    start = directions.flip(1)[:, : min(atoms, block)]
    codes = columns @ start
    counts = [count for count in _COUNTS if count < codes.shape[1]] + [codes.shape[1]]
    errors = [
        relative_error(weight, joined(start, top(codes, count), weight.shape), gram)
        for count in counts
    ]
    between = np.interp(np.arange(1, codes.shape[1] + 1), counts, np.log(np.maximum(errors, 1e-30)))
    kept = layer.weight.dtype
    return DictionaryFit(layer, gram, block, start.to(kept), codes.to(kept), np.exp(between))


def _mixed(rows: Tensor, gram: Tensor) -> Tensor:
    """H times columns or codes (in * blocks, n), which are by input."""
    return (gram @ rows.reshape(len(gram), -1)).reshape(rows.shape)


def columns_of(weight: Tensor, block: int) -> Tensor:
    """The columns of all blocks of a weight (out, in), (in * blocks, block)."""
    return weight.T.reshape(-1, block)


def joined(dictionary: Tensor, codes: Tensor, shape: torch.Size) -> Tensor:
    """The weight (out, in) that D (block, atoms) and the codes stand for."""
    return (codes @ dictionary.T).reshape(shape[1], shape[0]).T


def top(codes: Tensor, count: int) -> Tensor:
    """The largest ``count`` values of each code; zero elsewhere."""
    places = codes.abs().topk(count, 1).indices
    return torch.zeros_like(codes).scatter(1, places, codes.gather(1, places))


def best_dictionary(weight: Tensor, codes: Tensor, gram: Tensor, block: int) -> Tensor:
    """D of the least tr(E H E^T): (sum_g W_g H C_g^T) (sum_g C_g H C_g^T)^-1."""
    mixed = _mixed(codes, gram)
    normal = codes.T @ mixed
    aimed = columns_of(weight, block).T @ mixed
    ridge = 1e-9 * normal.diagonal().mean() + 1e-30
    eye = torch.eye(len(normal), dtype=normal.dtype)
    found: Tensor = torch.linalg.solve(normal + ridge * eye, aimed.T).T
    return found


def kept(path: Path, learn: Callable[[], Dictionary]) -> Dictionary:
    """What was learned and kept at ``path`` before, or what is learned now."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    if path.exists():
        with safe_open(path, "pt") as file:
            made = make(**json.loads(file.metadata()["arguments"]))
        made.load_state_dict(load_file(path))
        return made
    made = learn()
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.atomic(path) as room:
        save_file(made.state_dict(), room, {"arguments": json.dumps(made.arguments())})
    return made
