"""Plot: small pictures in SVG, written by hand so that no plotting package is needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, log10
from xml.sax.saxutils import escape

INK, SOFT, GRID = "#1f2933", "#616e7c", "#e4e7eb"
PLAIN, MARKED = "#3e7cb1", "#c8553d"
_FONT = "font-family='Helvetica, Arial, sans-serif'"


@dataclass(frozen=True)
class Bar:
    """One bar: its name, its length, and whether it stands out."""

    name: str
    value: float
    marked: bool = False


@dataclass(frozen=True)
class Dot:
    """One dot; ``note`` is written beside it and in its tooltip, ``tip`` in the tooltip only."""

    x: float
    y: float
    marked: bool = False
    note: str = ""
    tip: str = ""


def bars(title: str, unit: str, rows: Sequence[Bar], legend: str = "") -> str:
    """Horizontal bars, one a row, with their values beside them.

    Args:
        unit: what the values are.
        legend: what marked bars are.
    """
    name_width = 7 * max((len(row.name) for row in rows), default=0) + 24
    plot_width, step, top = 460, 20, 64
    width, height = name_width + plot_width + 90, top + step * len(rows) + 24
    largest = max((row.value for row in rows), default=0) or 1
    parts = [_text(16, 26, title, 15, bold=True), _text(16, 46, unit, 12, SOFT)]
    if legend:
        parts.append(_rectangle(name_width + 180, 37, 10, 10, MARKED))
        parts.append(_text(name_width + 196, 46, legend, 12, SOFT))
    for index, row in enumerate(rows):
        y = top + step * index
        length = max(plot_width * row.value / largest, 1.0)
        parts.append(_text(name_width - 8, y + 12, row.name, 12, anchor="end"))
        parts.append(_rectangle(name_width, y + 2, length, 13, MARKED if row.marked else PLAIN))
        parts.append(_text(name_width + length + 6, y + 12, f"{row.value:.3g}", 11, SOFT))
    return _svg(width, height, parts)


def curve(title: str, x_name: str, y_name: str, dots: Sequence[Dot]) -> str:
    """Dots joined by a line in their order."""
    width, height, left, right, top, bottom = 720, 420, 76, 40, 56, 56
    x_ticks = ticks([dot.x for dot in dots])
    y_ticks = ticks([0.0, *(dot.y for dot in dots)])

    def across(x: float) -> float:
        return left + (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0]) * (width - left - right)

    def up(y: float) -> float:
        share = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return height - bottom - share * (height - top - bottom)

    parts = [_text(16, 26, title, 15, bold=True), _text(16, 46, y_name, 12, SOFT)]
    for x in x_ticks:
        parts.append(_line(across(x), top, across(x), height - bottom))
        parts.append(_text(across(x), height - bottom + 18, f"{x:g}", 11, SOFT, "middle"))
    for y in y_ticks:
        parts.append(_line(left, up(y), width - right, up(y)))
        parts.append(_text(left - 8, up(y) + 4, f"{y:g}", 11, SOFT, "end"))
    parts.append(_text((left + width - right) / 2, height - 14, x_name, 12, SOFT, "middle"))
    path = " ".join(f"{across(dot.x):.1f},{up(dot.y):.1f}" for dot in dots)
    parts.append(f"<polyline points='{path}' fill='none' stroke='{PLAIN}' stroke-width='1.5'/>")
    for dot in sorted(dots, key=lambda dot: dot.marked):
        parts.append(_dot(dot, across(dot.x), up(dot.y)))
        if dot.note:
            beyond = across(dot.x) > width * 0.7
            shift, anchor = (-10, "end") if beyond else (10, "start")
            parts.append(_text(across(dot.x) + shift, up(dot.y) - 8, dot.note, 12, INK, anchor))
    return _svg(width, height, parts)


def ticks(values: Sequence[float], wanted: int = 6) -> list[float]:
    """Round numbers that span the values, at least two.

    >>> ticks([0.0, 0.93])
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    low, high = min(values), max(values)
    raw = (high - low or abs(high) or 1.0) / wanted
    size = 10.0 ** floor(log10(raw))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= raw * 0.999)
    first, last = floor(low / step + 1e-9), ceil(high / step - 1e-9)
    last = max(last, first + 1)
    return [float(f"{index * step:.10g}") for index in range(first, last + 1)]


def _svg(width: float, height: float, parts: Sequence[str]) -> str:
    size = f"width='{width:g}' height='{height:g}' viewBox='0 0 {width:g} {height:g}'"
    ground = f"<rect width='{width:g}' height='{height:g}' fill='white'/>"
    body = "\n".join((ground, *parts))
    return f"<svg xmlns='http://www.w3.org/2000/svg' {size}>\n{body}\n</svg>\n"


def _text(
    x: float,
    y: float,
    text: str,
    size: int,
    colour: str = INK,
    anchor: str = "start",
    bold: bool = False,
) -> str:
    weight = " font-weight='bold'" if bold else ""
    style = f"{_FONT} font-size='{size}' fill='{colour}' text-anchor='{anchor}'{weight}"
    return f"<text x='{x:.1f}' y='{y:.1f}' {style}>{escape(text)}</text>"


def _rectangle(x: float, y: float, width: float, height: float, colour: str) -> str:
    place = f"x='{x:.1f}' y='{y:.1f}' width='{width:.1f}' height='{height:.1f}'"
    return f"<rect {place} rx='2' fill='{colour}'/>"


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    ends = f"x1='{x1:.1f}' y1='{y1:.1f}' x2='{x2:.1f}' y2='{y2:.1f}'"
    return f"<line {ends} stroke='{GRID}'/>"


def _dot(dot: Dot, x: float, y: float) -> str:
    radius, colour = (6, MARKED) if dot.marked else (3.5, PLAIN)
    tip = f"<title>{escape(dot.tip or dot.note)}</title>"
    return f"<circle cx='{x:.1f}' cy='{y:.1f}' r='{radius}' fill='{colour}'>{tip}</circle>"
