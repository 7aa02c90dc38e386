"""Pipeline: the segments of a split model as one artifact, a folder ``NAME.streams``.

It holds an artifact of one format for each segment (``converters.streams``) and ``plan.json``,
which says what each takes and gives, and which may run at the same time. Values have the names of
inputs and, with ``streams.SENT``, nodes of the whole graph.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from edgekit import files
from edgekit.converters import Artifact
from edgekit.converters.streams import SENT, Split
from edgekit.errors import EdgekitError
from edgekit.find import find
from edgekit.model import Input
from edgekit.targets.runtimes import Arrays, Runtime

if TYPE_CHECKING:
    from edgekit.model import Graph
    from edgekit.targets import Target

SUFFIX, PLAN = ".streams", "plan.json"


class Part(BaseModel):
    """One segment.

    Attributes:
        step: parts of one step do not depend on each other, only on those of earlier steps.
        inputs, outputs: the values that its artifact takes and gives, by these names.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    file: str
    stream: str
    step: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class Plan(BaseModel):
    """``plan.json``.

    Attributes:
        inputs: of the whole model, as in a bundle's manifest.
        outputs: name of each of the whole model's outputs -> the value that it is.
        sent_bytes: what all values that go from part to part take, for a batch of the usual size.
        repeated_bytes: weights that are stored once more, because several parts use them.
        parts: in an order in which they can run.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    format: str
    inputs: tuple[Any, ...]
    outputs: dict[str, str]
    sent_bytes: int
    repeated_bytes: int
    parts: tuple[Part, ...]

    @classmethod
    def read(cls, folder: Path) -> Plan:
        """The plan of a folder.

        Raises:
            EdgekitError: there is none, or it is malformed.
        """
        try:
            return cls.model_validate_json((folder / PLAN).read_text(encoding="utf-8"))
        except (OSError, ValidationError) as error:
            raise EdgekitError(
                f"{folder} holds no split model.",
                f"{PLAN} cannot be read: {error}",
                "Make one with --split-streams.",
            ) from error


def convert(source: Split | Path, format: str, out: Path, target: Target) -> Artifact:
    """The artifact of a format for each segment, in the folder ``out``.

    Args:
        source: the segments' graphs, or the folder of artifacts that the format is made from.

    Raises:
        EdgekitError: a segment cannot be converted.
    """
    converter = find("converters", format)
    suffix = Path(converter.NAME).suffix
    given: dict[str, Graph | Path]
    if isinstance(source, Split):
        given = {segment.name: segment.graph for segment in source.segments}
        plan = _planned(source, format)
    else:
        plan = Plan.read(source)
        given = {part.name: source / part.file for part in plan.parts}
    parts = tuple(p.model_copy(update={"file": f"{p.name}{suffix}"}) for p in plan.parts)
    plan = plan.model_copy(update={"format": format, "parts": parts})
    details = {}
    with files.atomic(out) as room:
        room.mkdir()
        for part in parts:
            made = converter.convert(given[part.name], room / part.file, target)
            details[part.name] = dict(made.details)
        (room / PLAN).write_text(plan.model_dump_json(indent=1), encoding="utf-8")
    counted = {
        "streams": list(dict.fromkeys(part.stream for part in parts)),
        "segments": len(parts),
        "steps": parts[-1].step + 1,
        "sent_bytes": plan.sent_bytes,
        "repeated_bytes": plan.repeated_bytes,
    }
    return Artifact(format, out, {**counted, "parts": details})


def _planned(split: Split, format: str) -> Plan:
    from dataclasses import asdict

    own = {spec.name for spec in split.inputs}
    sent = {i.name: i for s in split.segments for i in s.graph.inputs if i.name not in own}
    return Plan(
        format=format,
        inputs=tuple(asdict(spec) for spec in split.inputs),
        outputs=dict(split.outputs),
        sent_bytes=sum(_bytes(spec) for spec in sent.values()),
        repeated_bytes=split.repeated,
        parts=tuple(
            Part(
                name=segment.name,
                file="",
                stream=segment.stream,
                step=segment.step,
                inputs=tuple(spec.name for spec in segment.graph.inputs),
                outputs=segment.graph.outputs,
            )
            for segment in split.segments
        ),
    )


def _bytes(spec: Input) -> int:
    return int(np.prod(spec.concrete())) * np.dtype(spec.dtype).itemsize


class Pipeline(Runtime):
    """The parts of a split model, run one after the other."""

    def __init__(self, folder: Path, runtime: str, threads: int | None) -> None:
        self.plan = Plan.read(folder)
        open = find("runtimes", runtime).open
        self._sessions: dict[str, Runtime] = {}
        try:
            for part in self.plan.parts:
                self._sessions[part.name] = open(folder / part.file, threads)
        except EdgekitError:
            self.close()
            raise
        self._times: dict[str, list[float]] = {part.name: [] for part in self.plan.parts}

    def close(self) -> None:
        """Free every part."""
        for session in self._sessions.values():
            session.close()

    @property
    def batch(self) -> int | None:
        """Samples that one call takes; None if any number."""
        first = Input.restore(self.plan.inputs[0]).shape[0]
        return first if isinstance(first, int) else None

    def infer(self, inputs: Arrays) -> Arrays:
        """Outputs by name for inputs by name, batch first."""
        values = dict(inputs)
        for part in self.plan.parts:
            start = time.perf_counter()
            values |= self._sessions[part.name].infer(_taken(part, values))
            self._times[part.name].append(time.perf_counter() - start)
        return {name: values[value] for name, value in self.plan.outputs.items()}

    def parts(self) -> dict[str, float]:
        """Median milliseconds of each part in the calls so far."""
        return {name: float(np.median(times)) * 1e3 for name, times in self._times.items() if times}

    def device_times(self) -> dict[str, float]:
        """Of all parts together; what is sent from part to part goes through the host."""
        times = [session.device_times() for session in self._sessions.values()]
        names = times[0] if all(times) else {}
        return {name: sum(each[name] for each in times) for name in names}


def load(runtime: str, artifact: Path, threads: int | None = None) -> Runtime:
    """An artifact, or a folder of parts, opened in a runtime."""
    if artifact.suffix == SUFFIX:
        return Pipeline(artifact, runtime, threads)
    opened: Runtime = find("runtimes", runtime).open(artifact, threads)
    return opened


def trace(runtime: str, artifact: Path, inputs: Arrays) -> Arrays:
    """Intermediate values by name, for one call."""
    module = find("runtimes", runtime)
    if artifact.suffix != SUFFIX:
        values: Arrays = module.trace(artifact, inputs)
        return values
    found = dict(inputs)
    for part in Plan.read(artifact).parts:
        file, given = artifact / part.file, _taken(part, found)
        # A runtime may call an output otherwise where it is traced.
        with module.open(file) as session:
            found |= {**module.trace(file, given), **session.infer(given)}
    return {name.removesuffix(SENT): value for name, value in found.items()}


def _taken(part: Part, values: Mapping[str, np.ndarray[Any, Any]]) -> Arrays:
    return {name: values[name] for name in part.inputs}
