"""Doctor: what is installed, and what can be built, verified and run on this machine."""

from __future__ import annotations

from dataclasses import dataclass

from edgekit import packages, targets
from edgekit.errors import EdgekitError
from edgekit.find import find, names
from edgekit.targets.runtimes import runtime_for


@dataclass(frozen=True)
class Ability:
    """What this machine can do for one target; a reason where it cannot, '' where it can."""

    target: str
    build: str
    verify: str
    run: str


@dataclass(frozen=True)
class Way:
    """A runtime: what it opens, and why it cannot run that here, with the remedy; '' if it can."""

    runtime: str
    opens: tuple[str, ...]
    run: str


@dataclass(frozen=True)
class Checkup:
    """The doctor's findings.

    Attributes:
        installed: pip name -> version, of every package that edgekit can use.
        missing: pip names that are not installed.
        abilities: one a target.
        runtimes: the ways to run artifacts.
        install: the command that installs what is missing, or ''.
    """

    installed: dict[str, str]
    missing: tuple[str, ...]
    abilities: tuple[Ability, ...]
    runtimes: tuple[Way, ...]
    install: str


def doctor() -> Checkup:
    """Look at this machine."""
    wanted: dict[str, str] = {"torch": "torch"}
    for room in ("families", "converters", "runtimes"):
        for name in names(room):
            wanted |= find(room, name).REQUIRES
    absent = tuple(packages.missing(wanted))
    return Checkup(
        installed=packages.versions(wanted),
        missing=absent,
        abilities=tuple(_ability(targets.load(name)) for name in targets.names()),
        runtimes=tuple(_way(name) for name in names("runtimes")),
        install=packages.install_command(absent) if absent else "",
    )


def _ability(target: targets.Target) -> Ability:
    try:
        packages.require("converters", target.formats)
        build = ""
    except EdgekitError as error:
        build = error.fix
    runtime = runtime_for(target.runtime, target.formats[-1])
    if runtime is None:
        verify = "its ONNX here, the engine on the device"
        return Ability(target.name, build, verify, "on the device")
    module = find("runtimes", runtime)
    verify = module.unavailable()
    if verify and len(target.formats) > 1:
        verify = f"its ONNX here, the engine not: {verify}"
    return Ability(target.name, build, verify, module.untimed())


def _way(name: str) -> Way:
    module = find("runtimes", name)
    return Way(name, module.OPENS, module.unavailable() or module.untimed())
