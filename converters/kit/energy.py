"""Energy of a stretch of time, where something here measures it.

Meters, in the order in which they are looked for:

- a Jetson's INA3221 and INA238 chips, through jetson-stats (``jtop``) where it runs, else in
  sysfs: volts times amperes of each rail, integrated over the samples;
- an NVIDIA GPU's own counter of joules through NVML, else its power, integrated;
- RAPL, the x86 processor's counters of joules (Linux' powercap), which wrap around.

A meter sees all that its rails feed, idle power and other programs included.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from typing import Any, Callable, NamedTuple

from .nvml import Nvml
from .sensors import Read, found, number, text

#: Seconds that a meter needs: one that is new every 0.1 s or so, and RAPL, new every 0.001 s.
SLOW, FAST = 0.5, 0.1
#: Readings that an integral needs.
FEWEST = 3
#: The least share of the time that the readings must span.
SPAN = 0.9
#: Rails that feed the whole Jetson module: the others lie behind them.
WHOLE = ("VDD_IN", "VIN", "POM_5V_IN")
#: Rails that are fed by another, as on AGX Orin: adding both would count them twice.
BEHIND = {"VDDQ_VDD2_1V8AO": "VIN_SYS_5V0"}


class Rail:
    """A supply line or a counter's domain: joules since its first reading.

    Attributes:
        read: gives watts now, or joules so far if ``counter``.
        wraps: joules at which a counter starts again at zero.
    """

    def __init__(
        self, name: str, read: Read, counter: bool = False, wraps: float | None = None
    ) -> None:
        self.name, self._read, self._counter, self._wraps = name, read, counter, wraps
        self._first: float | None = None
        self._last: tuple[float, float] = (0.0, 0.0)
        self._joules, self._count = 0.0, 0

    def sample(self, now: float) -> None:
        """Read it; ``now`` is the time in seconds. What cannot be read now is left out."""
        value = self._read()
        if value is None:
            return
        if self._first is None:
            self._first = now
        elif self._counter:
            self._joules += self._rise(value - self._last[1])
        else:
            self._joules += (now - self._last[0]) * (value + self._last[1]) / 2
        self._last, self._count = (now, value), self._count + 1

    def _rise(self, change: float) -> float:
        """The joules counted since the last reading, over a wrap-around if there was one."""
        return change + (self._wraps or 0.0) if change < 0 else change

    def joules(self, seconds: float) -> float | None:
        """Joules of the ``seconds`` in which it was sampled; None if the readings are too few."""
        if self._first is None or self._count < (2 if self._counter else FEWEST):
            return None
        spanned = self._last[0] - self._first
        return self._joules if spanned >= SPAN * seconds and self._joules >= 0 else None


class Meter(NamedTuple):
    """What measures energy here.

    Attributes:
        summed: names of the rails whose sum is the meter's figure.
        why: what the figure covers, and how it is found.
        shortest: seconds under which its own rate of update shows in the figure.
    """

    name: str
    rails: list[Rail]
    summed: list[str]
    why: str
    shortest: float = SLOW
    close: Callable[[], None] = lambda: None


class Energy:
    """The meters of this machine over one stretch of time.

    Args:
        root: the folder that holds ``sys``.
        nvml: the GPU's management library, if there is one.
        device: "cpu" or "gpu" counts that one alone, where it has its own meter; None counts all.
    """

    def __init__(
        self, root: str = "/", nvml: Nvml | None = None, device: str | None = None
    ) -> None:
        jetson = _jtop(root) or _ina(root)
        gpu = None if nvml is None or device == "cpu" else _gpu(nvml)
        rapl, no_rapl = (None, "") if device == "gpu" else _rapl(root)
        self.meters = [jetson] if jetson else [meter for meter in (gpu, rapl) if meter]
        self._no_meter = _no_meter(device, no_rapl)

    def sample(self, now: float) -> None:
        """Read every rail."""
        for meter in self.meters:
            for rail in meter.rails:
                rail.sample(now)

    def close(self) -> None:
        """Let go of the meters."""
        for meter in self.meters:
            meter.close()

    def report(self, seconds: float) -> dict[str, Any]:
        """meter, joules, watts (their mean), rails (joules by name) and why."""
        if not self.meters:
            return _report(None, None, seconds, {}, self._no_meter)
        name = " + ".join(meter.name for meter in self.meters)
        why = "; ".join(meter.why for meter in self.meters)
        shortest = max(meter.shortest for meter in self.meters)
        if seconds < shortest:
            short = f"not measured: {seconds:.2f} s is too short, it takes {shortest} s"
            return _report(name, None, seconds, {}, short)
        rails = {r.name: r.joules(seconds) for meter in self.meters for r in meter.rails}
        summed = [rails[part] for meter in self.meters for part in meter.summed]
        known = [joules for joules in summed if joules is not None]
        if len(known) < len(summed):
            return _report(name, None, seconds, rails, "not measured: the meter did not answer")
        if sum(known) == 0:  # as a virtual machine's counter
            return _report(name, None, seconds, rails, "not measured: the meter stands still")
        return _report(name, sum(known), seconds, rails, why)


def _report(
    name: str | None,
    joules: float | None,
    seconds: float,
    rails: dict[str, float | None],
    why: str,
) -> dict[str, Any]:
    return {
        "meter": name,
        "joules": None if joules is None else round(joules, 4),
        "watts": None if joules is None else round(joules / seconds, 3),
        "rails": {rail: None if j is None else round(j, 4) for rail, j in rails.items()},
        "why": why,
    }


def _no_meter(device: str | None, no_rapl: str) -> str:
    missing = ["no power rails of a Jetson"]
    if device != "cpu":
        missing.append("no NVIDIA GPU that tells its power")
    if device != "gpu":
        missing.append(no_rapl)
    return f"no meter: {', '.join(missing)}"


def _gpu(nvml: Nvml) -> Meter | None:
    rail = f"GPU {nvml.index}"
    if nvml.joules() is not None:
        why = "the GPU's board, by its own counter of joules"
        return Meter("NVML", [Rail(rail, nvml.joules, counter=True)], [rail], why)
    if nvml.watts() is not None:
        why = "the GPU's board, by its power, integrated over samples: it has no counter of joules"
        return Meter("NVML", [Rail(rail, nvml.watts)], [rail], why)
    return None


def _rapl(root: str) -> tuple[Meter | None, str]:
    """RAPL's packages and their memory; cores are within a package. Else why there is none."""
    rails, summed, closed = [], [], ""
    for folder in found(root, "sys/class/powercap/intel-rapl:*"):
        file = f"{folder}/energy_uj"
        domain, wraps = text(f"{folder}/name") or "", number(f"{folder}/max_energy_range_uj")
        if number(file) is None:
            if os.path.exists(file) and not os.access(file, os.R_OK):
                closed = closed or f"{file} can be read by root only"
            continue
        within = os.path.basename(folder).count(":") > 1
        parent = text(f"{folder.rpartition(':')[0]}/name") if within else None
        name = f"{parent} {domain}" if parent else domain
        rails.append(Rail(name, _micro(file), True, None if wraps is None else wraps / 1e6))
        if domain.startswith("package") or domain == "dram":
            summed.append(name)
    if not summed:
        return None, closed or "no RAPL counters of the processor"
    why = f"{' + '.join(summed)}, by the processor's counters of joules"
    return Meter("RAPL", rails, summed, why, FAST), ""


def _micro(file: str) -> Read:
    def read() -> float | None:
        value = number(file)
        return None if value is None else value / 1e6

    return read


def _ina(root: str) -> Meter | None:
    """A Jetson's rails in sysfs: INA3221 chips, and Thor's INA238 that measures the input."""
    rails = []
    folders = found(root, "sys/bus/i2c/drivers/ina3221/*/hwmon/hwmon*")
    for folder in folders:
        for label in found(folder, "in[1-3]_label"):  # in7 is a sum of shunt voltages
            name, channel = text(label), os.path.basename(label)[2:-6]
            volts, amperes = f"{folder}/in{channel}_input", f"{folder}/curr{channel}_input"
            if name and name != "NC" and number(volts) is not None and number(amperes) is not None:
                rails.append(Rail(name, _product(volts, amperes)))
    for folder in found(root, "sys/bus/i2c/drivers/ina238/*/hwmon/hwmon*") if folders else []:
        name, file = text(f"{folder}/in1_label"), f"{folder}/power1_input"
        if name and number(file) is not None:
            rails.append(Rail(name, _micro(file)))
    return _jetson("INA rails in sysfs", rails) if rails else None


def _product(millivolts: str, milliamperes: str) -> Read:
    def read() -> float | None:
        volts, amperes = number(millivolts), number(milliamperes)
        return None if volts is None or amperes is None else volts * amperes / 1e6

    return read


def _jtop(root: str) -> Meter | None:
    """A Jetson's rails through jetson-stats; None where it is not installed or does not run."""
    if root != "/" or importlib.util.find_spec("jtop") is None:
        return None
    try:
        module = importlib.import_module("jtop")
        failure = module.JtopException
        client = module.jtop()
    except (ImportError, AttributeError, OSError):
        return None
    try:
        client.start()
        client.ok()  # wait for the first reading
    except (failure, OSError):
        return None
    rails = [Rail(name, _jtop_rail(client, name)) for name in _jtop_watts(client)]
    if not rails:
        client.close()
        return None
    return _jetson("INA rails through jetson-stats", rails, client.close)


def _jtop_watts(client: Any) -> dict[str, float]:
    """Watts by rail; jtop keeps the rail that measures the whole apart."""
    try:
        power = client.power
        rails = dict(power["rail"])
        if "name" in power["tot"]:
            rails[power["tot"]["name"]] = power["tot"]
        return {name: float(rail["power"]) / 1e3 for name, rail in rails.items()}
    except (KeyError, TypeError, ValueError):  # none yet, or another jtop's form
        return {}


def _jtop_rail(client: Any, name: str) -> Read:
    return lambda: _jtop_watts(client).get(name)


def _jetson(name: str, rails: list[Rail], close: Callable[[], None] = lambda: None) -> Meter:
    """The meter of a Jetson's rails, with those that are summed and the reason."""
    names = [rail.name for rail in rails]
    whole = next((rail for rail in WHOLE if rail in names), None)
    if whole is not None:
        why = f"{whole} is the whole module's input, integrated over samples"
        return Meter(name, rails, [whole], f"{why}; the other rails lie behind it", close=close)
    behind = [rail for rail in names if BEHIND.get(rail) in names]
    summed = [rail for rail in names if rail not in behind]
    why = f"{' + '.join(summed)}, integrated over samples: no rail measures the whole module"
    if behind:
        told = ", ".join(f"{rail} is fed by {BEHIND[rail]}" for rail in behind)
        why += f"; not added: {told}"
    return Meter(name, rails, summed, why, close=close)
