"""Ranking: which rows are marked."""

from __future__ import annotations

import pytest

from edgekit.sweeps import Grid, ranking, result


def row(name, ms, top1=None, *, source=0.9, cosine=0.99, ok=True, predicted=False, **at):
    """A row of one model, target and batch, unless ``at`` says otherwise."""
    grid = Grid.check({"models": ["timm/x"], "targets": ["cpu"]}, "grid")
    blank = result.blank(grid.cells()[0], "verified", ok)
    timed = {"predicted": {"milliseconds": ms, "low": ms, "high": ms}}
    if not predicted:
        timed = {"latency": [{"latency_ms": {"p50": ms, "throughput": 1e3 / ms}, "threads": 1}]}
    facts = {"top1": top1, "source_top1": source, "drift": {"cosine": cosine, "max_abs": 0.1}}
    return blank.model_copy(update={"name": name, **facts, **timed, **at})


def test_no_other_is_as_fast_and_as_accurate():
    rows = [row("slow", 4, 0.9), row("fast", 1, 0.7), row("between", 2, 0.85), row("no", 3, 0.8)]
    assert set(ranking.marks(rows)) == {"slow", "fast", "between"}


def test_equals_do_not_beat_each_other():
    assert set(ranking.marks([row("a", 1, 0.9), row("b", 1, 0.9)])) == {"a", "b"}


@pytest.mark.parametrize(
    "at", [{"target": "rtx-4090"}, {"batch": 8}, {"predicted": True}], ids=lambda at: next(iter(at))
)
def test_what_does_other_work_is_not_compared(at):
    assert set(ranking.marks([row("a", 1, 0.9), row("b", 2, 0.8, **at)])) == {"a", "b"}


def test_without_labels_one_model_is_compared_by_its_drift():
    same = [row("a", 1, cosine=0.999), row("b", 2, cosine=0.99)]
    assert set(ranking.marks(same)) == {"a"}
    other = [same[0], row("b", 2, cosine=0.99, model="timm/y")]
    assert set(ranking.marks(other)) == {"a", "b"}


def test_the_best_is_the_fastest_that_lost_little():
    rows = [row("all", 4, 0.9), row("some", 2, 0.89), row("much", 1, 0.8)]
    assert ranking.marks(rows, 1.0) == {"all": "pareto", "some": "best", "much": "pareto"}
    assert ranking.marks(rows, 0.0)["all"] == "best"
    assert "best" not in ranking.marks([row("much", 1, 0.8)], 1.0).values()


def test_rows_that_say_nothing_are_not_marked():
    bare = row("none", 1).model_copy(update={"latency": [], "drift": None})
    assert ranking.marks([row("failed", 1, 0.9, ok=False), bare]) == {}


def test_a_flat_row_says_what_is_predicted():
    flat = ranking.flat(row("a", 2.0, 0.88, predicted=True), "pareto")
    assert (flat["latency"], flat["latency_ms"], flat["low_ms"]) == ("predicted", 2.0, 2.0)
    assert flat["samples_per_second"] == 500
    assert flat["top1_drop"] == pytest.approx(2)
    assert list(ranking.flat(row("b", 1, 0.9), "")) == list(flat)


def test_of_a_stream_the_step_counts():
    entries = [
        {"phase": phase, "latency_ms": {"p50": ms, "throughput": 1.0}}
        for phase, ms in (("prefill", 1.0), ("step", 2.0))
    ]
    assert row("a", 1).model_copy(update={"latency": entries}).milliseconds == 2.0
