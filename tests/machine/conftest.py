"""Stand-ins for machines: trees of /sys, /proc and /etc, and a compiled NVML."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from edgekit.converters.kit import nvml

HERE = Path(__file__).parent
CPUS = "sys/devices/system/cpu"
CHIP = "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1"
POWERCAP = "sys/class/powercap"

#: A Jetson Orin Nano 8 GB with JetPack 6, not locked by jetson_clocks.
ORIN = {
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic",
    "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=15W >\nCPU_ONLINE CORE_0 1\n"
    "< POWER_MODEL ID=1 NAME=25W >\n< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n< PM_CONFIG DEFAULT=1 >",
    "var/lib/nvpmodel/status": "pmode:0002",
    "proc/device-tree/model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit\0",
    "proc/meminfo": "MemTotal:        7802760 kB\nMemFree:         1000000 kB",
    "proc/stat": "cpu  1000 0 1000 8000 0 0 0 0 0 0\ncpu0 500 0 500 4000 0 0 0 0 0 0",
    "proc/self/stat": "1 (a name) here) R 1 1 1 0 -1 0 0 0 0 0 100 50 0 0 20 0",
    f"{CPUS}/cpufreq/policy0/scaling_cur_freq": "729600",
    f"{CPUS}/cpufreq/policy0/scaling_min_freq": "729600",
    f"{CPUS}/cpufreq/policy0/scaling_max_freq": "1728000",
    f"{CPUS}/cpufreq/policy0/scaling_governor": "schedutil",
    f"{CPUS}/cpufreq/policy4/scaling_cur_freq": "1510400",
    f"{CPUS}/cpufreq/policy4/scaling_min_freq": "729600",
    f"{CPUS}/cpufreq/policy4/scaling_max_freq": "1728000",
    f"{CPUS}/cpufreq/policy4/scaling_governor": "schedutil",
    f"{CPUS}/cpu0/cpufreq/scaling_governor": "schedutil",
    f"{CPUS}/cpu4/cpufreq/scaling_governor": "schedutil",
    "sys/class/devfreq/17000000.gpu/cur_freq": "612000000",
    "sys/class/devfreq/17000000.gpu/min_freq": "306000000",
    "sys/class/devfreq/17000000.gpu/max_freq": "1020000000",
    "sys/class/devfreq/15340000.vic/cur_freq": "115200000",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
    "sys/class/thermal/thermal_zone0/temp": "51718",
    "sys/class/thermal/thermal_zone0/trip_point_0_type": "critical",
    "sys/class/thermal/thermal_zone0/trip_point_0_temp": "104500",
    "sys/class/thermal/thermal_zone0/trip_point_1_type": "passive",
    "sys/class/thermal/thermal_zone0/trip_point_1_temp": "99000",
    "sys/class/thermal/thermal_zone0/trip_point_2_type": "active",
    "sys/class/thermal/thermal_zone0/trip_point_2_temp": "45000",
    "sys/class/thermal/thermal_zone2/type": "cv0-thermal",
    "sys/class/thermal/thermal_zone2/temp": "-256000",
    "sys/class/thermal/cooling_device0/type": "pwm-fan",
    "sys/class/thermal/cooling_device0/cur_state": "3",
    "sys/class/thermal/cooling_device1/type": "gpu-throttle-alert",
    "sys/class/thermal/cooling_device1/cur_state": "0",
    "sys/class/hwmon/hwmon3/name": "soctherm_oc",
    "sys/class/hwmon/hwmon3/oc1_event_cnt": "0",
    "sys/class/hwmon/hwmon3/oc3_event_cnt": "37",
    f"{CHIP}/in1_label": "VDD_IN",
    f"{CHIP}/in1_input": "5000",
    f"{CHIP}/curr1_input": "2000",
    f"{CHIP}/in2_label": "VDD_CPU_GPU_CV",
    f"{CHIP}/in2_input": "5000",
    f"{CHIP}/curr2_input": "800",
    f"{CHIP}/in3_label": "VDD_SOC",
    f"{CHIP}/in3_input": "5000",
    f"{CHIP}/curr3_input": "400",
    f"{CHIP}/in7_label": "sum of shunt voltages",
    f"{CHIP}/in7_input": "64",
}

#: A desktop with an Intel processor of one package, locked, whose counters root reads.
DESKTOP = {
    "proc/cpuinfo": "processor\t: 0\nmodel name\t: A Processor @ 3.00GHz\nflags\t: fpu",
    f"{CPUS}/cpufreq/policy0/scaling_cur_freq": "3000000",
    f"{CPUS}/cpufreq/policy0/scaling_min_freq": "800000",
    f"{CPUS}/cpufreq/policy0/scaling_max_freq": "3000000",
    f"{CPUS}/cpufreq/policy0/scaling_governor": "performance",
    f"{CPUS}/intel_pstate/no_turbo": "1",
    f"{CPUS}/cpu0/cpufreq/scaling_governor": "performance",
    f"{CPUS}/cpu0/thermal_throttle/core_throttle_count": "5",
    "sys/class/thermal/thermal_zone0/type": "x86_pkg_temp",
    "sys/class/thermal/thermal_zone0/temp": "47000",
    "sys/class/thermal/thermal_zone0/trip_point_0_type": "passive",
    "sys/class/thermal/thermal_zone0/trip_point_0_temp": "0",
    f"{POWERCAP}/intel-rapl:0/name": "package-0",
    f"{POWERCAP}/intel-rapl:0/energy_uj": "262143000000",
    f"{POWERCAP}/intel-rapl:0/max_energy_range_uj": "262143328850",
    f"{POWERCAP}/intel-rapl:0:0/name": "core",
    f"{POWERCAP}/intel-rapl:0:0/energy_uj": "1000000",
    f"{POWERCAP}/intel-rapl:0:0/max_energy_range_uj": "262143328850",
    f"{POWERCAP}/intel-rapl:0:1/name": "dram",
    f"{POWERCAP}/intel-rapl:0:1/energy_uj": "2000000",
    f"{POWERCAP}/intel-rapl:0:1/max_energy_range_uj": "65712999613",
    f"{POWERCAP}/intel-rapl-mmio:0/name": "package-0",
    f"{POWERCAP}/intel-rapl-mmio:0/energy_uj": "7",
}


class Tree:
    """Files of a machine below a folder."""

    def __init__(self, root: Path) -> None:
        self.path, self.root = root, str(root)

    def write(self, files: dict[str, str]) -> None:
        for name, content in files.items():
            file = self.path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content + "\n")

    def remove(self, pattern: str) -> None:
        for file in self.path.glob(pattern):
            file.unlink()


@pytest.fixture
def bare(tmp_path):
    """A machine that says nothing."""
    return Tree(tmp_path / "bare")


@pytest.fixture
def orin(tmp_path):
    """A Jetson Orin Nano."""
    tree = Tree(tmp_path / "orin")
    tree.write(ORIN)
    return tree


@pytest.fixture
def desktop(tmp_path):
    """An x86 desktop with RAPL."""
    tree = Tree(tmp_path / "desktop")
    tree.write(DESKTOP)
    return tree


def compiled(source: str, library: Path) -> Path:
    """A shared library of a C file beside this one."""
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    command = ["gcc", "-shared", "-fPIC", "-o", library, HERE / source]
    subprocess.run([str(part) for part in command], check=True)
    return library


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory):
    """The stand-in for NVML."""
    return compiled("fake_nvml.c", tmp_path_factory.mktemp("nvml") / "libnvidia-ml.so.1")


@pytest.fixture(scope="session")
def cuda_library(tmp_path_factory):
    """The stand-in for CUDA's driver."""
    return compiled("fake_cuda.c", tmp_path_factory.mktemp("cuda") / "libcuda.so.1")


class Gpu:
    """What the stand-in says; changed by ``says``."""

    def __init__(self, file: Path) -> None:
        self.file, self.facts = file, {"count": 1, "driver": "570.86.15", "0.name": "RTX 4090"}
        self.says()

    def says(self, **facts: object) -> None:
        """Facts of the first GPU; None takes one away."""
        self.tell({f"0.{name}": value for name, value in facts.items()})

    def tell(self, facts: dict[str, object]) -> None:
        self.facts.update(facts)
        lines = [f"{name} {value}" for name, value in self.facts.items() if value is not None]
        part = self.file.with_suffix(".part")
        part.write_text("\n".join(lines) + "\n")
        part.replace(self.file)  # a sampling thread may be reading it


@pytest.fixture
def gpu(tmp_path, nvml_library, monkeypatch):
    """A machine with NVML and one GPU."""
    made = Gpu(tmp_path / "nvml.txt")
    monkeypatch.setattr(nvml, "LIBRARY", str(nvml_library))
    monkeypatch.setenv("FAKE_NVML", str(made.file))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return made
