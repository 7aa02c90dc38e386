"""Sensors: clocks, temperatures, throttling and load, as Linux gives them."""

from __future__ import annotations

import pytest

from edgekit.converters.kit import sensors

CPUS = "sys/devices/system/cpu"


def test_a_jetsons_clocks(orin):
    cpu, gpu = sensors.clocks(orin.root)
    assert (cpu.name, cpu.limit, cpu.locked) == ("cpu", 1728.0, False)
    assert cpu.mhz() == pytest.approx(1510.4)  # the faster cluster's
    assert (gpu.name, gpu.mhz(), gpu.limit, gpu.locked) == ("gpu", 612.0, 1020.0, False)


def test_jetson_clocks_locks_by_equal_bounds(orin):
    orin.write({"sys/class/devfreq/17000000.gpu/min_freq": "1020000000"})
    assert sensors.clocks(orin.root)[-1].locked is True


def test_the_memory_clock_is_there_for_root_only(orin):
    folder = "sys/kernel/debug/bpmp/debug/clk/emc"
    orin.write({f"{folder}/rate": "2133000000", f"{folder}/max_rate": "3199000000"})
    assert sensors.clocks(orin.root)[-1][2:] == (3199.0, None)
    orin.write({f"{folder}/mrq_rate_locked": "1"})
    memory = sensors.clocks(orin.root)[-1]
    assert (memory.name, memory.mhz(), memory.locked) == ("memory", 2133.0, True)


def test_clusters_of_different_limits_are_told_apart(orin):
    orin.write({f"{CPUS}/cpufreq/policy4/scaling_max_freq": "2000000"})
    found = {clock.name: clock.limit for clock in sensors.clocks(orin.root)}
    assert found == {"cpu0": 1728.0, "cpu4": 2000.0, "gpu": 1020.0}


@pytest.mark.parametrize(
    ("change", "locked"),
    [
        ({}, True),
        ({f"{CPUS}/intel_pstate/no_turbo": "0"}, False),
        ({f"{CPUS}/cpufreq/boost": "1"}, False),
        ({f"{CPUS}/cpufreq/policy0/scaling_governor": "powersave"}, False),
    ],
)
def test_performance_without_turbo_is_locked(desktop, change, locked):
    desktop.write(change)
    assert sensors.clocks(desktop.root)[0].locked is locked


def test_a_clock_without_bounds_is_not_said_to_be_locked_or_not(bare):
    bare.write({f"{CPUS}/cpufreq/policy0/scaling_cur_freq": "1000000"})
    assert [clock[2:] for clock in sensors.clocks(bare.root)] == [(None, None)]


def test_governors_that_differ_are_all_named(orin):
    orin.write({f"{CPUS}/cpu4/cpufreq/scaling_governor": "performance"})
    assert sensors.governor(orin.root) == "performance, schedutil"


def test_zones_have_the_limit_at_which_they_slow_down(orin, desktop):
    (zone,) = sensors.zones(orin.root)  # the other is switched off
    assert (zone.name, zone.celsius(), zone.limit) == ("cpu-thermal", 51.718, 99.0)
    assert [zone.limit for zone in sensors.zones(desktop.root)] == [None]


def test_zones_of_one_name_are_kept_apart(orin):
    folder = "sys/class/thermal/thermal_zone10"
    orin.write({f"{folder}/type": "cpu-thermal", f"{folder}/temp": "40000"})
    names = [zone.name for zone in sensors.zones(orin.root)]
    assert names == ["cpu-thermal", "cpu-thermal (thermal_zone10)"]


def test_a_fan_does_not_throttle(orin):
    throttling = sensors.Throttling(orin.root)
    throttling.sample()
    assert throttling.reasons() == []


def test_a_cooling_device_throttles_while_it_is_sampled(orin):
    throttling = sensors.Throttling(orin.root)
    orin.write({"sys/class/thermal/cooling_device1/cur_state": "1"})
    throttling.sample()
    orin.write({"sys/class/thermal/cooling_device1/cur_state": "0"})
    throttling.sample()
    assert throttling.reasons() == ["gpu-throttle-alert"]


def test_counters_throttle_when_they_rise(orin, desktop):
    jetson, x86 = sensors.Throttling(orin.root), sensors.Throttling(desktop.root)
    assert jetson.reasons() == x86.reasons() == []
    orin.write({"sys/class/hwmon/hwmon3/oc3_event_cnt": "38"})
    desktop.write({f"{CPUS}/cpu0/thermal_throttle/core_throttle_count": "6"})
    assert jetson.reasons() == ["over-current"]
    assert x86.reasons() == ["CPU temperature"]


def test_other_load_leaves_out_this_process(orin):
    load = sensors.Load(orin.root)
    # 400 ticks of all cores: 300 busy, of which 100 are ours.
    orin.write(
        {
            "proc/stat": "cpu  1200 0 1100 8100 0 0 0 0 0 0",
            "proc/self/stat": "1 (a name) here) R 1 1 1 0 -1 0 0 0 0 0 150 100 0 0 20 0",
        }
    )
    assert load.share() == pytest.approx(0.5)


def test_other_load_is_not_told_from_too_few_ticks(orin, bare):
    load = sensors.Load(orin.root)
    orin.write({"proc/stat": "cpu  1010 0 1010 8010 0 0 0 0 0 0"})
    assert load.share() is None
    assert sensors.Load(bare.root).share() is None
