"""benchmarks/watch_overhead.py: what it reports, on next to no rounds."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    yield __import__("watch_overhead")
    sys.modules.pop("watch_overhead", None)


def test_the_ratio_lies_in_its_interval_and_the_tree_is_watched(script, tmp_path):
    script.tree(tmp_path)
    with script.Watch(str(tmp_path)) as watch:
        pass
    seen = watch.report()
    assert {"cpu", "gpu"} == set(seen["clocks_mhz"])
    assert len(seen["temperature_c"]) == 12
    found = script.measure(str(tmp_path), rounds=3, seconds=0.02)
    ratio = found["ratio"]
    assert 0 < ratio["low"] <= ratio["median"] <= ratio["high"]
    assert found["sample_cpu_us"] > 0
