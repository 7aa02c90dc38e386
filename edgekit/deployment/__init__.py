"""Deployment: a bundle goes to a device over SSH, is built, checked and measured there.

The bundle's on-device kit is copied by the system's ssh, its hash is checked there, and it alone
is run: it says whether the device fits, builds the engine, compares its outputs with the source's
and measures. Whatever breaks off, the same call goes on: files that are there are not copied
again, a run that goes on is joined, and an engine that is built is used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgekit import progress, single
from edgekit.deployment.copying import has_rsync
from edgekit.deployment.device import Device
from edgekit.deployment.kit import find_kit
from edgekit.deployment.settings import Settings, hosts_of
from edgekit.errors import EdgekitError

__all__ = ["Deployed", "Device", "Settings", "deploy", "find_kit", "planned", "stop"]


@dataclass(frozen=True)
class Deployed:
    """What came of a device.

    Attributes:
        status: as in the bundle's row: ``verified on the device``, ``failed`` (the outputs
            differ too much) or ``built, not run: ...``.
        result: what the kit wrote, in the bundle.
        engine: what it built; None unless it was asked for.
    """

    host: str
    target: str
    status: str
    ok: bool
    result: Path
    engine: Path | None


def deploy(
    bundle: Path | str,
    hosts: str | Sequence[str],
    target: str | None = None,
    settings: Settings | None = None,
) -> list[Deployed]:
    """Build, check and measure a bundle's kit on devices, and read the results into the bundle.

    Several devices work at the same time; their results are read in the order given, so that the
    bundle's row has the last one, and each one's own stays in ``TARGET/devices/HOST``.

    Args:
        hosts: ``user@host`` or aliases of ssh's configuration.
        target: whose kit, where the bundle has several.

    Raises:
        EdgekitError: a device could not be reached, does not fit, or the work was broken off
            there. The others are finished first.
    """
    settings = settings or Settings()
    kit, names = find_kit(Path(bundle), target), hosts_of(hosts)
    done, failed, alone = list[Deployed](), dict[str, EdgekitError](), len(names) == 1
    with ExitStack() as stack:
        started = []
        for host in names:
            with _noted(failed, host, alone):
                device = stack.enter_context(Device(host, kit, settings))
                device.prepare()
                device.start()
                started.append(device)
        for device in started:
            with _noted(failed, device.host, alone):
                done.append(_read(device, device.finish()))
    if failed:
        raise _all_of(failed, [one.host for one in done])
    return done


def _read(device: Device, result: Path) -> Deployed:
    bundle = single.read_back(device.kit.bundle, result)
    row = next(
        row
        for row in bundle.manifest.rows
        if row.target == device.kit.target and row.format == "on_device"
    )
    engine = result.with_name("engine.plan") if device.settings.engine else None
    return Deployed(device.host, row.target, row.status, row.ok, result, engine)


@contextmanager
def _noted(failed: dict[str, EdgekitError], host: str, alone: bool) -> Iterator[None]:
    """Keep a host's error, so that no other is left out for it; raise it where it is alone."""
    try:
        yield
    except EdgekitError as error:
        if alone:
            raise
        failed[host] = error
        progress.say(f"{host}: {error.what}")


def _all_of(failed: dict[str, EdgekitError], done: list[str]) -> EdgekitError:
    finished = f" {', '.join(done)} finished." if done else ""
    why = "\n".join(f"{host}: {error.what} {error.why}" for host, error in failed.items())
    fixes = dict.fromkeys(error.fix for error in failed.values() if error.fix)
    return EdgekitError(f"{', '.join(failed)} did not.{finished}", why, "\n".join(fixes))


def stop(
    bundle: Path | str,
    hosts: str | Sequence[str],
    target: str | None = None,
    settings: Settings | None = None,
) -> dict[str, str]:
    """End the runs of a bundle's kit on devices. Returns what each host says."""
    kit, said = find_kit(Path(bundle), target), {}
    for host in hosts_of(hosts):
        with Device(host, kit, settings or Settings()) as device:
            said[host] = device.stop()
    return said


def planned(
    bundle: Path | str,
    hosts: str | Sequence[str],
    target: str | None = None,
    settings: Settings | None = None,
) -> list[str]:
    """What ``deploy`` would do, in lines. Nothing connects, and nothing is changed."""
    settings = settings or Settings()
    kit = find_kit(Path(bundle), target)
    size = kit.bytes_of(list(kit.hashes)) / 1e6
    tool = "rsync, or sftp where the host has none" if has_rsync() else "sftp"
    lines = [f"The kit for {kit.target}, {kit.path}: {len(kit.hashes)} files, {size:.1f} MB"]
    for host in hosts_of(hosts):
        device = Device(host, kit, settings)
        found = device.resolved()
        lines += [
            f"{host}: {found['user']}@{found['hostname']}, port {found['port']}",
            f"  copy to {device.folder} by {tool}, what is there being left",
            "  check the SHA-256 of every file there",
            f"  {settings.python} run.pyz --check --json {' '.join(settings.flags)}".rstrip(),
            f"  {settings.python} run.pyz --background {' '.join(settings.flags)}".rstrip(),
            f"  fetch result.json{' and engine.plan' if settings.engine else ''} to "
            f"{device.destination}",
        ]
    return lines
