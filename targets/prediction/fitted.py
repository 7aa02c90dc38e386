"""Fitted: the parameters in ``fitted.toml`` and how far predictions with them were off."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict

FILE = Path(__file__).with_name("fitted.toml")


class Device(BaseModel):
    """What is known of a device that points are of.

    Attributes:
        points: how many.
        runtime: theirs.
        factor: by which measured times are those of the formula, held towards 1 where they are few.
    """

    model_config = ConfigDict(frozen=True)

    points: int
    runtime: str
    factor: float


class Spread(BaseModel):
    """How far predictions were off where they were not fitted.

    Attributes:
        devices, points: how many were held out in turn.
        median_error: of |predicted / measured - 1|.
        factor: nine in ten were within it, up or down, devices weighing alike.
        coverage: the share of points that such an interval held, made without their device.
    """

    model_config = ConfigDict(frozen=True)

    devices: int
    points: int
    median_error: float
    factor: float
    coverage: float


class Fitted(BaseModel):
    """The content of ``fitted.toml``.

    Attributes:
        command: that made it.
        points, sources: what it was fitted on.
        cpu: whose points those of the target ``cpu`` are.
        parameters: of ``roofline``.
        devices: ``NAME/RUNTIME`` -> what is known of it there.
        unseen: runtime -> spread where the whole device was left out; ``all`` is of every point.
        seen: spread where models were left out, and their devices known.
        known: runtime -> classes of operators, as ``kind dtype``, that its points spend time on.
        memory: runtime -> (megabytes that it takes itself, median error of the whole).
    """

    model_config = ConfigDict(frozen=True)

    command: str
    points: int
    sources: str
    cpu: str = ""
    parameters: Mapping[str, float]
    devices: Mapping[str, Device]
    unseen: Mapping[str, Spread]
    seen: Spread
    known: Mapping[str, tuple[str, ...]]
    memory: Mapping[str, tuple[float, float]] = {}


@cache
def fitted() -> Fitted:
    """What was fitted."""
    return Fitted.model_validate(tomllib.loads(FILE.read_text(encoding="utf-8")))
