"""Memory: the peak of a block, on the host and on the device."""

from __future__ import annotations

import time

import numpy as np
import pytest

from edgekit import machine
from edgekit.converters.kit import memory, nvml

MB = 2**20


@pytest.fixture(autouse=True)
def often(monkeypatch):
    """Sample so often that a test need not wait."""
    start = memory.Sampler
    monkeypatch.setattr(memory, "Sampler", lambda sample: start(sample, 0.01))


def test_the_hosts_peak_is_what_the_block_added():
    with machine.peak_memory() as found:
        np.ones(64 * MB // 8).sum()
    if found.added_mb is None:
        pytest.skip("this system does not tell its peak")
    assert 60 < found.added_mb < 90


def test_without_a_gpu_there_is_none(monkeypatch):
    monkeypatch.setattr(nvml, "LIBRARY", "libmissing.so.1")
    monkeypatch.setattr(nvml, "CUDA_LIBRARY", "libmissing.so.1")
    with machine.device_memory() as found:
        pass
    assert (found.peak_mb, found.added_mb, found.how) == (None, None, "no NVIDIA GPU")


def test_this_process_is_told_by_nvmls_list(gpu):
    gpu.says(used=900 * MB, others=1, own=300 * MB)
    with machine.device_memory() as found:
        gpu.says(used=2000 * MB, own=700 * MB)
        time.sleep(0.1)
        gpu.says(used=900 * MB, own=300 * MB)
    assert (found.peak_mb, found.added_mb) == (700.0, 400.0)
    assert found.how == "NVML's list of processes"


def test_a_process_that_comes_to_the_gpu_in_the_block_starts_at_none(gpu):
    gpu.says(used=0, others=0)
    with machine.device_memory() as found:
        gpu.says(own=350 * MB)
    assert (found.peak_mb, found.added_mb) == (350.0, 350.0)


@pytest.mark.parametrize("own", [None, 2**64 - 1])
def test_a_process_that_is_not_listed_or_hidden_is_a_difference(gpu, own):
    gpu.says(used=100 * MB, others=1, own=own)
    with machine.device_memory() as found:
        gpu.says(used=150 * MB)
    assert (found.peak_mb, found.added_mb) == (50.0, 50.0)
    assert "whole GPU" in found.how


def test_a_jetson_shares_its_memory_and_says_so(monkeypatch, tmp_path, cuda_library):
    free = tmp_path / "free"
    free.write_text(str(4000 * MB))
    monkeypatch.setattr(nvml, "LIBRARY", "libmissing.so.1")
    monkeypatch.setattr(nvml, "CUDA_LIBRARY", str(cuda_library))
    monkeypatch.setenv("FAKE_CUDA", str(free))
    with machine.device_memory() as found:
        part = tmp_path / "part"
        part.write_text(str(3900 * MB))
        part.replace(free)
        time.sleep(0.1)
    assert (found.peak_mb, found.added_mb) == (100.0, 100.0)
    assert "CPU and GPU share this memory" in found.how


def test_a_driver_without_a_gpu_is_none(monkeypatch, cuda_library):
    monkeypatch.setattr(nvml, "LIBRARY", "libmissing.so.1")
    monkeypatch.setattr(nvml, "CUDA_LIBRARY", str(cuda_library))
    monkeypatch.delenv("FAKE_CUDA", raising=False)
    with machine.device_memory() as found:
        pass
    assert found.peak_mb is None


def test_the_figure_is_there_after_an_error_too(gpu):
    gpu.says(used=0, others=0, own=8 * MB)
    with pytest.raises(ValueError, match="x"), machine.device_memory() as found:
        raise ValueError("x")
    assert found.peak_mb == 8.0
