"""The one registry: a file's name is its registration.

A room is a package; a member of it is a file that defines the room's entry point
(a converter defines ``convert``, a family ``load``, ...). Adding a member is adding a file.
Modules in these rooms import nothing heavy at the top, so that looking is cheap.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Iterable
from types import ModuleType

from edgekit.errors import EdgekitError

#: room -> (package, entry point that makes a file a member, singular noun)
ROOMS = {
    "families": ("edgekit.families", "load", "model family"),
    "converters": ("edgekit.converters", "convert", "converter"),
    "rewrites": ("edgekit.converters.rewrites", "rewrite", "rewrite"),
    "passes": ("edgekit.compress", "PASS", "pass"),
    "metrics": ("edgekit.metrics", "score", "metric"),
    "ranges": ("edgekit.quantize.ranges", "Range", "range method"),
    "runtimes": ("edgekit.targets.runtimes", "open", "runtime"),
}


def names(room: str) -> list[str]:
    """Names of all members of a room, sorted."""
    package, entry, _ = ROOMS[room]
    files = pkgutil.iter_modules(importlib.import_module(package).__path__)
    return sorted(
        file.name
        for file in files
        if not file.ispkg and hasattr(importlib.import_module(f"{package}.{file.name}"), entry)
    )


def find(room: str, name: str) -> ModuleType:
    """The module called ``name`` in a room.

    Raises:
        EdgekitError: no such member; the message names the nearest ones.
    """
    package, _, noun = ROOMS[room]
    known = names(room)
    if name not in known:
        raise unknown(noun, name, known)
    return importlib.import_module(f"{package}.{name}")


def unknown(noun: str, name: str, known: Iterable[str]) -> EdgekitError:
    """The error for a name that is not among ``known``, with the nearest of them."""
    choices = sorted(known)
    near = difflib.get_close_matches(name, choices, n=3, cutoff=0.5)
    return EdgekitError(
        f"Unknown {noun} {name!r}.",
        f"edgekit knows: {', '.join(choices)}.",
        f"Did you mean {' or '.join(near)}?" if near else "",
    )
