"""Watch the machine while something is timed on it: can the figures be trusted, and what energy?"""

from __future__ import annotations

import time
from typing import Any, Mapping

from .device import power_mode
from .energy import Energy
from .nvml import open_nvml
from .sampler import INTERVAL, Sampler
from .sensors import Clock, Load, Throttling, clocks, governor, zones

#: From here on a run is doubted: standard deviation by mean, and the load of others.
SPREAD, LOAD = 0.10, 0.10
#: Degrees Celsius below a limit that are near it.
NEAR = 5.0


class Watch:
    """Watch clocks, temperatures, throttling, power and other load from enter to exit.

    Args:
        root: the folder that holds ``sys`` and ``proc``; another one is for tests.
        device: what computes. "cpu" leaves an NVIDIA GPU out; "gpu" counts the GPU's energy
            alone; None adds up both meters. A Jetson's rails measure the whole module anyway.
        interval: seconds between samples.
    """

    def __init__(
        self, root: str = "/", device: str | None = None, interval: float = INTERVAL
    ) -> None:
        self._root, self._device = root, device
        self._sampler = Sampler(self.sample, interval)
        self._began = self._ended = 0.0
        self._samples = 0
        self._mhz: dict[str, list[float]] = {}
        self._celsius: dict[str, list[float]] = {}
        self._gpu_reasons: dict[str, None] = {}
        self._reasons: list[str] = []
        self._share: float | None = None
        self._others: int | None = None

    def __enter__(self) -> Watch:
        self._nvml = None if self._device == "cpu" else open_nvml()
        self._energy = Energy(self._root, self._nvml, self._device)
        self._clocks, self._zones = clocks(self._root), zones(self._root)
        if self._nvml is not None:
            self._clocks += self._nvml.clocks()
            self._zones.append(self._nvml.zone())
        self._facts = {"power_mode": power_mode(self._root), "governor": governor(self._root)}
        self._throttling, self._load = Throttling(self._root), Load(self._root)
        self._began = time.perf_counter()
        self._sampler.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._sampler.stop()
        self._energy.close()
        self._reasons = [*self._throttling.reasons(), *self._gpu_reasons]
        self._share = self._load.share()
        if self._nvml is not None:
            self._others = self._nvml.others()
            self._nvml.close()

    def sample(self) -> None:
        """Look once; the background thread does this."""
        self._ended = time.perf_counter()
        self._energy.sample(self._ended)
        for clock in self._clocks:
            _note(self._mhz, clock.name, clock.mhz())
        for zone in self._zones:
            _note(self._celsius, zone.name, zone.celsius())
        self._throttling.sample()
        if self._nvml is not None:
            self._gpu_reasons.update(dict.fromkeys(self._nvml.throttled()))
        self._samples += 1

    def report(self) -> dict[str, Any]:
        """What was seen between enter and exit, for JSON; None is what the machine doesn't say.

        Keys: ``seconds``, ``samples``, ``power_mode``, ``governor``, ``clocks_mhz`` (by name: min,
        mean, max, limit, locked), ``temperature_c`` (the highest, by zone),
        ``temperature_limit_c`` (where a zone is slowed down), ``throttled`` (reasons),
        ``other_load`` (share of all cores that other processes used), ``other_gpu_processes``
        and ``energy``.
        """
        limits = {zone.name: zone.limit for zone in self._zones}
        seconds = self._ended - self._began
        return {
            "seconds": round(seconds, 4),
            "samples": self._samples,
            **self._facts,
            "clocks_mhz": {c.name: self._clock(c) for c in self._clocks if c.name in self._mhz},
            "temperature_c": {name: round(max(c), 1) for name, c in self._celsius.items()},
            "temperature_limit_c": {n: limits[n] for n in self._celsius if limits[n] is not None},
            "throttled": self._reasons,
            "other_load": self._share,
            "other_gpu_processes": self._others,
            "energy": self._energy.report(seconds),
        }

    def _clock(self, clock: Clock) -> dict[str, Any]:
        seen = self._mhz[clock.name]
        return {
            "min": round(min(seen), 1),
            "mean": round(sum(seen) / len(seen), 1),
            "max": round(max(seen), 1),
            "limit": None if clock.limit is None else round(clock.limit, 1),
            "locked": clock.locked,
        }


def _note(seen: dict[str, list[float]], name: str, value: float | None) -> None:
    if value is not None:
        seen.setdefault(name, []).append(value)


def doubts(report: Mapping[str, Any], spread: float | None = None) -> list[str]:
    """Why a run's figures can't be trusted, one sentence each; none if nothing speaks against it.

    Args:
        report: of a `Watch`.
        spread: standard deviation of the latencies by their mean; None if not known.
    """
    found = [f"slowed down: {reason}" for reason in report["throttled"]]
    lock = "sudo jetson_clocks" if report.get("power_mode") else "governor performance, no turbo"
    for name, clock in report["clocks_mhz"].items():
        if clock["locked"] is False:
            seen = f"{clock['min']:g} to {clock['max']:g} MHz"
            found.append(f"clock not locked: {name} was seen at {seen} (to lock it: {lock})")
    for zone, limit in report["temperature_limit_c"].items():
        reached = report["temperature_c"][zone]
        if reached > limit - NEAR:
            found.append(f"hot: {zone} reached {reached:g} degrees, it is slowed down at {limit:g}")
    if spread is not None and spread > SPREAD:
        found.append(f"uneven: the standard deviation is {spread:.0%} of the mean latency")
    if (report["other_load"] or 0) > LOAD:
        found.append(f"not alone: other processes used {report['other_load']:.0%} of all cores")
    if report["other_gpu_processes"]:
        found.append(f"not alone: {report['other_gpu_processes']} other processes use the GPU")
    return found


def energy(report: Mapping[str, Any], samples: int) -> dict[str, Any]:
    """Joules a sample, of all that the meter sees; or why there are none.

    Args:
        report: of a `Watch`.
        samples: that were computed while it watched.
    """
    found = report["energy"]
    if found["joules"] is None:
        return {"meter": None, "why": found.get("why") or "no meter"}
    return {
        "meter": found["meter"],
        "joules_per_inference": found["joules"] / samples,
        "watts": found["watts"],
    }
