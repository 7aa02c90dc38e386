"""Watch: one report of what the machine did meanwhile, and why a run is doubted."""

from __future__ import annotations

import glob
import json
import subprocess
import threading
import time
from pathlib import Path

import pytest

from edgekit import converters
from edgekit.converters.kit import watch as module
from edgekit.converters.kit.watch import Watch, doubts

PYTHONS = glob.glob("/root/.pyenv/versions/3.8*/bin/python") + glob.glob("/usr/bin/python3.8")


def pass_time(seconds=0.6):
    time.sleep(seconds)


def test_a_jetson_is_watched(orin):
    with Watch(orin.root, interval=0.05) as watch:
        pass_time(0.3)
        orin.write({"sys/class/devfreq/17000000.gpu/cur_freq": "1020000000"})
        orin.write({"sys/class/thermal/thermal_zone0/temp": "60000"})
        pass_time(0.3)
        orin.write({"sys/class/thermal/thermal_zone0/temp": "52000"})
    found = json.loads(json.dumps(watch.report(), allow_nan=False))
    assert (found["power_mode"], found["governor"]) == ("MAXN_SUPER", "schedutil")
    gpu = found["clocks_mhz"]["gpu"]
    assert (gpu["min"], gpu["max"], gpu["limit"], gpu["locked"]) == (612.0, 1020.0, 1020.0, False)
    assert 612 < gpu["mean"] < 1020
    assert found["temperature_c"] == {"cpu-thermal": 60.0}
    assert found["temperature_limit_c"] == {"cpu-thermal": 99.0}
    assert found["throttled"] == []
    assert found["energy"]["watts"] == pytest.approx(10.0, abs=0.01)
    assert found["samples"] >= 3


def test_a_gpu_is_watched(bare, gpu):
    gpu.says(energy_mj=0, clock=2520, celsius=88, celsius_limit=90, throttled="0x4")
    gpu.says(own=0, others=2)
    with Watch(bare.root) as watch:
        pass_time()
        gpu.says(energy_mj=100_000)
    found = watch.report()
    assert found["clocks_mhz"]["GPU"]["locked"] is None
    assert found["temperature_c"] == {"GPU": 88.0}
    assert found["energy"]["joules"] == 100.0
    assert doubts(found) == [
        "slowed down: GPU power limit",
        "hot: GPU reached 88 degrees, it is slowed down at 90",
        "not alone: 2 other processes use the GPU",
    ]


def test_what_another_program_does_to_the_gpu_says_nothing_of_the_cpu(desktop, gpu):
    gpu.says(celsius=89, celsius_limit=90, throttled="0x4", own=0, others=2, energy_mj=0)
    with Watch(desktop.root, device="cpu") as watch:
        pass
    assert doubts(watch.report()) == []
    assert set(watch.report()["clocks_mhz"]) == {"cpu"}


def test_what_a_machine_does_not_say_is_none(bare):
    with Watch(bare.root) as watch:
        pass
    found = watch.report()
    assert (found["clocks_mhz"], found["temperature_c"], found["throttled"]) == ({}, {}, [])
    unknown = ("power_mode", "governor", "other_load", "other_gpu_processes")
    assert [found[name] for name in unknown] == [None] * 4
    assert found["energy"]["meter"] is None
    assert doubts(found) == []


def test_throttling_is_told_though_it_has_passed(orin):
    with Watch(orin.root, interval=0.02) as watch:
        orin.write({"sys/class/thermal/cooling_device1/cur_state": "1"})
        pass_time(0.3)
        orin.write({"sys/class/thermal/cooling_device1/cur_state": "0"})
        orin.write({"sys/class/hwmon/hwmon3/oc1_event_cnt": "1"})
    assert watch.report()["throttled"] == ["gpu-throttle-alert", "under-voltage"]


def test_this_machine_is_watched():
    with Watch() as watch:
        pass_time()
    found = watch.report()
    assert found["seconds"] >= 0.6
    assert found["other_load"] is None or 0 <= found["other_load"] <= 1
    energy = found["energy"]
    assert (energy["joules"] is None) or energy["joules"] >= 0
    if energy["meter"] is None:
        assert energy["why"].startswith("no meter: ")


def test_the_thread_ends_with_the_block_also_by_an_error(bare):
    with pytest.raises(ValueError, match="the run failed"), Watch(bare.root) as watch:
        raise ValueError("the run failed")
    assert "edgekit-watch" not in {thread.name for thread in threading.enumerate()}
    assert watch.report()["samples"] >= 2


def report(**changes):
    """A report of a run that nothing speaks against."""
    return {
        "throttled": [],
        "clocks_mhz": {"gpu": {"min": 1020, "max": 1020, "limit": 1020, "locked": True}},
        "temperature_c": {"cpu": 50.0},
        "temperature_limit_c": {"cpu": 99.0},
        "other_load": 0.02,
        "other_gpu_processes": 0,
        **changes,
    }


@pytest.mark.parametrize(
    ("changes", "spread", "said"),
    [
        ({}, 0.05, None),
        ({}, None, None),
        ({}, 0.101, "uneven: the standard deviation is 10% of the mean latency"),
        ({"throttled": ["over-current"]}, 0.0, "slowed down: over-current"),
        ({"other_load": 0.5}, 0.0, "not alone: other processes used 50% of all cores"),
        ({"other_load": None}, 0.0, None),
        ({"temperature_c": {"cpu": 95.0}}, 0.0, "hot: cpu reached 95 degrees"),
        (
            {"clocks_mhz": {"gpu": {"min": 612, "max": 1020, "limit": 1020, "locked": False}}},
            0.0,
            "clock not locked: gpu was seen at 612 to 1020 MHz (to lock it: governor performance",
        ),
        (
            {
                "clocks_mhz": {"gpu": {"min": 612, "max": 1020, "limit": 1020, "locked": False}},
                "power_mode": "15W",
            },
            0.0,
            "clock not locked: gpu was seen at 612 to 1020 MHz (to lock it: sudo jetson_clocks)",
        ),
        (
            {"clocks_mhz": {"gpu": {"min": 612, "max": 1020, "limit": None, "locked": None}}},
            0.0,
            None,
        ),
    ],
)
def test_doubts(changes, spread, said):
    found = doubts(report(**changes), spread)
    assert found == [] if said is None else [text.startswith(said) for text in found] == [True]


@pytest.mark.skipif(not PYTHONS, reason="no Python 3.8 here")
def test_the_kits_part_runs_on_jetpack_5s_python(orin):
    code = (
        "import json, sys\n"
        "from kit.watch import Watch, doubts\n"
        "from kit.device import device_facts\n"
        "from kit.memory import device_memory, peak_memory\n"
        "with peak_memory() as host, device_memory() as gpu, Watch(sys.argv[1]) as watch:\n"
        "    bytearray(2**20)\n"
        "report = watch.report()\n"
        "doubts(report, 0.2)\n"
        "print(json.dumps([report, device_facts(sys.argv[1])]))\n"
    )
    folder = Path(converters.__file__).parent
    done = subprocess.run(
        [
            PYTHONS[0],
            "-I",
            "-c",
            f"import sys\nsys.path.insert(0, {str(folder)!r})\n{code}",
            orin.root,
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found, facts = json.loads(done.stdout)
    assert found["power_mode"] == facts["power_mode"] == "MAXN_SUPER"
    assert "numpy" not in module.__dict__
