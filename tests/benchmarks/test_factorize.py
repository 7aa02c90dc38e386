"""The report of benchmarks/factorize.py."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from edgekit.compress.modules.low_rank import LowRank
from edgekit.model import Model

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import factorize


def row(way, top1, **others):
    figures = {"bytes": 0.5, "file": 0.5, "top1": top1, "ms": 1.0, "time": 0.75}
    return {"ratio": 0.5, "way": way, **figures, "weights": 0.1, "outputs": 0.01, **others}


def test_the_table_has_means_and_extremes():
    cells = [
        {"seed": 0, "rows": [row("svd", 0.9), row("dictionary", 0.5)]},
        {"seed": 1, "rows": [row("svd", 1.0), {"ratio": 0.5, "way": "dictionary", "failed": "no"}]},
    ]
    lines = factorize.table(cells).splitlines()
    assert len(lines) == 4
    assert "95.00 (90.00 to 100.00)" in lines[2]
    assert "| dictionary | no |" in lines[3]
    text = factorize.section({"environment": {"cpu": "a CPU"}, "cells": cells})
    assert "seeds 0, 1" in text
    assert "python benchmarks/factorize.py" in text


def test_the_error_of_weights_is_that_of_all_linears():
    whole = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 4, bias=False))
    with torch.no_grad():
        for layer in (whole[0], whole[2]):
            layer.weight.copy_(torch.diag(torch.tensor([2.0, 1.0, 0.0, 0.0])))
    thin = LowRank(4, 4, 1, False)
    with torch.no_grad():
        thin.down.weight.copy_(torch.tensor([[2.0, 0.0, 0.0, 0.0]]))
        thin.up.weight.copy_(torch.tensor([[1.0], [0.0], [0.0], [0.0]]))
    after = nn.Sequential(thin, nn.ReLU(), whole[2])
    first, second = (Model(each, (), (), "mine") for each in (whole, after))
    assert factorize.weight_error(first, second) == pytest.approx(1 / 10)
