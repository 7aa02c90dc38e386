"""A pytest plugin: latency in a project's own tests, by the fixture ``edgekit_benchmark``.

    def test_bundle_is_fast(edgekit_benchmark):
        found = edgekit_benchmark("bundle", target="cpu", max_p90_ms=5)
        assert found.throughput > 200

    def test_function_is_fast(edgekit_benchmark):
        edgekit_benchmark(lambda: model(image), max_p50_ms=2)

    def test_no_slower_than_last_release(edgekit_benchmark):
        edgekit_benchmark.paired("model.onnx", "released.onnx", max_ratio=1.05)

A budget fails only after three attempts, since other work can make code slower, not faster; what
is given is the best attempt. A ratio is taken in turns, so it holds on a busy machine too, and
fails only if its whole interval lies above ``max_ratio``. What cannot run here is skipped.

``--edgekit-json FILE`` saves all results for ``edgekit bench --compare``; ``--edgekit-no-budgets``
measures without judging. It imports nothing heavy until a test uses the fixture.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from edgekit.latency.fixture import Benchmark

_ROWS: pytest.StashKey[list[dict[str, Any]]] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    """The plugin's flags."""
    group = parser.getgroup("edgekit", "latency with edgekit_benchmark")
    group.addoption("--edgekit-json", type=Path, metavar="FILE", help="save all results as JSON")
    group.addoption(
        "--edgekit-no-budgets", action="store_true", help="measure, but fail no test for it"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Start with no results."""
    config.stash[_ROWS] = []


@pytest.fixture
def edgekit_benchmark(request: pytest.FixtureRequest) -> Benchmark:
    """Measure latency: see ``edgekit.latency.fixture.Benchmark``."""
    from edgekit.latency.fixture import Benchmark

    judge = not request.config.getoption("--edgekit-no-budgets")
    return Benchmark(request.node.nodeid, judge, request.config.stash[_ROWS].append)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Save the results; a worker of pytest-xdist hands them to its controller."""
    config = session.config
    if hasattr(config, "workeroutput"):
        config.workeroutput["edgekit_rows"] = config.stash[_ROWS]
        return
    path, rows = config.getoption("--edgekit-json"), config.stash[_ROWS]
    if path is None:
        return
    import json

    from edgekit.files import write_text
    from edgekit.latency.benchmark import report_of

    report = report_of("pytest", "of each test", "latency", {}, rows)
    write_text(path, json.dumps(report, indent=1, default=str))


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """Take a worker's results."""
    node.config.stash[_ROWS].extend(getattr(node, "workeroutput", {}).get("edgekit_rows", ()))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """One line a measurement."""
    rows = config.stash[_ROWS]
    if not rows:
        return
    terminalreporter.section("edgekit latency")
    for row in rows:
        doubts = f"  ({len(row['doubts'])} doubts)" if row["doubts"] else ""
        terminalreporter.write_line(f"{_line(row)}  {row['artifact']}{doubts}")


def _line(row: dict[str, Any]) -> str:
    if "paired" in row:
        found = row["paired"]
        interval = f"[{found['low']:.3f}, {found['high']:.3f}]"
        return f"ratio {found['ratio']:.3f} {interval}"
    latency = row["latency_ms"]
    return f"p50 {latency['p50']:.3f} ms  p90 {latency['p90']:.3f} ms"
