"""How kits are deployed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from edgekit.errors import EdgekitError

#: Options of the kit that deploy gives itself.
OURS = ("background", "follow", "stop", "check", "json", "result", "cold-start")


@dataclass(frozen=True)
class Settings:
    """How kits are deployed.

    Attributes:
        python: the host's Python that has NumPy and TensorRT: a path or a name.
        folder: of the host, where each kit gets a folder; relative to the home folder.
        ssh_options: ``Name=value`` of ssh_config, such as ``Port=2222``.
        kit_options: of the kit's ``run.pyz``, without dashes: ``iterations=200``, ``any-gpu``.
        engine: fetch the engine, too.
    """

    python: str = "/usr/bin/python3"
    folder: str = "~/.cache/edgekit"
    ssh_options: tuple[str, ...] = ()
    kit_options: tuple[str, ...] = ()
    engine: bool = False

    def __post_init__(self) -> None:
        """Raise EdgekitError for what no host could take."""
        if self.python.startswith("-") or not self.python or not self.python.isprintable():
            raise EdgekitError(f"--python {self.python!r} is not the name of a program.")
        if not self.folder or not self.folder.isprintable():
            raise EdgekitError(f"--folder {self.folder!r} is not a folder's name.")
        for option in self.kit_options:
            name = option.partition("=")[0]
            if name in OURS or not re.fullmatch(r"[a-z][a-z-]*", name):
                raise EdgekitError(
                    f"--kit-option {option} cannot be given.",
                    "It is an option of deploy's own." if name in OURS else "",
                    "Write NAME or NAME=VALUE, as run.pyz --help of the kit names them.",
                )

    @property
    def flags(self) -> list[str]:
        """The kit's options as it takes them."""
        return [f"--{option}" for option in self.kit_options]


def hosts_of(hosts: str | Sequence[str]) -> list[str]:
    """One host or several, each once."""
    return list(dict.fromkeys([hosts] if isinstance(hosts, str) else hosts))
