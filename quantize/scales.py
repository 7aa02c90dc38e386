"""ScaleTable: what calibration finds, saved as JSON in the bundle, edited and reused."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_serializer

from edgekit.errors import EdgekitError
from edgekit.quantize.schemes import Dtype
from edgekit.quantize.sites import Kind

if TYPE_CHECKING:
    import numpy as np

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Entry(BaseModel):
    """The scales of one site: real value = scale x level.

    Attributes:
        scale: one for an activation. For a weight one an output channel, or where ``group``
            is set one for each ``group`` input channels of each output channel, in order.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    operator: str
    dtype: Dtype
    scale: tuple[Positive, ...] = Field(min_length=1)
    group: int | None = None

    @field_serializer("scale")
    def _short(self, scale: tuple[float, ...]) -> list[float]:
        """As few digits as name the same float16: a model of 4-bit groups has millions."""
        import numpy as np

        return [float(str(np.float16(value))) for value in scale]


class ScaleTable(BaseModel):
    """Every site's scales, and how they were found.

    Attributes:
        method: how an activation's range became a scale.
        effort: which accuracy methods were applied.
        data: the calibration set, in words.
        samples: how many of its samples were seen.
        tensors: the digest of the file of tensors that it was found with, or None.
        sites: by site name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    method: str
    effort: str
    data: str
    samples: int
    tensors: str | None = None
    sites: dict[str, Entry]

    def without(self, names: Collection[str]) -> Self:
        """The table without the sites of these names."""
        kept = {name: entry for name, entry in self.sites.items() if name not in names}
        return self.model_copy(update={"sites": kept})

    def save(self, path: Path) -> None:
        """Write as JSON."""
        path.write_text(self.model_dump_json(indent=1, exclude_none=True), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a saved table; each scale becomes the nearest float16.

        Raises:
            EdgekitError: it is missing or malformed.
        """
        try:
            table = cls.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, ValidationError) as error:
            raise EdgekitError(f"{path} is not a scale table.", str(error)) from error
        sites = {name: _exact(entry) for name, entry in table.sites.items()}
        return table.model_copy(update={"sites": sites})


def _exact(entry: Entry) -> Entry:
    import numpy as np

    least = np.float16(2.0**-24)
    nearest = np.maximum(np.array(entry.scale).astype(np.float16), least).astype(np.float64)
    return entry.model_copy(update={"scale": tuple(nearest.tolist())})


def half_exact(scale: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The least float16 values not below ``scale``, as float64.

    Core ML stores scales in float16, and engines multiply by them in float16: a scale that
    float16 holds exactly is the same number everywhere. Rounding up never clips the range.
    """
    import numpy as np

    least = np.float16(2.0**-24)
    half = np.maximum(scale.astype(np.float16), least)
    half = np.where(half.astype(np.float64) < scale, np.nextafter(half, np.float16(np.inf)), half)
    result: np.ndarray[Any, Any] = half.astype(np.float64)
    return result
