"""ScaleTable: what calibration finds, saved as JSON in the bundle, edited and reused."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgekit.errors import EdgekitError


class Entry(BaseModel):
    """The scales of one site: real value = scale x integer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["activation", "weight"]
    operator: str
    bits: Literal[8]
    axis: int | None
    scale: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...]


class ScaleTable(BaseModel):
    """Every site's scales, and how they were found.

    Attributes:
        method: how an activation's range became a scale.
        data: the calibration set, in words.
        samples: how many of its samples were seen.
        sites: by site name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    method: Literal["minmax"]
    data: str
    samples: int
    sites: dict[str, Entry]

    def without(self, names: Collection[str]) -> Self:
        """The table without the sites of these names."""
        kept = {name: entry for name, entry in self.sites.items() if name not in names}
        return self.model_copy(update={"sites": kept})

    def save(self, path: Path) -> None:
        """Write as JSON."""
        path.write_text(self.model_dump_json(indent=1), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a saved table.

        Raises:
            EdgekitError: it is missing or malformed.
        """
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, ValidationError) as error:
            raise EdgekitError(f"{path} is not a scale table.", str(error)) from error
