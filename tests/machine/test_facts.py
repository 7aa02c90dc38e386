"""Facts: what the machine is, in a bundle's environment and in a kit's result."""

from __future__ import annotations

import json
import os

from edgekit import machine
from edgekit.converters.kit import device


def test_the_environment_of_this_machine_is_json():
    found = json.loads(json.dumps(machine.environment(), allow_nan=False))
    assert found["cores"] == os.cpu_count()
    assert found["versions"]["numpy"]
    assert found["cpu"]
    assert found["memory_mb"] > 0


def test_the_environment_of_a_jetson(orin):
    found = machine.environment(orin.root)
    assert found["device"] == "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit"
    assert (found["power_mode"], found["governor"]) == ("MAXN_SUPER", "schedutil")
    assert found["clocks_mhz"]["gpu"] == {"now": 612.0, "limit": 1020.0, "locked": False}
    assert found["temperature_c"] == {"cpu-thermal": 51.718}
    assert found["memory_mb"] == 7619.9


def test_the_environment_of_a_gpu(desktop, gpu):
    gpu.says(capability="8.9")
    found = machine.environment(desktop.root)
    assert found["cpu"] == "A Processor @ 3.00GHz"
    assert (found["driver"], found["power_mode"]) == ("570.86.15", None)
    assert found["gpu"] == {"name": "RTX 4090", "compute_capability": "8.9"}


def test_what_is_not_there_is_none(bare):
    found = machine.environment(bare.root)
    unknown = ("device", "driver", "gpu", "power_mode", "memory_mb")
    assert [found[name] for name in unknown] == [None] * 5
    assert found["governor"] == "unknown"


def test_a_device_says_what_it_is(orin):
    found = device.device_facts(orin.root)
    assert found["l4t"] == "36.4.3"
    assert found["power_mode"] == "MAXN_SUPER"
    assert found["power_modes"] == ["15W", "25W", "MAXN_SUPER"]
    assert (found["driver"], found["gpu"]) == (None, None)


def test_a_driver_without_nvml_is_still_named(bare):
    line = "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  540.4.0  Release Build"
    bare.write({"proc/driver/nvidia/version": line})
    assert device.gpu_facts(bare.root) == {"driver": "540.4.0", "gpu": None}


def test_a_mode_that_is_not_in_the_list_is_asked_of_nvpmodel(orin, tmp_path, monkeypatch):
    orin.write({"var/lib/nvpmodel/status": "pmode:0009"})
    assert device.power_mode(orin.root) is None
    command = tmp_path / "nvpmodel"
    command.write_text("#!/bin/sh\necho 'NV Power Mode: 40W'\necho 3\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert device.power_mode() == "40W"
