"""torch-pruning used alone: its own pruner to a budget, then training on the labels."""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any

import torch
import torch.nn.functional as F
import torch_pruning

from edgekit.compress.batches import batch, batches, outputs
from edgekit.compress.measure import operations
from edgekit.data import Dataset
from edgekit.errors import EdgekitError
from edgekit.model import Model
from edgekit.progress import track

#: Steps of the search for a ratio that meets the budget.
SEARCH = 12


def pruned(model: Model, budget: int, data: Dataset, exclude: tuple[str, ...]) -> Model:
    """The model at no more than ``budget`` multiply-accumulates, by one ratio for all layers.

    Global Taylor importance, as in torch-pruning's own example for vision transformers.

    Args:
        exclude: modules that stay: those that give the outputs.

    Raises:
        EdgekitError: torch-pruning cannot prune it; its reason is quoted.
    """
    low, high, best = 0.0, 0.95, None
    for _ in range(SEARCH):
        ratio = (low + high) / 2
        tried = _at(model, ratio, data, exclude)
        if operations(tried) <= budget:
            best, high = tried, ratio
        else:
            low = ratio
    if best is None:
        raise EdgekitError("torch-pruning does not reach the budget at a ratio of 0.95.")
    return best


def _at(model: Model, ratio: float, data: Dataset, exclude: tuple[str, ...]) -> Model:
    module = copy.deepcopy(model.module)
    example = {spec.name: torch.zeros(spec.concrete()) for spec in model.inputs}
    attentions = [m for m in module.modules() if hasattr(m, "qkv") and hasattr(m, "num_heads")]
    try:
        pruner = torch_pruning.pruner.BasePruner(
            module,
            example,
            importance=torch_pruning.importance.GroupTaylorImportance(),
            global_pruning=True,
            pruning_ratio=ratio,
            ignored_layers=[module.get_submodule(name) for name in exclude],
            num_heads={each.qkv: each.num_heads for each in attentions},
            round_to=8,
        )
        _gradients(module, data)
        pruner.step()
        for each in attentions:
            each.num_heads = pruner.num_heads[each.qkv]
            each.head_dim = each.qkv.out_features // (3 * each.num_heads)
            each.attn_dim = each.head_dim * each.num_heads
        with torch.no_grad():
            module(**example)
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise EdgekitError("torch-pruning alone cannot prune it.", reason[0]) from error
    return dataclasses.replace(model, module=module.eval())


def _gradients(module: torch.nn.Module, data: Dataset) -> None:
    module.zero_grad()
    for each in batches(data, 32):
        F.cross_entropy(outputs(module, each)[0], each.labels).backward()


def trained(model: Model, data: Dataset, options: Any, seed: int) -> Model:
    """The model after as many updates as a distillation with these options makes, on labels.

    Args:
        options: a ``Distill``: its steps, batch size and rate are used, and its schedule.
    """
    module = copy.deepcopy(model.module)
    optimizer = torch.optim.AdamW(module.parameters(), lr=options.rate, weight_decay=0.01)
    generator = torch.Generator().manual_seed(seed)
    warm = max(1, options.steps // 20)
    order = torch.randperm(len(data), generator=generator)
    place = 0
    for step in track(range(options.steps), "Training on labels"):
        if place + options.batch_size > len(order):
            order, place = torch.randperm(len(data), generator=generator), 0
        chosen = batch(data, order[place : place + options.batch_size].tolist())
        place += options.batch_size
        done = (step - warm) / max(1, options.steps - warm)
        share = (step + 1) / warm if step < warm else (1 + math.cos(math.pi * done)) / 2
        for group in optimizer.param_groups:
            group["lr"] = options.rate * share
        loss = F.cross_entropy(outputs(module, chosen)[0], chosen.labels)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
    return dataclasses.replace(model, module=module.eval())
