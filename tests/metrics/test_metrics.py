"""Metrics: their numbers, against definitions written otherwise, and what they refuse."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, log_loss, top_k_accuracy_score

from edgekit import find, metrics
from edgekit.errors import EdgekitError
from edgekit.metrics import agreement, average_precision, bits_per_token, cosine, top1, top5

RANDOM = np.random.default_rng(0)
#: Rounded, so that some scores are equal.
SCORES = RANDOM.standard_normal((60, 8)).round(1)
LABELS = RANDOM.integers(0, 8, 60)


@pytest.mark.parametrize("name", find.names("metrics"))
def test_every_metric_keeps_the_contract(name):
    module = find.find("metrics", name)
    assert list(inspect.signature(module.score).parameters) == ["outputs", "labels", "expected"]
    assert module.NEEDS
    assert {"labels", "expected", "classes"} >= module.NEEDS
    assert module.UNIT in ("%", "")
    outputs = {"y": SCORES}
    loaded = metrics.load(name)
    loaded.require(outputs, LABELS, source=True)
    value = loaded.score(outputs, LABELS, outputs)
    if loaded.compares:
        assert value == pytest.approx(1)
    if loaded.hits:
        assert loaded.hits(outputs, LABELS, outputs).mean() == value


@pytest.mark.parametrize(("module", "k"), [(top1, 1), (top5, 5)])
def test_top_k_is_that_of_sklearn(module, k):
    distinct = SCORES + RANDOM.permutation(SCORES.size).reshape(SCORES.shape) * 1e-6
    expected = top_k_accuracy_score(LABELS, distinct, k=k, labels=np.arange(8))
    assert module.score({"y": distinct}, LABELS, None) == expected


def test_of_equal_scores_the_first_class_wins():
    assert top1.hits({"y": np.zeros((2, 3))}, np.array([0, 1]), None).tolist() == [True, False]


def test_a_nan_is_never_right():
    scores = np.array([[np.nan, 1.0, 0.0], [0.0, 1.0, 0.0]])
    assert top1.score({"y": scores}, np.array([1, 1]), None) == 0.5
    one_hot = np.eye(3)[[1, 1]]
    assert np.isfinite(average_precision.score({"y": scores}, one_hot, None))


@pytest.mark.parametrize("several", [False, True])
def test_average_precision_is_that_of_sklearn(several):
    targets = np.eye(8, dtype=int)[LABELS]
    if several:
        targets |= RANDOM.integers(0, 2, targets.shape)
    expected = average_precision_score(targets, SCORES, average="macro")
    labels = targets if several else LABELS
    assert average_precision.score({"y": SCORES}, labels, None) == pytest.approx(expected)


def test_average_precision_leaves_out_a_class_without_samples():
    labels = np.where(LABELS == 7, 0, LABELS)
    scored = average_precision.score({"y": SCORES}, labels, None)
    kept = average_precision_score(np.eye(8, dtype=int)[labels][:, :7], SCORES[:, :7])
    assert scored == pytest.approx(kept)


def test_agreement_and_cosine_compare_with_the_source():
    flipped = {"y": np.array([[1.0, 0], [0, 1]])}
    source = {"y": np.array([[1.0, 0], [1, 0]])}
    assert agreement.score(flipped, None, source) == 0.5
    assert cosine.score(flipped, None, source) == pytest.approx(0.5)
    two = {"y": np.ones(3), "z": np.array([1.0, 0, 0])}
    assert cosine.score(two, None, {"y": np.ones(3), "z": np.array([0, 1.0, 0])}) == 0


def test_bits_per_token_are_those_of_sklearn():
    logits = RANDOM.standard_normal((4, 15, 8)).astype(np.float32) * 3
    tokens = RANDOM.integers(0, 8, (4, 15))
    shares = np.exp(logits.astype(np.float64))
    shares /= shares.sum(-1, keepdims=True)
    nats = log_loss(tokens.ravel(), shares.reshape(60, 8), labels=np.arange(8))
    found = bits_per_token.score({"logits": logits}, tokens, None)
    assert found == pytest.approx(-nats / np.log(2), abs=1e-9)
    uniform = bits_per_token.score({"logits": np.full((4, 15, 8), 1e4)}, tokens, None)
    assert uniform == pytest.approx(-3)


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (np.zeros((4, 14), int), ["not the tokens that follow", "(4, 14)", "(4, 15, 8)"]),
        (np.zeros(4, int), ["not the tokens that follow", "--labels"]),
        (np.zeros((4, 15)), ["float64"]),
        (np.full((4, 15), 8), ["8 classes"]),
        (None, ["no labels"]),
    ],
)
def test_tokens_that_do_not_fit(tokens, words):
    with pytest.raises(EdgekitError) as caught:
        bits_per_token.score({"logits": np.zeros((4, 15, 8))}, tokens, None)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    ("outputs", "labels", "words"),
    [
        (SCORES, None, ["no labels", "--labels"]),
        (SCORES, LABELS[:5], ["not one class a sample", "(5,)", "60 samples"]),
        (SCORES, LABELS.astype(float), ["not one class a sample", "float64"]),
        (SCORES, LABELS + 1, ["go from 1 to 8", "0 to 7"]),
        (SCORES, LABELS - 1, ["go from -1 to 6"]),
        (SCORES[:, :, None], LABELS, ["no class scores", "(60, 8, 1)"]),
        (SCORES[:, :1], LABELS, ["no class scores", "(60, 1)"]),
    ],
)
@pytest.mark.parametrize("module", [top1, top5, average_precision])
def test_labels_and_outputs_that_do_not_fit(module, outputs, labels, words):
    with pytest.raises(EdgekitError) as caught:
        module.score({"y": outputs}, labels, None)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    "labels", [np.zeros((60, 8)), np.full((60, 8), 2), np.ones((60, 7))], ids=["none", "two", "7"]
)
def test_labels_of_several_classes_that_are_not_0_or_1(labels):
    with pytest.raises(EdgekitError, match="which classes each sample is of"):
        average_precision.score({"y": SCORES}, labels, None)


def test_what_is_missing_is_told_by_the_first_outputs():
    first = {"y": SCORES[:1]}
    with pytest.raises(EdgekitError, match="compares with the source"):
        metrics.load("cosine").require(first, LABELS, source=False)
    with pytest.raises(EdgekitError, match="no labels"):
        metrics.load("top1").require(first, None, source=True)
    with pytest.raises(EdgekitError, match="go from 1 to 8"):
        metrics.load("top5").require(first, LABELS + 1, source=True)
    with pytest.raises(EdgekitError, match="no class scores"):
        metrics.load("agreement").require({"y": SCORES[0]}, None, source=True)
    several = np.eye(8, dtype=int)[LABELS]
    metrics.load("average_precision").require(first, several, source=False)


OWN = """
from neighbour import SCALE

def largest(outputs, labels, expected):
    return SCALE * outputs["y"].max()

def broken(outputs, labels, expected):
    return outputs["z"]

def nothing(outputs, labels, expected):
    return None

def endless(outputs, labels, expected):
    return float("inf")

def few(outputs):
    return 1

SIZE = 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of metrics in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    (tmp_path / "neighbour.py").write_text("SCALE = 2\n")
    (tmp_path / "own_metrics.py").write_text(OWN)
    return tmp_path


@pytest.mark.parametrize("form", ["own_metrics:largest", "own_metrics.py:largest"])
def test_a_metric_of_your_own(own, form):
    metric = metrics.load(form)
    assert metric.name == form
    assert metric.score({"y": np.array([1.0, 3.0])}, None, None) == 6


def test_a_file_elsewhere_hides_no_other_module(tmp_path):
    (tmp_path / "json.py").write_text("def one(outputs, labels, expected):\n    return 1\n")
    assert metrics.load(f"{tmp_path}/json.py:one").score({}, None, None) == 1
    import json

    assert json.loads("1") == 1


def test_a_function_is_a_metric():
    assert metrics.load(lambda outputs, labels, expected: labels).score({}, 4, None) == 4


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("own_metrics.py:broken", ["own_metrics.py:broken failed", "KeyError", "own_metrics.py:8"]),
        ("own_metrics.py:few", ["own_metrics.py:few failed", "(outputs, labels, expected)"]),
        ("own_metrics.py:nothing", ["own_metrics.py:nothing gave a NoneType"]),
        ("own_metrics.py:endless", ["own_metrics.py:endless gave inf"]),
        ("own_metrics.py:SIZE", ["own_metrics.py:SIZE is a int", "(outputs, labels, expected)"]),
        ("own_metrics.py:lrgest", ["own_metrics.py has no 'lrgest'", "largest"]),
        ("nowhere.py:metric", ["nowhere.py", "FileNotFoundError"]),
        ("own_metricks:largest", ["own_metricks", "No module named"]),
        ("top_1", ["Unknown metric 'top_1'", "Did you mean", "top1"]),
    ],
)
def test_bad_metrics_are_named(own, name, words):
    with pytest.raises(EdgekitError) as caught:
        metrics.load(name).score({"y": np.ones(2)}, None, None)
    assert all(word in str(caught.value) for word in words), str(caught.value)
