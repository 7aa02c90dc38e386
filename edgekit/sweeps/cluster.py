"""Cluster: cells done by Ray, each on a node that has its device.

A node offers its device as a resource of the target's name: ``ray start --address=HOST:6379
--resources='{"jetson-orin-nano-super": 1}'``. A cell for a target that some node offers runs on
such a node, one at a time, and is measured there; any other cell runs anywhere and is predicted.

A cell whose node dies is run again by Ray, on another node that has its device; where there is
none, we wait for one. A bundle comes back as one tar through Ray's object store, with its row.
"""

from __future__ import annotations

import contextlib
import getpass
import io
import os
import socket
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from edgekit import files, interrupt, packages
from edgekit.errors import EdgekitError
from edgekit.progress import say
from edgekit.sweeps.cell import Task
from edgekit.sweeps.processes import Process
from edgekit.sweeps.result import Result, failed

#: How often Ray runs a cell again whose node or worker died.
RETRIES = 5
#: What keeps Ray from sending usage statistics, and from printing the logs of nodes that die. We
#: say ourselves what matters; a cell's own log is in its row or beside it.
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS_SKIP_REGEX": "."}
#: Seconds that a cluster has to answer.
CONNECT = 10.0
#: Seconds between two looks at the cluster.
LOOK = 0.5
#: Does a task on a node, in the folder that its paths name.
Work = Callable[[Task], Result]


class Cluster:
    """A connection to a Ray cluster; one that was there before is used, and left as it is.

    Raises:
        EdgekitError: Ray is not installed, or no cluster answers at the address.
    """

    def __init__(self, address: str) -> None:
        if packages.missing({"ray": "ray"}):
            raise EdgekitError(
                "A sweep on several machines needs a package that is not installed: ray.",
                "",
                f"Run: {packages.install_command(['ray'])}, with the same version on every node.",
            )
        self._address = address
        self._mine = False

    def __enter__(self) -> Self:
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        import ray

        self._ray = ray
        if ray.is_initialized():
            return self
        try:
            _answers(self._address)
            ray.init(address=self._address, log_to_driver=False, logging_level="ERROR")
        except (OSError, RuntimeError, ValueError) as error:
            raise EdgekitError(
                f"No Ray cluster can be used at {self._address}.",
                str(error).strip().partition("\n")[0],
                "Start one with `ray start --head`, and give its address, HOST:6379.",
            ) from error
        self._mine = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._mine:
            self._ray.shutdown()

    def offered(self) -> frozenset[str]:
        """Names of all resources of the nodes that are alive."""
        alive = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        return frozenset(name for resources in alive for name, count in resources.items() if count)

    def done(
        self, tasks: Iterable[Task], logs: Path, wait: float, work: Work | None = None
    ) -> Iterator[Result]:
        """Results as they come, their bundles in place; what runs at the end is cancelled.

        Args:
            tasks: where the bundles go; nodes build in folders of their own.
            logs: the folder for what the nodes' processes said.
            wait: seconds to wait for a device that left the cluster.
            work: does a task on a node; None is the real work.
        """
        at_work = _AtWork(self, self._ray, wait)
        offered = self.offered()
        for task in tasks:
            at_work.submit(task, task.cell.target in offered, work or in_process)
        try:
            yield from at_work.results(logs)
        finally:
            at_work.cancel(list(at_work.running))


def _answers(address: str) -> None:
    """Raise OSError if nothing listens at HOST:PORT; Ray itself goes on trying for minutes."""
    host, _, port = address.rpartition(":")
    if port.isdigit():
        socket.create_connection((host, int(port)), timeout=CONNECT).close()


class _AtWork:
    """Cells that Ray has and that have given no result yet."""

    def __init__(self, cluster: Cluster, ray: Any, wait: float) -> None:
        self._cluster, self._ray, self._wait = cluster, ray, wait
        self.running: dict[Any, Task] = {}
        self._bound: set[Any] = set()
        self._lost: dict[str, float] = {}

    def submit(self, task: Task, bound: bool, work: Work) -> None:
        """Hand a cell to Ray; ``bound`` to a node that offers its target."""
        target = task.cell.target
        remote = self._ray.remote(_on_node).options(
            name=task.cell.name,
            num_cpus=1,
            resources={target: 1} if bound else {},
            max_retries=RETRIES,
            scheduling_strategy="DEFAULT" if bound else "SPREAD",
        )
        wanted = task.model_copy(update={"measure": bound}).model_dump_json(exclude_unset=True)
        ref = remote.remote(work, wanted, os.getcwd(), os.environ.get("OMP_NUM_THREADS"))
        self.running[ref] = task
        if bound:
            self._bound.add(ref)

    def results(self, logs: Path) -> Iterator[Result]:
        """Results as they come, until there are none left."""
        while self.running:
            interrupt.check()
            ready, _ = self._ray.wait(list(self.running), num_returns=1, timeout=LOOK)
            for ref in ready:
                yield self._fetched(ref, self.running.pop(ref), logs)
            yield from self._given_up()

    def _fetched(self, ref: Any, task: Task, logs: Path) -> Result:
        """The row of a cell, after its bundle and log were written."""
        try:
            text, tar, log = self._ray.get(ref)
        except self._ray.exceptions.RayError as error:
            last = str(error).strip().rpartition("\n")[2]
            return failed(task.cell, EdgekitError(f"Ray gave no result: {last}", str(error)))
        (logs / f"{task.cell.name}.log").write_bytes(log)
        if tar is not None:
            unpack(tar, task.bundle)
        return Result.model_validate_json(text)

    def _given_up(self) -> Iterator[Result]:
        """Rows of the cells whose device is gone for too long."""
        missing = {self.running[ref].cell.target for ref in self._bound & set(self.running)}
        missing -= self._cluster.offered()
        for target in list(self._lost):
            if target not in missing:
                say(f"A node offers {target} again.")
                del self._lost[target]
        for target in sorted(missing):
            if target not in self._lost:
                say(f"No node offers {target} any more: waiting {self._wait:.0f} s for one.")
            since = self._lost.setdefault(target, time.monotonic())
            if time.monotonic() - since >= self._wait:
                yield from self._without(target)

    def _without(self, target: str) -> Iterator[Result]:
        refs = [
            r for r in self._bound if r in self.running and self.running[r].cell.target == target
        ]
        error = EdgekitError(
            f"No node offers {target} any more.",
            f"None came back within {self._wait:.0f} s.",
            "Start one, and run the same command again; --wait says how long to wait.",
        )
        cells = [self.running[ref].cell for ref in refs]
        self.cancel(refs)
        yield from (failed(cell, error) for cell in cells)

    def cancel(self, refs: list[Any]) -> None:
        """Stop cells, those that run too."""
        for ref in refs:
            self._ray.cancel(ref, force=True)
            self.running.pop(ref, None)


def _on_node(
    work: Work, text: str, here: str, threads: str | None
) -> tuple[str, bytes | None, bytes]:
    """A task on a node: its row, its bundle as a tar, and its log.

    Args:
        here: the driver's folder, from which relative paths hold where the node has it too.
        threads: the driver's OMP_NUM_THREADS.
    """
    _undo_ray(threads)
    if os.path.isdir(here):
        os.chdir(here)
    with tempfile.TemporaryDirectory(prefix="edgekit-sweep-") as name:
        folder = Path(name)
        task = Task.model_validate_json(text)
        task = task.model_copy(
            update={
                "bundle": folder / "bundles" / task.cell.name,
                "answer": folder / "answer.json",
                "like": (),
                "lock": Path(tempfile.gettempdir()) / f"edgekit-sweep-{getpass.getuser()}.lock",
            }
        )
        found = _doubted(work(task))
        log = task.answer.with_suffix(".log")
        tar = pack(task.bundle) if found.bundle is not None else None
        return found.model_dump_json(), tar, log.read_bytes() if log.exists() else b""


def _undo_ray(threads: str | None) -> None:
    """Let a cell use the node as its user would.

    For tasks Ray lowers the priority, limits OpenMP to the CPUs that they ask for, and hides all
    GPUs from those that ask for none; a node that offers a device takes one cell at a time anyway.
    """
    os.environ.pop("OMP_NUM_THREADS", None)
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = threads
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        del os.environ["CUDA_VISIBLE_DEVICES"]
    with contextlib.suppress(PermissionError):  # only root may; what is then measured says so
        os.setpriority(os.PRIO_PROCESS, 0, 0)


def _doubted(found: Result) -> Result:
    """A row that says so if it was measured while any other process went first."""
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    if found.kind != "measured" or nice <= 0:
        return found
    doubt = f"Measured at niceness {nice}: start the node with RAY_worker_niceness=0."
    return found.model_copy(update={"detail": f"{found.detail}\n{doubt}".strip()})


def in_process(task: Task) -> Result:
    """A cell in a process of its own, as on one machine; its log lies beside its answer."""
    process = Process(task, task.answer.with_suffix(".log"))
    try:
        return process.result()
    finally:
        process.stop()


def pack(folder: Path) -> bytes:
    """A folder's contents as a tar; it is not compressed, since weights hardly are compressible."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        tar.add(folder, arcname=".")
    return stream.getvalue()


def unpack(content: bytes, folder: Path) -> None:
    """Put what ``pack`` gave in place of ``folder``, whole."""
    with files.atomic(folder) as room, tarfile.open(fileobj=io.BytesIO(content)) as tar:
        tar.extractall(room, filter="data")
