"""Layers of the source in eager PyTorch, by ``torch.profiler``: operators within their modules.

A module's forward is marked by a hook with the module's path; an operator counts for the innermost
mark that it is called in, with all that it calls itself, less what noting that cost. What Python
does between operators is in no layer, and a recurrence that is written as a loop in Python is the
operators that it calls.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from edgekit import interrupt
from edgekit.profiling import CALLS, WARMUP, Layer, Layers
from edgekit.profiling.classes import class_of
from edgekit.profiling.origins import in_attention, role_in

if TYPE_CHECKING:
    import torch

    from edgekit.model import Model
    from edgekit.targets.runtimes import Arrays

#: More events than these within an operator are those of a loop.
_LOOP = 50
#: Before a module's path in the name of its mark.
_MARK = "edgekit module: "


def layers(model: Model, inputs: Arrays, threads: int) -> Layers:
    """The operators of one call of the source, one layer an operator and module."""
    # It says on stderr when it starts and stops.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    from torch.profiler import ProfilerActivity, profile

    from edgekit.targets.runtimes.torch import Eager, torch_threads

    eager = Eager(model)
    whole, marked, noted, calls, counts = [], [], [], [], []
    with torch_threads(threads):
        for _ in range(WARMUP + CALLS):
            whole.append(_seconds(lambda: eager.infer(inputs)))
            with _marked(model.module):
                marked.append(_seconds(lambda: eager.infer(inputs)))
                with profile(activities=[ProfilerActivity.CPU]) as profiler:
                    noted.append(_seconds(lambda: eager.infer(inputs)))
            roots = [event for event in profiler.events() or () if event.cpu_parent is None]
            calls.append(_operators(roots))
            counts.append(sum(1 + _within(root) for root in roots))
    taken: dict[tuple[str, str], list[float]] = {}
    loops = {(o.module, o.name) for o in calls[-1] if o.within > _LOOP}
    for operators, seconds, count in list(zip(calls, noted, counts, strict=True))[WARMUP:]:
        # Microseconds that noting an event took in this call.
        note = max(0.0, (seconds - min(marked)) * 1e6 / count)
        sums: dict[tuple[str, str], float] = {}
        for module, name, microseconds, within in operators:
            ms = max(0.0, microseconds - within * note) / 1e3
            sums[module, name] = sums.get((module, name), 0.0) + ms
        for key, ms in sums.items():
            taken.setdefault(key, []).append(ms)
    found = [_layer(*key, median(ms) if key in loops else min(ms)) for key, ms in taken.items()]
    return Layers(found, *(min(times[WARMUP:]) * 1e3 for times in (whole, noted)))


def _layer(module: str, operator: str, milliseconds: float) -> Layer:
    role = role_in(operator, module)
    # A layer's own product is aten::linear; the others multiply two values.
    products = class_of(operator) in ("linear", "softmax") and not operator.endswith("::linear")
    if products and in_attention(module):
        role = "attention"
    name = f"{module}/{operator}" if module else operator
    return Layer(name, operator, module, milliseconds, role)


class _Operator(NamedTuple):
    """An operator that a module called; ``within`` are the events that it caused in turn."""

    module: str
    name: str
    microseconds: float
    within: int


def _operators(events: Iterable[Any], module: str = "") -> list[_Operator]:
    """The operators among events of a module, and of those that are marks of modules, theirs."""
    found = []
    for event in events:
        if event.name.startswith(_MARK):
            found += _operators(event.cpu_children, event.name.removeprefix(_MARK))
        else:
            taken = event.time_range.elapsed_us()
            found.append(_Operator(module, event.name, taken, _within(event)))
    return found


def _within(event: Any) -> int:
    return sum(1 + _within(inner) for inner in event.cpu_children)


@contextmanager
def _marked(module: torch.nn.Module) -> Iterator[None]:
    """Mark each module's forward in the profile."""
    from torch.profiler import record_function

    open_marks: list[Any] = []

    def before(path: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            mark = record_function(_MARK + path)
            mark.__enter__()  # type: ignore[no-untyped-call]
            open_marks.append(mark)

        return hook

    def after(*_: object) -> None:
        open_marks.pop().__exit__(None, None, None)

    handles = []
    for path, part in module.named_modules():
        handles.append(part.register_forward_pre_hook(before(path)))
        handles.append(part.register_forward_hook(after, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _seconds(call: Callable[[], object]) -> float:
    interrupt.check()
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
