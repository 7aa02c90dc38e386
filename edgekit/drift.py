"""Drift: how far an artifact's outputs are from its source's, and where it begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from edgekit.model import Graph
    from edgekit.targets.runtimes import Arrays


@dataclass(frozen=True)
class Drift:
    """The worst output's distance from the reference, over all samples.

    Attributes:
        max_abs: largest absolute difference of one element.
        relative: |a - r| / |r| in the Euclidean norm.
        cosine: of the two outputs as vectors, 1 is equal.
        sqnr_db: 20 log10(|r| / |a - r|), in decibels.
        top1_agreement: share of samples whose largest class is the same; None where the
            first output is not (batch, classes).
        samples: how many were compared.
        peak: largest magnitude of the reference.
    """

    max_abs: float
    relative: float
    cosine: float
    sqnr_db: float
    top1_agreement: float | None
    samples: int
    peak: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON; an infinite ratio is given as 999 dB."""
        return {**asdict(self), "sqnr_db": min(self.sqnr_db, 999.0)}


@dataclass(frozen=True)
class Tolerance:
    """What a precision allows: a least cosine, and a largest error relative to the peak."""

    cosine: float
    max_abs: float | None = None

    def failure(self, drift: Drift) -> str:
        """Why the drift is out of tolerance, or ''."""
        if not drift.cosine >= self.cosine:
            return f"cosine {drift.cosine:.6f} is under {self.cosine}"
        allowed = None if self.max_abs is None else self.max_abs * max(1.0, drift.peak)
        if allowed is not None and not drift.max_abs <= allowed:
            return f"max-abs {drift.max_abs:.1e} is over {allowed:.1e}"
        return ""


TOLERANCES = {
    "fp32": Tolerance(cosine=0.99999, max_abs=1e-4),
    "fp16": Tolerance(cosine=0.9999),
    "int8": Tolerance(cosine=0.98),
    "w8a16": Tolerance(cosine=0.99),
    "w4a16": Tolerance(cosine=0.95),
    "w4a8": Tolerance(cosine=0.95),
    "fp8": Tolerance(cosine=0.98),
}


def tolerance_for(precision: str, discrete: bool) -> Tolerance:
    """What a precision allows, and no less than INT8 where a model computes levels.

    Two runtimes that round a sum differently then differ by a level here and there, in fp32 too.

    >>> tolerance_for("fp32", discrete=True) == TOLERANCES["int8"]
    True
    """
    own, loose = TOLERANCES[precision], TOLERANCES["int8"]
    return loose if discrete and own.cosine > loose.cosine else own


def compare(reference: Sequence[Arrays], actual: Sequence[Arrays]) -> Drift:
    """The drift of the worst output. Both are lists of outputs by name, one a call."""
    names = list(reference[0])
    pairs = [(_flat(reference, name), _flat(actual, name)) for name in names]
    worst = min((_distance(r, a) for r, a in pairs), key=lambda figures: figures["cosine"])
    firsts = [(r[names[0]], a[names[0]]) for r, a in zip(reference, actual, strict=True)]
    agreement = None
    if all(r.ndim == 2 and r.shape[1] > 1 for r, _ in firsts):
        agreed = [r.argmax(1) == a.argmax(1) for r, a in firsts]
        agreement = float(np.concatenate(agreed).mean())
    return Drift(**worst, top1_agreement=agreement, samples=sum(len(r) for r, _ in firsts))


def _flat(calls: Sequence[Arrays], name: str) -> np.ndarray[Any, Any]:
    """An output's values in all calls, whose shapes may differ."""
    return np.concatenate([call[name].ravel() for call in calls])


def cosine(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    """Of two arrays as vectors; 1 if both are zero, and 0 if one is, or is not finite."""
    x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    norms = float(np.linalg.norm(x) * np.linalg.norm(y))
    if norms == 0:
        return float(not x.any() and not y.any())
    value = float(x @ y) / norms
    return value if np.isfinite(value) else 0.0


def first_divergence(
    graph: Graph, reference: Mapping[str, Any], actual: Mapping[str, Any], least: float
) -> str:
    """Names the first layer whose values part from the source graph's.

    Args:
        graph: the source graph, in whose order layers are looked at.
        reference, actual: intermediate values by node name.
        least: the least cosine of a layer that has not diverged.
    """
    from edgekit.edit import module_path

    seen: list[tuple[float, str]] = []
    for node in graph.exported.graph.nodes:
        a, r = actual.get(node.name), reference.get(node.name)
        if a is None or r is None or a.shape != r.shape or a.dtype.kind != "f":
            continue
        where = f"{module_path(node) or 'the model'} ({node.name})"
        seen.append((cosine(r, a), where))
        if seen[-1][0] < least:
            return f"{where}, cosine {seen[-1][0]:.4f}"
    if not seen:
        return "unknown: the artifact keeps no intermediate value under its own name"
    return "none before the output; the farthest is {1}, cosine {0:.4f}".format(*min(seen))


def _distance(r: np.ndarray[Any, Any], a: np.ndarray[Any, Any]) -> dict[str, float]:
    reference, actual = r.astype(np.float64), a.astype(np.float64)
    error = np.linalg.norm(actual - reference)
    scale = np.linalg.norm(reference)
    relative = float(error / scale) if scale else float(error > 0)
    return {
        "max_abs": float(np.abs(actual - reference).max()),
        "relative": relative,
        "cosine": cosine(reference, actual),
        "sqnr_db": float(-20 * np.log10(relative)) if relative else float("inf"),
        "peak": float(np.abs(reference).max()),
    }
