"""Packages: which optional packages are here, and the exact command for those that are not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import metadata, util

from edgekit.errors import EdgekitError
from edgekit.find import find


def missing(requires: Mapping[str, str]) -> list[str]:
    """Of ``{import name: pip name}``, the pip names whose import is not installed."""
    return [pip for name, pip in requires.items() if util.find_spec(name) is None]


def versions(requires: Mapping[str, str]) -> dict[str, str]:
    """Installed versions by pip name; by another one, such as onnxruntime-gpu, if that gave it."""
    here = ((name, pip) for name, pip in requires.items() if util.find_spec(name))
    return {pip: metadata.version(pip) for name, wanted in here for pip in _givers(name, wanted)}


def _givers(name: str, pip: str) -> list[str]:
    """The pip package that an import came in: ``pip``, else another; none if it is not pip's."""
    try:
        metadata.distribution(pip)
    except metadata.PackageNotFoundError:
        return list(dict.fromkeys(metadata.packages_distributions().get(name, ())))
    return [pip]


def install_command(pips: Iterable[str]) -> str:
    """What installs them."""
    return f"pip install {' '.join(sorted(set(pips)))}"


def require(room: str, members: Iterable[str]) -> None:
    """Raise unless what these members of a room need (their ``REQUIRES``) is installed.

    Raises:
        EdgekitError: something is missing; the message has the command that installs it.
    """
    absent = {name: missing(find(room, name).REQUIRES) for name in members}
    pips = [pip for needed in absent.values() for pip in needed]
    if pips:
        lacking = ", ".join(name for name, needed in absent.items() if needed)
        raise EdgekitError(
            f"{lacking} needs packages that are not installed: {', '.join(pips)}.",
            "",
            f"Run: {install_command(pips)}",
        )
