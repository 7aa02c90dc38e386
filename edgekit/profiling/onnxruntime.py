"""Layers by ONNX Runtime's own profiler.

It notes each kernel that it runs, within a loop those of every turn, which makes a scan over
short steps take ten times as long. So calls with and without the profiler take turns, and a loop is
given what the other kernels leave of a call without it: that is right to what ONNX Runtime does
between kernels, under a microsecond each. A kernel is given its time less that of the least one,
which is about what it takes to read the clock: a reshape moves nothing, and is noted with 2
microseconds.
"""

from __future__ import annotations

import bisect
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from edgekit import interrupt
from edgekit.errors import EdgekitError
from edgekit.profiling import CALLS, WARMUP, Layer, Layers
from edgekit.profiling.origins import Origin, Origins, role_of

if TYPE_CHECKING:
    from edgekit.targets.runtimes import Arrays

_KERNEL = "_kernel_time"
#: Operators that run others.
_LOOPS = {"Scan", "Loop", "If", "SequenceMap"}
#: Seconds to lose by profiling, after which two calls are enough.
_LOST = 2.0
#: Opens a session with options: ``edgekit.targets.runtimes.onnxruntime.session``.
Opener = Callable[[Any], Any]


class Kernel(NamedTuple):
    """A kernel that ran in a call; ``notes`` are those of what it ran itself, as a loop does."""

    name: str
    operator: str
    microseconds: float
    notes: int


class Call(NamedTuple):
    """One profiled call: its outermost kernels, and how many were noted in all."""

    microseconds: float
    kernels: tuple[Kernel, ...]
    notes: int


def layers(artifact: Path, inputs: Arrays, open_session: Opener) -> Layers:
    """The layers of one call of an ONNX file, each its quickest of several."""
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        plain, noted, calls = _run(inputs, open_session, Path(folder))
        optimized = onnx.load(str(Path(folder) / "optimized.onnx"), load_external_data=False)
    origins = Origins.read(artifact).of_kernels(optimized.graph.node)
    whole, profiled = min(plain) * 1e3, min(noted) * 1e3
    note = max(0.0, (profiled - whole) / calls[0].notes)
    clock = min(note, min(k.microseconds for call in calls for k in call.kernels) / 1e3)
    taken = _quickest(calls)
    loops = {(k.name, k.operator) for k in calls[0].kernels if k.notes}
    times = {key: max(0.0, ms - clock) for key, ms in taken.items() if key not in loops}
    left, looping = max(0.0, whole - sum(times.values())), sum(taken[key] for key in loops)
    found = [
        _layer(*key, origins, left * ms / looping if key in loops else times[key])
        for key, ms in taken.items()
    ]
    return Layers(found, whole, profiled)


def _quickest(calls: Sequence[Call]) -> dict[tuple[str, str], float]:
    """Milliseconds of each kernel, by name and operator, in the call where it took the least.

    A kernel of no name has its operator's and a number: it is the same one in each call.
    """
    found: dict[tuple[str, str], float] = {}
    for call in calls:
        sums: dict[tuple[str, str], float] = {}
        for kernel in call.kernels:
            key = kernel.name, kernel.operator
            sums[key] = sums.get(key, 0.0) + kernel.microseconds / 1e3
        found = {key: min(ms, found.get(key, ms)) for key, ms in sums.items()}
    return found


def _layer(name: str, operator: str, origins: Mapping[str, Origin], milliseconds: float) -> Layer:
    origin = origins.get(name, Origin())
    return Layer(name, operator, origin.module, milliseconds, role_of(operator, origin.role))


def _run(
    inputs: Arrays, open_session: Opener, folder: Path
) -> tuple[list[float], list[float], list[Call]]:
    """Seconds of calls without and with the profiler, and what it noted of the latter."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.add_session_config_entry(
        "session.optimized_model_external_initializers_file_name", "weights.bin"
    )
    plain, noted = open_session(onnxruntime.SessionOptions()), open_session(options)
    without: list[float] = []
    with_it: list[float] = []
    # A long loop is noted at length: two calls may have to do.
    while len(without) < 2 or (
        len(without) < WARMUP + CALLS and sum(with_it) - sum(without) < _LOST
    ):
        interrupt.check()
        without.append(_seconds(lambda: plain.run(None, inputs)))
        with_it.append(_seconds(lambda: noted.run(None, inputs)))
    notes = json.loads(Path(noted.end_profiling()).read_text(encoding="utf-8"))
    calls = calls_of(notes)
    if not calls:
        raise EdgekitError(
            "The call is too long to be profiled.",
            f"ONNX Runtime notes at most {len(notes):,} things, and there are more.",
            "Profile a shorter input.",
        )
    first = min(WARMUP, len(calls) - 1)
    return without[first:], with_it[first:], calls[first:]


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def calls_of(notes: Sequence[dict[str, Any]]) -> list[Call]:
    """The calls in a trace, in order."""
    timed = sorted((n for n in notes if "dur" in n), key=lambda n: (n["ts"], -n["dur"]))
    starts = [note["ts"] for note in timed]
    found = []
    for call in (note for note in timed if note.get("name") == "model_run"):
        first = bisect.bisect_left(starts, call["ts"])
        last = bisect.bisect_left(starts, call["ts"] + call["dur"])
        found.append(_call(call, timed[first:last]))
    return found


def _call(call: dict[str, Any], notes: Sequence[dict[str, Any]]) -> Call:
    """What was noted in a call; what is within a loop counts as part of it."""
    kernels: list[Kernel] = []
    loop_ends = 0
    timed = [n for n in notes if n.get("cat") == "Node" and n["name"].endswith(_KERNEL)]
    for note in timed:
        if note["ts"] < loop_ends:
            kernels[-1] = kernels[-1]._replace(notes=kernels[-1].notes + 1)
        else:
            operator = note["args"]["op_name"]
            if operator in _LOOPS:
                loop_ends = note["ts"] + note["dur"]
            name = note["name"].removesuffix(_KERNEL)
            kernels.append(Kernel(name, operator, note["dur"], 0))
    return Call(call["dur"], tuple(kernels), len(timed))
