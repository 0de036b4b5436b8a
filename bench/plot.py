"""Plots as SVG, written by hand: a line chart and stacked bars are all a benchmark needs to show."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

# Of Okabe and Ito: told apart by people who do not see all colours.
_COLOURS = (
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#d55e00",
    "#f0e442",
    "#999999",
    "#000000",
)
_WIDTH, _HEIGHT = 760.0, 420.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 70.0, 190.0, 40.0, 60.0
_PLOT_WIDTH, _PLOT_HEIGHT = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)
_TICKS = 6
# A bar's share of the room it has.
_BAR = 0.7

Points = Sequence[tuple[float, float]]


def lines(
    title: str, x_label: str, y_label: str, series: Mapping[str, Points], *, log_y: bool = False
) -> str:
    """A line for every series, with its points; by name.

    Args:
        title: Above it.
        x_label: What x is, with its unit.
        y_label: What y is, with its unit.
        series: Points by the name in the legend.
        log_y: A logarithmic y-axis; points at or below zero are left out of it.
    """
    shown = {
        name: [(x, y) for x, y in points if y > 0 or not log_y] for name, points in series.items()
    }
    xs = [x for points in shown.values() for x, _ in points] or [0.0, 1.0]
    ys = [y for points in shown.values() for _, y in points] or [1.0]
    x_ticks = _linear_ticks(max(xs))
    y_ticks = _decades(min(ys), max(ys)) if log_y else _linear_ticks(max(ys))

    def place(x: float, y: float) -> tuple[float, float]:
        return _LEFT + _PLOT_WIDTH * x / x_ticks[-1], _y(y, y_ticks, log_y=log_y)

    parts = [*_axes(y_ticks, y_label, log_y=log_y)]
    for tick in x_ticks:
        at, _ = place(tick, y_ticks[-1])
        parts.append(_text(at, _TOP + _PLOT_HEIGHT + 18, _number(tick), anchor="middle"))
    parts.append(_text(_LEFT + _PLOT_WIDTH / 2, _HEIGHT - 18, x_label, anchor="middle"))
    for number, points in enumerate(shown.values()):
        colour = _COLOURS[number % len(_COLOURS)]
        places = [place(x, y) for x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
    return _svg(title, parts + _legend(list(shown)))


def bars(title: str, y_label: str, stacks: Mapping[str, Mapping[str, float]]) -> str:
    """A stacked bar for every name, each part in the same colour everywhere.

    Args:
        title: Above it.
        y_label: What y is, with its unit.
        stacks: By the bar's name: sizes by the part's name, the first part lowest.
    """
    names = list(dict.fromkeys(part for parts in stacks.values() for part in parts))
    y_ticks = _linear_ticks(max((sum(parts.values()) for parts in stacks.values()), default=1.0))
    drawn = [*_axes(y_ticks, y_label, log_y=False)]
    room = _PLOT_WIDTH / max(1, len(stacks))
    for number, (name, parts) in enumerate(stacks.items()):
        left, below = _LEFT + room * (number + (1 - _BAR) / 2), 0.0
        for part, size in parts.items():
            top, bottom = (_y(at, y_ticks, log_y=False) for at in (below + size, below))
            colour = _COLOURS[names.index(part) % len(_COLOURS)]
            drawn.append(
                f'<rect x="{left:.1f}" y="{top:.1f}" width="{room * _BAR:.1f}" height="{bottom - top:.1f}" '
                f'fill="{colour}"><title>{escape(f"{name}, {part}: {size:,.0f}")}</title></rect>'
            )
            below += size
        middle = left + room * _BAR / 2
        drawn.append(
            _text(middle, _y(below, y_ticks, log_y=False) - 5, f"{below:,.0f}", anchor="middle")
        )
        drawn.append(_text(middle, _TOP + _PLOT_HEIGHT + 18, name, anchor="middle"))
    return _svg(title, drawn + _legend(names))


def _svg(title: str, parts: Sequence[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH:.0f} {_HEIGHT:.0f}" '
        'font-family="sans-serif" font-size="12" role="img">'
    )
    ground = f'<rect width="{_WIDTH:.0f}" height="{_HEIGHT:.0f}" fill="white"/>'
    above = _text(_LEFT, 22, title, weight="bold")
    return "\n".join([head, f"<title>{escape(title)}</title>", ground, above, *parts, "</svg>", ""])


def _axes(y_ticks: Sequence[float], y_label: str, *, log_y: bool) -> list[str]:
    parts = []
    for tick in y_ticks:
        at = _y(tick, y_ticks, log_y=log_y)
        parts.append(
            f'<line x1="{_LEFT}" x2="{_LEFT + _PLOT_WIDTH}" y1="{at:.1f}" y2="{at:.1f}" stroke="#ddd"/>'
        )
        parts.append(_text(_LEFT - 8, at + 4, _number(tick), anchor="end"))
    middle = _TOP + _PLOT_HEIGHT / 2
    parts.append(
        f'<text transform="translate(16,{middle:.0f}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>'
    )
    return parts


def _legend(names: Sequence[str]) -> list[str]:
    parts = []
    for number, name in enumerate(names):
        x, y = _LEFT + _PLOT_WIDTH + 16, _TOP + 10 + 18 * number
        colour = _COLOURS[number % len(_COLOURS)]
        parts.append(f'<rect x="{x:.0f}" y="{y - 9:.0f}" width="11" height="11" fill="{colour}"/>')
        parts.append(_text(x + 17, y + 1, name))
    return parts


def _text(x: float, y: float, words: str, *, anchor: str = "start", weight: str = "normal") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}">'
        f"{escape(words)}</text>"
    )


def _y(value: float, ticks: Sequence[float], *, log_y: bool) -> float:
    low, high = ticks[0], ticks[-1]
    if log_y:
        low, high, value = math.log10(low), math.log10(high), math.log10(value)
    return _TOP + _PLOT_HEIGHT * (1 - (value - low) / (high - low))


def _linear_ticks(highest: float) -> list[float]:
    """From zero, at round numbers, the last at or above the highest."""
    highest = highest if highest > 0 else 1.0
    size = 10.0 ** math.floor(math.log10(highest / _TICKS))
    step = next(size * factor for factor in _STEPS if size * factor * _TICKS >= highest)
    return [step * number for number in range(math.ceil(highest / step) + 1)]


def _decades(lowest: float, highest: float) -> list[float]:
    """Powers of ten around them, at least two."""
    first = math.floor(math.log10(lowest))
    last = max(first + 1, math.ceil(math.log10(highest)))
    return [10.0**exponent for exponent in range(first, last + 1)]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == round(value) else f"{value:,g}"
