"""Running what the pipelines of benchmarks/quantize.py made: outputs, and latency in turns."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
from peers.install import python_of

from edgekit.errors import EdgekitError
from edgekit.find import find

Arrays = dict[str, np.ndarray[Any, Any]]
SERVER = Path(__file__).parent / "peers" / "inductor_serve.py"
#: Calls in one block of a round; the first only wakes the threads up.
CALLS = 5


class Session(Protocol):
    """An open artifact."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *error: Any) -> None: ...
    def outputs(self) -> list[Arrays]: ...
    def block(self) -> float: ...


class Here:
    """An artifact in one of edgekit's runtimes, fed from an .npz of samples."""

    def __init__(self, artifact: Path, runtime: str, threads: int | None, data: Path) -> None:
        samples = dict(np.load(data))
        size = len(next(iter(samples.values())))
        self._batches = [{name: v[i : i + 1] for name, v in samples.items()} for i in range(size)]
        self._session = find("runtimes", runtime).open(artifact, threads)

    def __enter__(self) -> Self:
        self._session.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._session.__exit__(kind, error, trace)

    def outputs(self) -> list[Arrays]:
        """Of every sample."""
        return [self._session.infer(batch) for batch in self._batches]

    def block(self) -> float:
        """Milliseconds a call on the first sample."""
        times = []
        for _ in range(CALLS):
            start = time.perf_counter()
            self._session.infer(self._batches[0])
            times.append(time.perf_counter() - start)
        return float(np.median(times[1:])) * 1e3


class Inductor:
    """An exported program in torchao's environment; compiled where threads are given."""

    def __init__(self, artifact: Path, threads: int | None, data: Path) -> None:
        self._data = str(data)
        mode = "compiled" if threads else "eager"
        command = [python_of("torchao_inductor"), str(SERVER), str(artifact)]
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            [*command, str(threads or 2), mode],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self._process.communicate()
        self._log.close()

    def outputs(self) -> list[Arrays]:
        """Of every sample."""
        with tempfile.TemporaryDirectory() as scratch:
            out = Path(scratch) / "outputs.npz"
            self._ask({"inputs": self._data, "outputs": str(out)})
            found = np.load(out)["logits"]
        return [{"logits": row[None]} for row in found]

    def block(self) -> float:
        """Milliseconds a call on the first sample."""
        return float(np.median(self._ask({"inputs": self._data, "calls": CALLS})["ms"][1:]))

    def _ask(self, work: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(work) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            raise EdgekitError("Inductor cannot run the program.", self._log.read()[-500:])
        answer: dict[str, Any] = json.loads(line)
        return answer


def opened(artifact: Path, runtime: str, threads: int | None, data: Path) -> Session:
    """A session of any runtime; no threads are all of them."""
    if runtime == "inductor":
        return Inductor(artifact, threads, data)
    return Here(artifact, runtime, threads, data)


def take_turns(
    files: dict[str, tuple[Path, str]], data: Path, threads: int, seconds: float, most: int
) -> dict[str, np.ndarray[Any, Any]]:
    """Milliseconds a call: for each file one median a round, files in a new order each round.

    Args:
        files: the artifact and its runtime, by name.
        seconds: no round begins after this long, but there are three at least.
        most: rounds.
    """
    names = list(files)
    blocks: dict[str, list[float]] = {name: [] for name in names}
    with ExitStack() as stack:
        sessions = {n: stack.enter_context(opened(*files[n], threads, data)) for n in names}
        for session in sessions.values():
            session.block()  # Inductor compiles now
        end = time.perf_counter() + seconds
        for turn in range(most):
            if turn >= 3 and time.perf_counter() > end:
                break
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                blocks[name].append(sessions[name].block())
    return {name: np.array(values) for name, values in blocks.items()}
