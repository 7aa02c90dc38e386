"""Parallel: one process, or as many as ``torchrun`` started.

They share each batch and average their gradients (torch's DistributedDataParallel), so that many
train the model that one would.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Place:
    """Where this process stands.

    Attributes:
        rank, world: its number, and how many there are.
        device: that it computes on.
    """

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether it is the one that writes files."""
        return self.rank == 0


def find_place() -> Place:
    """This process's place; joins the others where there are some."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    cuda = torch.cuda.is_available()
    local = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if world == 1 and not dist.is_initialized():
        return Place(0, 1, device)
    if cuda:
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if cuda else "gloo")
        atexit.register(_leave)
    return Place(dist.get_rank(), dist.get_world_size(), device)


def share(indices: Sequence[int], place: Place) -> Sequence[int]:
    """This process's part of a batch; parts differ by one sample at most."""
    cut = [len(indices) * rank // place.world for rank in (place.rank, place.rank + 1)]
    return indices[cut[0] : cut[1]]


def joined(module: nn.Module, place: Place) -> nn.Module:
    """The module, with gradients averaged over all processes."""
    if place.world == 1:
        return module
    # Some weights have no part in some losses, such as a head in a layer-wise phase.
    return DistributedDataParallel(module, broadcast_buffers=False, find_unused_parameters=True)


def alone(module: nn.Module) -> AbstractContextManager[None]:
    """Gradients stay with their process: those of a batch's last part bring them together."""
    if not isinstance(module, DistributedDataParallel):
        return nullcontext()
    held: AbstractContextManager[None] = module.no_sync()
    return held


def mean(value: Tensor, place: Place) -> Tensor:
    """Of all processes' values."""
    if place.world > 1:
        dist.all_reduce(value)
    return value / place.world


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
