"""Converters: one file per format, each with the same five names.

- ``NAME``: what the artifact's file or folder is called in a bundle.
- ``RUNTIME``: the runtime that runs it, or None if only the device can.
- ``ACCEPTS``: ``"graph"``, or the name of the converter whose artifact it takes.
- ``REQUIRES``: ``{import name: pip name}`` of the packages it needs.
- ``convert(source, out, target) -> Artifact``: writes ``out`` or raises; ``source``
  is a Graph or the path of the accepted artifact.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Artifact:
    """A finished file or folder in one format.

    Attributes:
        format: the converter's name.
        path: where it is.
        details: facts for the manifest (opset, memory in bytes, build time in seconds, ...).
    """

    format: str
    path: Path
    details: Mapping[str, Any] = field(default_factory=dict)
