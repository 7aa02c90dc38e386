"""What Linux says of clocks, temperatures, throttling and load, in /sys and /proc.

Every function takes ``root``, the folder that holds ``sys`` and ``proc``: "/" but for tests.
What a machine does not say is None, or is not there.
"""

from __future__ import annotations

import glob
import os
from typing import Callable, NamedTuple, Optional, Sequence

#: Gives a figure now, or None.
Read = Callable[[], Optional[float]]
#: The least temperature, in degrees Celsius, that is one: a sensor that is switched off reads -256.
COLDEST = -100
#: Cooling devices that slow the machine down, by a part of their type's name. Fans do not.
SLOWING = ("throttle-alert", "cpufreq", "devfreq", "processor", "powerclamp", ".gpu")
#: How the devfreq device of a Jetson's GPU is called, by generation.
GPU_SUFFIXES = (".gpu", ".ga10b", ".gv11b", ".gp10b")
#: Trip points at which Linux or the firmware slows down or stops the machine.
LIMITS = ("passive", "hot", "critical")
#: What the over-current counters of a Jetson Orin count.
OVER_CURRENT = {"oc1": "under-voltage", "oc2": "average over-current", "oc3": "over-current"}
#: Files that say whether a CPU may exceed its nominal clock, and what they hold if it may not.
TURBO = (("intel_pstate/no_turbo", "1"), ("cpufreq/boost", "0"))
#: Least clock ticks, of all cores together, from which a share of load can be told.
TICKS = 50


def text(path: str) -> str | None:
    """A short file's content without white space around it; None if it cannot be read."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        return os.read(handle, 1 << 16).decode("utf-8", "replace").strip("\0\n ")
    except OSError:  # a sensor that is switched off
        return None
    finally:
        os.close(handle)


def number(path: str) -> float | None:
    """A file's first word as a number; None if it is none."""
    try:
        return float((text(path) or "").split()[0])
    except (ValueError, IndexError):
        return None


def found(root: str, pattern: str) -> list[str]:
    """The files of a root that match, in order; numbers in names count as such."""
    names = glob.glob(os.path.join(glob.escape(root), pattern))
    return sorted(names, key=lambda name: (len(name), name))


class Clock(NamedTuple):
    """Cores, or a GPU, that share a clock's bounds.

    Attributes:
        mhz: gives the frequency now; of several cores, the fastest one's, since idle ones slow
            down.
        limit: the highest frequency that is allowed now, in MHz.
        locked: whether the frequency cannot change; None if that is not known.
    """

    name: str
    mhz: Read
    limit: float | None
    locked: bool | None


def clocks(root: str = "/") -> list[Clock]:
    """The clocks of the CPU's clusters and of a Jetson's GPU and memory."""
    return [*_cpu_clocks(root), *_gpu_clocks(root), *_memory_clocks(root)]


def _cpu_clocks(root: str) -> list[Clock]:
    groups: dict[tuple[float | None, bool | None], list[str]] = {}
    fixed = _no_turbo(root)
    for folder in found(root, "sys/devices/system/cpu/cpufreq/policy*"):
        limit, locked = _bounds(f"{folder}/scaling_min_freq", f"{folder}/scaling_max_freq", 1e-3)
        if text(f"{folder}/scaling_governor") in ("performance", "userspace") and fixed:
            locked = True
        groups.setdefault((limit, locked), []).append(f"{folder}/scaling_cur_freq")
    made = []
    for (limit, locked), files in groups.items():
        first = os.path.basename(os.path.dirname(files[0]))
        name = "cpu" if len(groups) == 1 else first.replace("policy", "cpu")
        made.append(Clock(name, _highest(files, 1e-3), limit, locked))
    return made


def _no_turbo(root: str) -> bool:
    """Whether no core may exceed its nominal clock; also where there is no such thing."""
    held = [(text(f"{root}/sys/devices/system/cpu/{name}"), off) for name, off in TURBO]
    return all(value in (None, off) for value, off in held)


def _gpu_clocks(root: str) -> list[Clock]:
    made = []
    for folder in found(root, "sys/class/devfreq/*"):
        name = os.path.basename(folder)
        if name.startswith("gpu-") or name.endswith(GPU_SUFFIXES):
            limit, locked = _bounds(f"{folder}/min_freq", f"{folder}/max_freq", 1e-6)
            label = name if name.startswith("gpu-") else "gpu"
            made.append(Clock(label, _highest([f"{folder}/cur_freq"], 1e-6), limit, locked))
    return made


def _memory_clocks(root: str) -> list[Clock]:
    """A Jetson's memory clock, which only its administrator may read."""
    folder = os.path.join(root, "sys/kernel/debug/bpmp/debug/clk/emc")
    if number(f"{folder}/rate") is None:
        return []
    high, lock = number(f"{folder}/max_rate"), number(f"{folder}/mrq_rate_locked")
    limit, locked = None if high is None else high / 1e6, None if lock is None else bool(lock)
    return [Clock("memory", _highest([f"{folder}/rate"], 1e-6), limit, locked)]


def _bounds(low: str, high: str, scale: float) -> tuple[float | None, bool | None]:
    """The limit in MHz, and whether a clock has no room to change."""
    least, most = number(low), number(high)
    locked = None if least is None or most is None else least == most
    return None if most is None else most * scale, locked


def _highest(files: Sequence[str], scale: float) -> Read:
    def read() -> float | None:
        values = [value for value in map(number, files) if value is not None]
        return max(values) * scale if values else None

    return read


def governor(root: str = "/") -> str | None:
    """What chooses the cores' clocks; all names if the cores differ."""
    files = found(root, "sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor")
    names = {name for name in map(text, files) if name}
    return ", ".join(sorted(names)) or None


class Zone(NamedTuple):
    """A place whose temperature is measured; ``limit`` is where it is slowed down, in Celsius."""

    name: str
    celsius: Read
    limit: float | None


def zones(root: str = "/") -> list[Zone]:
    """The thermal zones that give a temperature."""
    made: dict[str, Zone] = {}
    for folder in found(root, "sys/class/thermal/thermal_zone*"):
        name = text(f"{folder}/type") or os.path.basename(folder)
        if name in made:
            name = f"{name} ({os.path.basename(folder)})"
        zone = Zone(name, _celsius(f"{folder}/temp"), _limit(folder))
        if zone.celsius() is not None:
            made[name] = zone
    return list(made.values())


def _celsius(file: str) -> Read:
    def read() -> float | None:
        value = number(file)
        return value / 1e3 if value is not None and value / 1e3 > COLDEST else None

    return read


def _limit(folder: str) -> float | None:
    """The lowest trip point that slows or stops the machine; 0 and below are not set."""
    limits = []
    for kind in glob.glob(f"{glob.escape(folder)}/trip_point_*_type"):
        value = number(kind[: -len("type")] + "temp")
        if text(kind) in LIMITS and value is not None and value > 0:
            limits.append(value / 1e3)
    return min(limits) if limits else None


class Throttling:
    """Tells whether the machine was slowed down since this was made.

    Cooling devices say so while they do it; the counters of over-current events (Jetson Orin)
    and of thermal throttling (x86) go up.
    """

    def __init__(self, root: str = "/") -> None:
        self._cooling = {}
        for folder in found(root, "sys/class/thermal/cooling_device*"):
            name = text(f"{folder}/type") or ""
            if any(part in name.lower() for part in SLOWING):
                self._cooling[f"{folder}/cur_state"] = name
        self._counters = {}
        for path in found(root, "sys/class/hwmon/hwmon*/oc*_event_cnt"):
            short = os.path.basename(path).split("_")[0]
            self._counters[path] = OVER_CURRENT.get(short, short)
        for path in found(root, "sys/devices/system/cpu/cpu*/thermal_throttle/*_throttle_count"):
            self._counters[path] = "CPU temperature"
        self._before = {path: number(path) for path in self._counters}
        self._reasons: dict[str, None] = {}

    def sample(self) -> None:
        """Note the cooling devices that slow the machine down now."""
        for path, name in self._cooling.items():
            if (number(path) or 0) > 0:
                self._reasons[name] = None

    def reasons(self) -> list[str]:
        """Why it was slowed down so far, each once."""
        for path, name in self._counters.items():
            before, now = self._before[path], number(path)
            if before is not None and now is not None and now > before:
                self._reasons[name] = None
        return list(self._reasons)


class Load:
    """The share of all cores that other processes have used since this was made."""

    def __init__(self, root: str = "/") -> None:
        self._root = root
        self._before = self._read()

    def share(self) -> float | None:
        """0 to 1; None if it is not known, or too little time has passed to tell."""
        now = self._read()
        if now is None or self._before is None:
            return None
        total, busy, own = (after - before for after, before in zip(now, self._before))
        if total < TICKS:
            return None
        return round(min(max(busy - own, 0.0) / total, 1.0), 4)

    def _read(self) -> tuple[float, float, float] | None:
        """Ticks of all cores, those not idle, and those of this process and its ended children."""
        stat = text(os.path.join(self._root, "proc/stat"))
        own = text(os.path.join(self._root, "proc/self/stat"))
        try:
            # user nice system idle iowait irq softirq steal; guests are within user.
            ticks = [float(word) for word in (stat or "").splitlines()[0].split()[1:9]]
            mine = sum(float(word) for word in (own or "").rpartition(")")[2].split()[11:15])
            return sum(ticks), sum(ticks) - ticks[3] - ticks[4], mine
        except (ValueError, IndexError):
            return None
