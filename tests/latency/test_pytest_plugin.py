"""The pytest plugin, in pytest runs of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import entry_points

import pytest

from edgekit.latency import fixture

pytest_plugins = ("pytester",)

PLUGIN = "edgekit.latency.pytest_plugin"
#: The plugin is loaded by its entry point where edgekit is installed with it.
LOADED = any(point.value == PLUGIN for point in entry_points(group="pytest11"))
QUICK = """
from edgekit.latency.plan import Limits
QUICK = Limits(0, 10, 0.05)
"""


@pytest.fixture
def run(pytester):
    """Run tests with the plugin; flags after the text of the tests."""

    def run(text, *flags):
        pytester.makepyfile(QUICK + text)
        loaded = () if LOADED else ("-p", PLUGIN)
        return pytester.runpytest_inprocess(*loaded, "-p", "no:cacheprovider", *flags)

    return run


def test_a_bundle_within_its_budget_passes_and_is_shown(run, cpu_bundle):
    result = run(f"""
def test_fast(edgekit_benchmark):
    found = edgekit_benchmark({str(cpu_bundle)!r}, target="cpu", limits=QUICK, max_p90_ms=1e6)
    assert 0 < found.p50 <= found.p90 <= found.p99
    assert found.throughput > 0
    assert found.row["threads"] == 1
    assert found.row["runtime"] == "onnxruntime"
    assert isinstance(found.doubts, list)
    assert "p50" in repr(found)
""")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*edgekit latency*", "p50 * ms  p90 * ms  *::test_fast*"])


def test_over_a_budget_fails_and_says_by_how_much(run, cpu_bundle):
    result = run(f"""
def test_slow(edgekit_benchmark):
    edgekit_benchmark({str(cpu_bundle)!r}, limits=QUICK, max_p50_ms=1e-6)
""")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["Too slow in 3 attempts: p50 is * ms, the budget 1e-06 ms*"])


def test_budgets_can_be_left_unjudged(run):
    text = "def test_slow(edgekit_benchmark):\n"
    text += "    edgekit_benchmark(lambda: None, limits=QUICK, max_p50_ms=0)\n"
    run(text, "--edgekit-no-budgets").assert_outcomes(passed=1)


def test_a_function_is_called_and_saved_under_the_tests_name(run, pytester):
    result = run(
        """
def test_function(edgekit_benchmark):
    calls = []
    first = edgekit_benchmark(lambda: calls.append(1), batch=4, limits=QUICK)
    assert len(calls) == 10
    assert first.throughput == 4e3 / first.row["latency_ms"]["avg"]
    edgekit_benchmark(lambda: None, limits=QUICK)
""",
        "--edgekit-json",
        "out.json",
    )
    result.assert_outcomes(passed=1)
    report = json.loads((pytester.path / "out.json").read_text())
    assert (report["schema_version"], report["mode"]) == (2, "latency")
    names = [row["artifact"].partition("::")[2] for row in report["results"]]
    assert names == ["test_function", "test_function #2"]
    assert "cpu" in report["environment"]


def test_saved_results_are_compared_by_bench(run, pytester, edgekit):
    text = "def test_f(edgekit_benchmark):\n    edgekit_benchmark(lambda: None, limits=QUICK)\n"
    for name in ("a.json", "b.json"):
        run(text, "--edgekit-json", name).assert_outcomes(passed=1)
    compared = edgekit("bench", "--compare", pytester.path / "a.json", pytester.path / "b.json")
    assert compared.code == 0, compared.err
    assert "::test_f" in compared.out


def test_a_ratio_is_judged_by_its_whole_interval(run, cpu_bundle):
    paths = f"{str(cpu_bundle)!r}, {str(cpu_bundle)!r}, limits=QUICK"
    result = run(f"""
def test_same(edgekit_benchmark):
    ratio = edgekit_benchmark.paired({paths}, max_ratio=10)
    assert ratio.low <= ratio.ratio <= ratio.high
    assert ratio.loads >= 6

def test_worse(edgekit_benchmark):
    edgekit_benchmark.paired({paths}, max_ratio=0.01)
""")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*; 0.01 is allowed."])


def test_what_cannot_run_here_is_skipped(run, whole_bundle):
    path = str(whole_bundle[0])
    result = run(
        f"""
def test_jetson(edgekit_benchmark):
    edgekit_benchmark({path!r}, target="jetson-orin-nano-super")
""",
        "-rs",
    )
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*is not run: on the device*"])


def test_several_targets_ask_for_one(run, whole_bundle):
    text = f"def test_any(edgekit_benchmark):\n    edgekit_benchmark({str(whole_bundle[0])!r})\n"
    result = run(text)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*Pass target=...*"])


def test_workers_of_xdist_hand_over_their_results(pytester):
    pytest.importorskip("xdist")
    pytester.makepyfile(
        QUICK
        + """
import pytest

@pytest.mark.parametrize("number", range(4))
def test_function(edgekit_benchmark, number):
    edgekit_benchmark(lambda: None, limits=QUICK)
"""
    )
    loaded = () if LOADED else ("-p", PLUGIN)
    flags = (*loaded, "-n", "2", "-p", "no:cacheprovider", "--edgekit-json", "out.json")
    result = pytester.runpytest_subprocess(*flags)
    result.assert_outcomes(passed=4)
    assert len(json.loads((pytester.path / "out.json").read_text())["results"]) == 4


def test_the_best_of_three_attempts_counts():
    """Other work makes code slower, not faster."""
    judged = fixture.Benchmark("name", True, lambda row: None)
    times = iter([9.0, 5.0, 7.0, 3.0])

    def attempt():
        value = next(times)
        return [{"latency_ms": {"p50": value, "p90": value, "p99": value}, "doubts": []}]

    best, over = judged._attempts(attempt, {"p50": 4.0})
    assert best.p50 == 5
    assert over == "p50 is 5.000 ms, the budget 4 ms"
    best, over = judged._attempts(attempt, {"p50": 4.0})
    assert (best.p50, over) == (3, "")


def test_it_costs_nothing_until_it_is_used():
    code = f"import sys, {PLUGIN}; print(sorted(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"numpy", "torch", "rich", "pydantic"} & set(eval(out.stdout))
