"""The kit of a bundle, as it is before it is copied."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from edgekit import files
from edgekit.bundle import Bundle, Row
from edgekit.errors import EdgekitError


@dataclass(frozen=True)
class Kit:
    """What goes to a device.

    Attributes:
        name: of its folder there; another kit has another name.
        hashes: SHA-256 of each file, by its name.
    """

    bundle: Path
    target: str
    path: Path
    name: str
    hashes: dict[str, str]

    def bytes_of(self, names: list[str]) -> int:
        """How large these files are."""
        return sum((self.path / name).stat().st_size for name in names)


def find_kit(path: Path, target: str | None = None) -> Kit:
    """The bundle's kit for a target.

    Raises:
        EdgekitError: no bundle, no kit in it, several to choose from, or a damaged one.
    """
    bundle = Bundle.open(path)
    row = _row(bundle, target)
    folder = path / str(row.path)
    if not folder.is_dir() or files.sha256(folder) != row.sha256:
        raise EdgekitError(
            f"{folder} is not the kit that was built.",
            "A file of it was changed, added or removed; a run of run.pyz there adds some.",
            "Build the bundle again with the same command: what is whole is used again.",
        )
    hashes = {file.name: files.sha256(file) for file in sorted(folder.iterdir())}
    plain = re.sub(r"[^A-Za-z0-9_.]+", "-", path.resolve().name).strip("-.") or "bundle"
    name = f"{plain[:40]}-{row.target}-{files.digest(hashes)[:12]}"
    return Kit(path, row.target, folder, name, hashes)


def _row(bundle: Bundle, target: str | None) -> Row:
    """The row of the kit that is meant."""
    kits = {row.target: row for row in bundle.manifest.rows if row.format == "on_device"}
    made = {name: row for name, row in kits.items() if row.path is not None}
    again = "Build it with --target, such as jetson-orin-nano-super."
    if target is None and len(made) > 1:
        raise EdgekitError(
            f"{bundle.path} has several kits.", "", f"Choose: --target {' or '.join(made)}."
        )
    if not made:
        failed = "; ".join(f"{name}: {row.status}" for name, row in kits.items())
        why = failed or f"Its targets: {', '.join(bundle.manifest.targets)}."
        raise EdgekitError(f"{bundle.path} has no on-device kit.", why, again)
    chosen = next(iter(made)) if target is None else target
    if chosen not in made:
        raise EdgekitError(
            f"{bundle.path} has no kit for {chosen}.", f"It has one for {', '.join(made)}.", again
        )
    return made[chosen]
