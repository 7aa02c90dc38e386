"""Result: what one cell gave, or why it gave nothing."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

from edgekit.errors import EdgekitError
from edgekit.sweeps.grid import Cell

if TYPE_CHECKING:
    from edgekit.bundle import Bundle

Kind = Literal["measured", "predicted"]


class Result(BaseModel):
    """One row of a sweep.

    Attributes:
        name, model, precision, target, batch: of the cell.
        key: digest of all that the cell depends on; "" where it could not be known.
        status: as in a bundle; ``failed: ...``, ``crashed: ...``, or ``skipped: ...`` for what
            the device cannot run.
        ok: False is tried again when the sweep is run again.
        detail: of a failure, all that is known of it.
        artifact: what runs on the device, in the bundle's folder; size in bytes.
        drift: of the last artifact that ran here, which is ``drift_of``.
        top1, source_top1: share of correct labels of that artifact and of the source.
        latency: as the bundle's rows have it, where the device was there.
        predicted: milliseconds, low and high (90%) and their basis, where it was not.
        not_predicted: why there is no prediction either.
        bundle: its folder in the sweep's; None if there is none.
        host: the machine that did it.
        seconds: that it took.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    name: str
    model: str
    precision: str
    target: str
    batch: int | str
    key: str = ""
    status: str
    ok: bool
    detail: str = ""
    artifact: str | None = None
    size: int | None = None
    drift: dict[str, Any] | None = None
    drift_of: str | None = None
    top1: float | None = None
    source_top1: float | None = None
    latency: list[dict[str, Any]] = []
    predicted: dict[str, Any] | None = None
    not_predicted: str = ""
    bundle: str | None = None
    host: str = ""
    seconds: float | None = None
    finished: str

    @property
    def best(self) -> dict[str, Any] | None:
        """The measurement with the least median; of a stream, of its steps."""
        timed = [entry for entry in self.latency if entry.get("latency_ms")]
        steps = [entry for entry in timed if entry.get("phase") == "step"]
        return min(steps or timed, key=lambda entry: entry["latency_ms"]["p50"], default=None)

    @property
    def kind(self) -> Kind | None:
        """Where the latency is from."""
        if self.best is not None:
            return "measured"
        return None if self.predicted is None else "predicted"

    @property
    def milliseconds(self) -> float | None:
        """Of one call: the measured median, else the predicted value."""
        if self.best is not None:
            return float(self.best["latency_ms"]["p50"])
        return None if self.predicted is None else float(self.predicted["milliseconds"])

    @property
    def throughput(self) -> float | None:
        """Samples a second."""
        if self.best is not None:
            return float(self.best["latency_ms"]["throughput"])
        if self.predicted is None or not isinstance(self.batch, int):
            return None
        return self.batch * 1e3 / float(self.predicted["milliseconds"])


def of_bundle(cell: Cell, bundle: Bundle) -> Result:
    """What a cell's bundle says; its last artifact is the one that runs on the device."""
    rows = bundle.manifest.rows
    failed = next((row for row in rows if not row.ok), None)
    last = rows[-1]
    ran = next((row for row in reversed(rows) if row.drift is not None), None)
    stages = bundle.manifest.model.get("stages") or [bundle.manifest.model]
    return blank(cell, (failed or last).status, failed is None).model_copy(
        update={
            "artifact": last.path,
            "size": last.size,
            "drift": ran.drift if ran else None,
            "drift_of": (ran.path or ran.format).rpartition("/")[2] if ran else None,
            "top1": ran.top1 if ran else None,
            "source_top1": stages[0].get("top1"),
            "latency": last.latency,
        }
    )


def failed(cell: Cell, error: EdgekitError, word: str = "failed") -> Result:
    """The row of a cell that could not be done."""
    status = " ".join(f"{word}: {error.what} {error.why}".split())
    return blank(cell, status, False).model_copy(update={"detail": str(error)})


def skipped(cell: Cell, error: EdgekitError) -> Result:
    """The row of a cell that no device could run, which is no fault of anyone."""
    return blank(cell, f"skipped: {error.what}", True).model_copy(update={"detail": str(error)})


def blank(cell: Cell, status: str, ok: bool) -> Result:
    """A row that says no more than its cell and status."""
    point = cell.model_dump(exclude={"recipe"})
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Result(**point, status=status, ok=ok, finished=now)
