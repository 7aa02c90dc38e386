"""Where the tokens of an image are."""

from __future__ import annotations

import torch


def positions(height: int, width: int, device: torch.device) -> torch.Tensor:
    """(height x width, 3): 0, row and column of each token, row by row."""
    rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
    grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1).reshape(-1, 2)
    return torch.nn.functional.pad(grid, (1, 0)).float()
