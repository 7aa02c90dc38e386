"""Sweeps on a real Ray cluster of several nodes, some of which are killed at work."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from edgekit.errors import EdgekitError
from edgekit.sweeps import Grid, result, sweep
from edgekit.sweeps.cell import Task
from edgekit.sweeps.cluster import QUIET, Cluster, pack, unpack

if find_spec("ray") is None:
    pytest.skip("ray is not installed", allow_module_level=True)

ORIN, RTX, THOR = "jetson-orin-nano-super", "rtx-4090", "jetson-thor"
LEAST_STORE = 80 * 2**20
#: A node that does not answer is taken for dead after a few seconds, not twenty.
HEALTH = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 5000,
    "health_check_failure_threshold": 3,
}


def ours():
    """Processes below this one that Ray or a sweep started."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            line = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if "ray" in line or "edgekit.sweeps" in line:
            found.append(process)
    return found


@pytest.fixture(scope="module")
def cluster():
    """A head that does no work, two nodes with one device each, and one with another."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory("ray") as folder:
        # Light work is not to starve where other work shares the cores.
        for name, value in {**QUIET, "RAY_worker_niceness": "0"}.items():
            patch.setenv(name, value)
        # Ray writes the cluster's address below this folder, and does not make the place itself.
        patch.setenv("RAY_TMPDIR", folder)
        (Path(folder) / "ray").mkdir()
        from ray.cluster_utils import Cluster as Local

        head = {"num_cpus": 0, "include_dashboard": False, "temp_dir": folder}
        made = Local(
            initialize_head=True,
            head_node_args={
                **head,
                "object_store_memory": LEAST_STORE,
                "_system_config": HEALTH,
            },
        )
        made.orins = [node(made, ORIN), node(made, ORIN)]
        node(made, RTX)
        made.wait_for_nodes()
        yield made
        made.shutdown()
        assert not psutil.wait_procs(ours(), timeout=10)[1]


def node(cluster, target):
    return cluster.add_node(
        wait=False, num_cpus=1, resources={target: 1}, object_store_memory=LEAST_STORE
    )


def tasks(folder, targets, batches):
    """A task for each cell, whose bundle goes to ``folder``."""
    grid = Grid.check({"models": ["reference/lmu"], "targets": targets, "batches": batches}, "grid")
    return [
        Task(cell=cell, bundle=folder / cell.name, answer=folder / "unused")
        for cell in grid.cells()
    ]


def worker(board):
    """Light work that notes on a board which node takes which cell. Ray sends it by value.

    Those for an ORIN of other batches than 1 wait for the word ``go``; the others never do, so that
    a first result comes in whatever order Ray takes them.
    """

    def work(task):
        import ray

        here = ray.get_runtime_context().get_node_id()
        (board / f"{time.time_ns()} {task.cell.name} {here} {os.getpid()}").touch()
        waits = task.cell.target == ORIN and task.cell.batch != 1
        while waits and not (board / "go").exists():
            time.sleep(0.02)
        task.bundle.mkdir(parents=True)
        (task.bundle / "node.txt").write_text(here)
        row = result.blank(task.cell, "verified", True)
        measured = [{"latency_ms": {"p50": 1.0, "throughput": 1e3}}] if task.measure else []
        return row.model_copy(update={"bundle": task.cell.name, "latency": measured})

    return work


def takers(board, name):
    """The nodes that took a cell, in order."""
    notes = [note.name.split() for note in sorted(board.glob("* *"))]
    return [taker for _, cell, taker, _ in notes if cell == name]


def kill_one_at_work(cluster, board):
    """Kill a node that is at work for an ORIN, and let the others go on; (cell, node)."""
    while True:
        for note in sorted(board.glob(f"* *{ORIN}* *")):
            _, cell, taker, worker = note.name.split()
            if not cell.endswith("-b1"):
                kill(cluster, taker, int(worker))
                (board / "go").touch()
                return cell, taker
        time.sleep(0.02)


def kill(cluster, node_id, worker=None):
    (victim,) = [each for each in cluster.worker_nodes if each.node_id == node_id]
    cluster.remove_node(victim, allow_graceful=False)
    while worker is not None and psutil.pid_exists(worker):
        time.sleep(0.02)


def test_a_node_that_is_killed_loses_no_result(cluster, tmp_path):
    board, logs, out = (tmp_path / name for name in ("board", "logs", "out"))
    board.mkdir(), logs.mkdir()
    done, killed = {}, None
    with Cluster(cluster.address) as ray:
        assert {ORIN, RTX} <= ray.offered()
        assert THOR not in ray.offered()
        wanted = tasks(out, [ORIN, RTX, THOR], [1, 2, 3, 4])
        for row in ray.done(wanted, logs, 60, worker(board)):
            done[row.name] = row
            if killed is None:
                killed = kill_one_at_work(cluster, board)
    assert set(done) == {task.cell.name for task in wanted}
    assert all(row.ok for row in done.values())
    cell, dead = killed
    assert takers(board, cell)[0] == dead
    assert takers(board, cell)[-1] != dead
    for name, row in done.items():
        assert (out / name / "node.txt").read_text() in takers(board, name)
        assert bool(row.latency) == (row.target != THOR), "measured just where a node offers it"
    on = {target: {takers(board, n)[-1] for n in done if target in n} for target in (ORIN, RTX)}
    assert not on[ORIN] & on[RTX]


def test_a_device_that_left_is_waited_for(cluster, tmp_path, capsys, monkeypatch):
    board, logs = tmp_path / "board", tmp_path / "logs"
    board.mkdir(), logs.mkdir()
    rows, said = [], []

    def say(text):
        said.append(text)
        if "waiting" in text and len(said) == 1:
            node(cluster, ORIN)

    monkeypatch.setattr("edgekit.sweeps.cluster.say", say)
    with Cluster(cluster.address) as ray:
        wanted = [*tasks(tmp_path, [ORIN], [1, 2, 3]), *tasks(tmp_path, [RTX], [1])]
        for row in ray.done(wanted, logs, 60, worker(board)):
            rows.append(row)
            if len(rows) == 1:
                cell, last = kill_one_at_work(cluster, board)
        assert [row.ok for row in rows] == [True] * 4
        assert takers(board, cell)[-1] != last
        gone = f"No node offers {ORIN} any more: waiting"
        assert said == [f"{gone} 60 s for one.", f"A node offers {ORIN} again."]
        assert capsys.readouterr().out == "", "Ray is quiet"

        bound, others = tasks(tmp_path, [ORIN], [8, 9]), tasks(tmp_path, [RTX, THOR], [1])
        board = tmp_path / "second"
        board.mkdir()
        found = []
        for row in ray.done([*bound, *others], logs, 1, worker(board)):
            found.append(row)
            if len(found) == 1:
                kill_one_at_work(cluster, board)
    assert {row.name for row in found} == {task.cell.name for task in [*bound, *others]}
    assert {row.target for row in found if not row.ok} == {ORIN}
    assert all(f"No node offers {ORIN} any more" in row.status for row in found if not row.ok)
    assert said[2:] == [f"{gone} 1 s for one."]


def test_real_cells(cluster, tmp_path, digits_model, digits_folder):
    """Real work on real nodes; what no node offers is built as well, and not measured."""
    fields = {
        "models": [{"name": "digits", "model": f"timm/{digits_model}"}],
        "targets": ["cpu"],
        "evaluation": digits_folder,
        "evaluation_samples": 8,
    }
    grid = Grid.check(fields, "grid")
    (row,) = sweep(grid, tmp_path / "out", ray=cluster.address)
    assert row.ok, row.detail
    assert row.status == "verified"
    assert row.kind != "measured", "no node offers a cpu"
    assert (tmp_path / "out/bundles" / row.bundle / "manifest.json").exists()
    assert sweep(grid, tmp_path / "out", ray=cluster.address) == [row]


def test_what_no_address_answers(tmp_path):
    with pytest.raises(
        EdgekitError, match=r"No Ray cluster can be used at (?s:.*)ray start --head"
    ):
        Cluster("127.0.0.1:1").__enter__()


def test_a_bundle_travels_whole(tmp_path):
    (tmp_path / "one/deep").mkdir(parents=True)
    (tmp_path / "one/deep/engine.plan").write_bytes(b"\0" * 1000)
    (tmp_path / "two").mkdir()
    (tmp_path / "two/stale").touch()
    unpack(pack(tmp_path / "one"), tmp_path / "two")
    assert [path.name for path in (tmp_path / "two").rglob("*")] == ["deep", "engine.plan"]
    shutil.rmtree(tmp_path / "one")
    assert (tmp_path / "two/deep/engine.plan").read_bytes() == b"\0" * 1000
    assert Path(tmp_path / "two").is_dir()
