"""Checkpoint: all that training needs to go on, in one file that holds no code."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from edgekit import files
from edgekit.progress import say

if TYPE_CHECKING:
    from torch import nn

NAME = "distill.pt"


def save(folder: Path, state: dict[str, Any]) -> None:
    """Write it whole, or leave the last one."""
    with files.atomic(folder / NAME) as room:
        torch.save(state, room)


def load(folder: Path | None, key: str) -> dict[str, Any] | None:
    """What was saved for this very request, or None."""
    if folder is None or not (folder / NAME).exists():
        return None
    path = folder / NAME
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        fits = state["key"] == key
    except Exception as error:  # noqa: BLE001 - torch raises many kinds for a damaged file
        say(f"{path} cannot be read ({type(error).__name__}); starting anew.")
        return None
    if not fits:
        say(f"{path} is of another distillation; starting anew.")
        return None
    return state


def digest(module: nn.Module) -> str:
    """Of a module's names and values."""
    total = hashlib.sha256()
    for name, value in module.state_dict().items():
        if isinstance(value, torch.Tensor):
            total.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
            total.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()
