"""Energy: which meter there is, what its rails add up to, and that no figure is a guess."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from edgekit.converters.kit.energy import Energy
from edgekit.converters.kit.nvml import open_nvml

CHIP = "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1"
RAPL = "sys/class/powercap/intel-rapl:0"


def run(energy, *steps, seconds=2.0):
    """A report after samples at equal times, with a change of the machine before each."""
    energy.sample(0.0)
    for number, step in enumerate(steps, start=1):
        step()
        energy.sample(seconds * number / len(steps))
    energy.close()
    return energy.report(seconds)


def still():
    """No change."""


def test_a_jetsons_input_is_the_whole_module(orin):
    found = run(Energy(orin.root), still, still)
    assert found["meter"] == "INA rails in sysfs"
    assert (found["joules"], found["watts"]) == (20.0, 10.0)  # 5 V, 2 A, 2 s
    assert found["rails"] == {"VDD_IN": 20.0, "VDD_CPU_GPU_CV": 8.0, "VDD_SOC": 4.0}
    assert found["why"].startswith("VDD_IN is the whole module's input, integrated")


def test_power_is_integrated_between_samples(orin):
    def rise():
        orin.write({f"{CHIP}/curr1_input": "4000"})

    found = run(Energy(orin.root), still, rise)  # 10 W for a second, then up to 20 W
    assert found["joules"] == 25.0


def test_a_jetson_without_an_input_rail_adds_those_that_do_not_overlap(orin):
    second = "sys/bus/i2c/drivers/ina3221/1-0041/hwmon/hwmon2"
    orin.write(
        {
            f"{CHIP}/in1_label": "VDD_GPU_SOC",
            f"{CHIP}/in2_label": "VDD_CPU_CV",
            f"{CHIP}/in3_label": "VIN_SYS_5V0",
            f"{second}/in1_label": "NC",
            f"{second}/in1_input": "0",
            f"{second}/curr1_input": "0",
            f"{second}/in2_label": "VDDQ_VDD2_1V8AO",
            f"{second}/in2_input": "5000",
            f"{second}/curr2_input": "200",
        }
    )
    found = run(Energy(orin.root), still, still)
    assert found["joules"] == 20.0 + 8.0 + 4.0
    assert found["rails"]["VDDQ_VDD2_1V8AO"] == 2.0
    assert "VDDQ_VDD2_1V8AO is fed by VIN_SYS_5V0" in found["why"]


def test_thors_input_is_measured_by_another_chip(orin):
    chip = "sys/bus/i2c/drivers/ina238/2-0044/hwmon/hwmon4"
    orin.write({f"{CHIP}/in1_label": "VDD_GPU", f"{chip}/in1_label": "VIN"})
    orin.write({f"{chip}/power1_input": "30000000"})
    found = run(Energy(orin.root), still, still)
    assert (found["watts"], found["rails"]["VDD_GPU"]) == (30.0, 20.0)


def test_rapl_counts_over_its_wrap_around(desktop):
    def wrap():
        desktop.write({f"{RAPL}/energy_uj": "29671150"})  # 262143.328850 J, then 29.671150 more

    def go_on():
        desktop.write({f"{RAPL}:1/energy_uj": "5000000"})

    found = run(Energy(desktop.root), wrap, go_on)
    assert found["meter"] == "RAPL"
    assert found["rails"]["package-0"] == pytest.approx(30.0, abs=1e-3)
    assert found["rails"]["package-0 dram"] == pytest.approx(3.0)
    assert found["rails"]["package-0 core"] == 0.0
    assert found["joules"] == pytest.approx(33.0, abs=1e-3)  # cores are within the package
    assert found["why"].startswith("package-0 + package-0 dram")


def test_a_counter_that_falls_without_a_known_range_measures_nothing(desktop):
    desktop.remove("sys/class/powercap/*/max_energy_range_uj")
    found = run(Energy(desktop.root), lambda: desktop.write({f"{RAPL}/energy_uj": "5"}))
    assert (found["meter"], found["joules"]) == ("RAPL", None)


def test_counters_that_only_root_reads_are_no_meter(desktop, monkeypatch):
    # Root reads what others may not, so that a file's mode alone would not do here.
    file = f"{desktop.root}/{RAPL}/energy_uj"
    monkeypatch.setattr("edgekit.converters.kit.energy.number", lambda path: None)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    found = run(Energy(desktop.root), still)
    assert (found["meter"], found["joules"], found["watts"]) == (None, None, None)
    assert f"{file} can be read by root only" in found["why"]


def test_a_machine_without_a_meter_says_so(bare):
    found = run(Energy(bare.root), still)
    assert found["meter"] is None
    assert found["joules"] is None
    assert found["why"] == (
        "no meter: no power rails of a Jetson, no NVIDIA GPU that tells its power, "
        "no RAPL counters of the processor"
    )


def test_a_short_run_is_not_measured(orin):
    found = run(Energy(orin.root), still, still, seconds=0.2)
    assert (found["meter"], found["joules"]) == ("INA rails in sysfs", None)
    assert "too short" in found["why"]


def test_rapl_is_quick_enough_for_a_shorter_one(desktop):
    step = {f"{RAPL}:1/energy_uj": "4000000"}
    found = run(Energy(desktop.root), lambda: desktop.write(step), seconds=0.2)
    assert (found["meter"], found["joules"]) == ("RAPL", 2.0)


def test_a_meter_that_stands_still_measures_nothing(desktop):
    found = run(Energy(desktop.root), still, still)
    assert (found["meter"], found["joules"]) == ("RAPL", None)
    assert "stands still" in found["why"]


def test_a_meter_that_stops_answering_measures_nothing(orin):
    found = run(Energy(orin.root), still, lambda: orin.remove(f"{CHIP}/curr1_input"), still)
    assert (found["joules"], found["watts"]) == (None, None)
    assert found["rails"]["VDD_SOC"] == 4.0
    assert "did not answer" in found["why"]


def test_the_gpus_own_counter_is_preferred(bare, gpu):
    gpu.says(energy_mj=5_000_000, power_mw=100_000)
    found = run(Energy(bare.root, open_nvml()), lambda: gpu.says(energy_mj=5_700_000))
    assert (found["meter"], found["joules"], found["watts"]) == ("NVML", 700.0, 350.0)
    assert found["rails"] == {"GPU 0": 700.0}


def test_a_gpu_without_a_counter_is_integrated_and_says_so(bare, gpu):
    gpu.says(power_mw=100_000)
    found = run(Energy(bare.root, open_nvml()), still, still)
    assert (found["joules"], found["watts"]) == (200.0, 100.0)
    assert "integrated over samples" in found["why"]


def test_a_gpu_that_tells_no_power_is_no_meter(bare, gpu):
    assert run(Energy(bare.root, open_nvml()), still)["meter"] is None


@pytest.mark.parametrize(
    ("device", "meter"), [("gpu", "NVML"), ("cpu", "RAPL"), (None, "NVML + RAPL")]
)
def test_a_device_counts_alone_where_it_has_its_own_meter(desktop, gpu, device, meter):
    gpu.says(energy_mj=0)

    def step():
        gpu.says(energy_mj=40_000)
        desktop.write({f"{RAPL}:1/energy_uj": "4000000"})

    found = run(Energy(desktop.root, open_nvml(), device), step)
    assert found["meter"] == meter
    assert found["joules"] == {"gpu": 40.0, "cpu": 2.0, None: 42.0}[device]


@pytest.fixture
def jtop(monkeypatch):
    """jetson-stats: a stand-in with the interface of its version 4."""
    monkeypatch.syspath_prepend(str(Path(__file__).with_name("fake_jtop")))
    yield importlib.import_module("jtop")
    sys.modules.pop("jtop", None)


def test_jetson_stats_gives_the_rails_where_it_runs(jtop):
    found = run(Energy("/"), still, still)
    assert found["meter"] == "INA rails through jetson-stats"
    assert (found["joules"], found["watts"]) == (12.0, 6.0)
    assert found["rails"] == {"VDD_CPU_GPU_CV": 2.0, "VDD_SOC": 3.0, "VDD_IN": 12.0}
    assert jtop.opened == 0


def test_jetson_stats_that_does_not_run_is_no_meter(jtop, monkeypatch):
    monkeypatch.setattr(jtop, "running", False)
    assert "jetson-stats" not in (run(Energy("/"), still, still)["meter"] or "")


def test_jetson_stats_of_another_form_is_no_meter(jtop, monkeypatch):
    monkeypatch.setattr(jtop.jtop, "power", (5000, {}))
    assert "jetson-stats" not in (run(Energy("/"), still, still)["meter"] or "")
    assert jtop.opened == 0
