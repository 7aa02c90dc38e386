"""NVML: what a GPU says of itself, and which GPU is asked."""

from __future__ import annotations

import pytest

from edgekit.converters.kit import nvml


@pytest.fixture
def opened(gpu):
    gpu.says(capability="8.9", uuid="GPU-aaaa", celsius=61, celsius_limit=92)
    gpu.says(clock=2520, clock_limit=3120, memory_clock=10501, memory_clock_limit=10501)
    found = nvml.open_nvml()
    yield found
    found.close()


def test_a_gpu_says_what_it_is(opened):
    assert (opened.driver, opened.name, opened.capability) == ("570.86.15", "RTX 4090", "8.9")
    assert [(c.name, c.mhz(), c.limit, c.locked) for c in opened.clocks()] == [
        ("GPU", 2520, 3120, None),
        ("GPU memory", 10501, 10501, None),
    ]
    zone = opened.zone()
    assert (zone.celsius(), zone.limit) == (61, 92)


def test_what_is_not_supported_is_none(opened):
    assert (opened.joules(), opened.watts(), opened.used_bytes()) == (None, None, None)
    assert (opened.processes(), opened.others(), opened.throttled()) == (None, None, [])


@pytest.mark.parametrize(
    ("mask", "reasons"),
    [
        ("0x1", []),  # idle
        ("0x2", []),  # clocks that the user set
        ("0x4", ["GPU power limit"]),
        ("0x60", ["GPU temperature", "GPU temperature (hardware)"]),
        ("0x80", ["GPU power brake"]),
    ],
)
def test_reasons_for_a_clock_that_is_held_down(opened, gpu, mask, reasons):
    gpu.says(throttled=mask)
    assert opened.throttled() == reasons


def test_other_processes_are_those_beside_this_one(opened, gpu):
    gpu.says(others=70, own=5 * 2**20)  # more than the first list has room for
    assert opened.others() == 70
    gpu.says(own=None)  # another namespace of process ids: ours cannot be found
    assert opened.others() is None


def test_no_library_or_no_gpu_is_none(gpu, monkeypatch):
    gpu.tell({"count": 0})
    assert nvml.open_nvml() is None
    monkeypatch.setattr(nvml, "LIBRARY", "libmissing.so.1")
    assert nvml.open_nvml() is None


def test_the_library_is_let_go(gpu, nvml_library):
    import ctypes

    users = ctypes.c_int.in_dll(ctypes.CDLL(str(nvml_library)), "users")
    before = users.value
    nvml.open_nvml().close()
    gpu.tell({"count": 0})
    nvml.open_nvml()
    assert users.value == before


def test_the_gpu_is_the_one_that_cuda_sees(gpu, monkeypatch):
    gpu.tell({"count": 2, "1.name": "A second one", "1.uuid": "GPU-bbbb"})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-bbbb")
    found = nvml.open_nvml()
    assert (found.name, found.index) == ("A second one", 1)
    found.close()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert nvml.open_nvml() is None


def test_two_gpus_are_told_apart_by_cudas_address(gpu, cuda_library, monkeypatch):
    gpu.tell({"count": 2, "1.name": "A second one", "1.bus": "0000:65:00.0"})
    monkeypatch.setattr(nvml, "CUDA_LIBRARY", str(cuda_library))
    monkeypatch.setenv("FAKE_CUDA", "here")
    monkeypatch.setenv("FAKE_BUS", "0000:65:00.0")
    found = nvml.open_nvml()
    assert found.name == "A second one"
    found.close()
