"""Results of a benchmark in a Markdown page, between marks that name the script."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from edgekit.files import write_text


def write_section(document: Path, script: str, section: str, heading: str = "# Benchmarks") -> None:
    """Put a script's section in place of its old one, or at the page's end.

    Args:
        script: its path in the repository, which the marks name.
        section: Markdown.
        heading: of a page that is not there yet.
    """
    start, end = f"<!-- {script} -->", f"<!-- end of {script} -->"
    text = document.read_text(encoding="utf-8") if document.exists() else f"{heading}\n"
    before, _, rest = text.partition(start)
    after = rest.partition(end)[2].strip("\n")
    marked = f"{start}\n{section.strip()}\n{end}"
    parts = [part for part in (before.strip("\n"), marked, after) if part]
    write_text(document, "\n\n".join(parts) + "\n")


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


def spread(values: Sequence[float], form: str = "{:.2f}") -> str:
    """The mean of several seeds, and from which to which they go.

    >>> spread([1.0, 2.0, 4.0], "{:.1f}")
    '2.3 (1.0 to 4.0)'
    """
    mean = form.format(sum(values) / len(values))
    if len(values) == 1:
        return mean
    return f"{mean} ({form.format(min(values))} to {form.format(max(values))})"
