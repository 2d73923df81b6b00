"""Curves of the report as plain geometry: every number is placed here, the page only draws it (inline SVG, no scripts).

A plot is a square of SIZE units that the page stretches to its width; labels are text beside it and are not stretched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

SIZE = 1000
MAX_POINTS = 400
MAX_MARKS = 60
NUM_MEANS = 80
NARROWEST = 0.1  # an accuracy axis spans at least this, so that noise does not fill it

Point = tuple[float, float]


@dataclass(frozen=True)
class Tick:
    """A label and where it stands, as a share of the axis in percent."""

    at: float
    label: str


@dataclass(frozen=True)
class Mark:
    """One measured value with its interval, in units of the plot, and the words that name it."""

    x: float
    y: float
    low: float
    high: float
    label: str


@dataclass(frozen=True)
class Curve:
    """One plot: polylines in SVG `points` syntax, ticks of both axes, and what it says in words.

    A series too long to be drawn whole has `mean`, a second line, beside the extremes that `line` goes through.
    """

    title: str
    summary: str
    line: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    num_values: int
    num_drawn: int
    mean: str = ""
    band: str = ""
    baseline: float | None = None
    marks: list[Mark] = field(default_factory=list)


def series_curve(title: str, values: Sequence[Point], last_step: int, *, lowest: bool = True) -> Curve | None:
    """Returns the plot of (step, value) pairs in step order, its value axis from zero; None where there is no value.

    `lowest`: whether the words beside the plot name the lowest value.
    """
    if not values:
        return None
    numbers = [value for _, value in values]
    ticks = nice_ticks(min(0.0, *numbers), max(0.0, *numbers))
    drawn = thinned(values, MAX_POINTS)
    summary = f"last {short(numbers[-1])}"
    ends = (("lowest", min), ("highest", max)) if lowest else (("highest", max),)
    for word, end in ends:
        step, value = end(values, key=lambda point: point[1])
        summary += f" · {word} {short(value)} at step {step:,.0f}"
    frame = _Frame(last_step, ticks[0], ticks[-1])
    mean = frame.path(_means(values)) if len(drawn) < len(values) else ""
    alone = [Mark(frame.x(step), at := frame.y(value), at, at, summary) for step, value in (values if len(values) == 1 else ())]
    x_ticks, y_ticks = frame.x_ticks(), frame.y_ticks(ticks, short)
    return Curve(title, summary, frame.path(drawn), x_ticks, y_ticks, len(values), len(drawn), mean, marks=alone)


def accuracy_curve(title: str, values: Sequence[tuple[int, float, float, float]], last_step: int) -> Curve | None:
    """Returns the plot of (step, accuracy, low, high) with its interval band; the baseline is step 0's accuracy."""
    if not values:
        return None
    drawn = _evenly(values, MAX_POINTS)
    low, high = min(row[2] for row in drawn), max(row[3] for row in drawn)
    room = max(0.0, NARROWEST - (high - low)) / 2
    ticks = nice_ticks(max(0.0, low - room), min(1.0, high + room))
    frame = _Frame(last_step, ticks[0], ticks[-1])
    band = [(row[0], row[3]) for row in drawn] + [(row[0], row[2]) for row in reversed(drawn)]
    marks = [
        Mark(frame.x(row[0]), frame.y(row[1]), frame.y(row[2]), frame.y(row[3]), _said(row))
        for row in (drawn if len(drawn) <= MAX_MARKS else ())
    ]
    first = values[0] if values[0][0] == 0 else None
    said = _said(values[-1])
    summary = f"{_said(first)} · {said}" if first is not None and len(values) > 1 else said
    return Curve(
        title,
        summary,
        frame.path([row[:2] for row in drawn]),
        frame.x_ticks(),
        frame.y_ticks(ticks, _share_tick),
        len(values),
        len(drawn),
        band=frame.path(band),
        baseline=None if first is None else frame.y(first[1]),
        marks=marks,
    )


@dataclass(frozen=True)
class Line:
    """One run's line in a plot of several; `number` is the run's place, which its colour and dashes follow from."""

    number: int
    line: str
    mean: str
    band: str
    marks: list[Mark]
    summary: str


@dataclass(frozen=True)
class Overlay:
    """One plot of several runs on the same axes."""

    title: str
    lines: list[Line]
    x_ticks: list[Tick]
    y_ticks: list[Tick]


def overlay(title: str, runs: Mapping[int, Sequence[Point]], last_step: int) -> Overlay:
    """Returns the plot of each run's (step, value) pairs in step order, its value axis from zero; every run has a value."""
    numbers = [value for values in runs.values() for _, value in values]
    ticks = nice_ticks(min(0.0, *numbers), max(0.0, *numbers))
    frame = _Frame(last_step, ticks[0], ticks[-1])
    lines = []
    for number, values in runs.items():
        drawn = thinned(values, MAX_POINTS)
        mean = frame.path(_means(values)) if len(drawn) < len(values) else ""
        summary = f"last {short(values[-1][1])}"
        marks = [Mark(frame.x(step), at := frame.y(value), at, at, summary) for step, value in values[: len(values) == 1]]
        lines.append(Line(number, frame.path(drawn), mean, "", marks, summary))
    return Overlay(title, lines, frame.x_ticks(), frame.y_ticks(ticks, short))


def accuracy_overlay(title: str, runs: Mapping[int, Sequence[tuple[int, float, float, float]]], last_step: int) -> Overlay:
    """Returns the plot of each run's (step, accuracy, low, high) with its interval band; every run has a value."""
    drawn = {number: _evenly(values, MAX_POINTS) for number, values in runs.items()}
    low = min(row[2] for values in drawn.values() for row in values)
    high = max(row[3] for values in drawn.values() for row in values)
    room = max(0.0, NARROWEST - (high - low)) / 2
    ticks = nice_ticks(max(0.0, low - room), min(1.0, high + room))
    frame = _Frame(last_step, ticks[0], ticks[-1])
    lines = []
    for number, values in drawn.items():
        band = [(row[0], row[3]) for row in values] + [(row[0], row[2]) for row in reversed(values)]
        marks = [
            Mark(frame.x(row[0]), frame.y(row[1]), frame.y(row[2]), frame.y(row[3]), _said(row))
            for row in (values if len(values) <= MAX_MARKS else ())
        ]
        lines.append(Line(number, frame.path([row[:2] for row in values]), "", frame.path(band), marks, _said(values[-1])))
    return Overlay(title, lines, frame.x_ticks(), frame.y_ticks(ticks, _share_tick))


def thinned(values: Sequence[Point], limit: int) -> list[Point]:
    """Returns at most `limit` of the points: of each span of steps its lowest and its highest, so that no spike is lost."""
    if len(values) <= limit:
        return list(values)
    inner, spans = values[1:-1], (limit - 2) // 2
    kept = [values[0]]
    for span in range(spans):
        part = inner[span * len(inner) // spans : (span + 1) * len(inner) // spans]
        kept += sorted({min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])})
    return [*kept, values[-1]]


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Returns about `count` round numbers, evenly apart, the first at or under `low` and the last at or over `high`."""
    if high <= low:
        high = low + (abs(low) or 1.0)
    apart = _nice((high - low) / count)
    return [index * apart for index in range(math.floor(low / apart + 1e-9), math.ceil(high / apart - 1e-9) + 1)]


def short(value: float) -> str:
    """Returns a number in few characters: three digits that count, or whole thousands and millions."""
    return f"{value:,.0f}" if 1e3 <= abs(value) < 1e8 else f"{value:.3g}"


@dataclass(frozen=True)
class _Frame:
    last_step: int
    bottom: float
    top: float

    def x(self, step: float) -> float:
        return round(SIZE * step / max(1, self.last_step), 1)

    def y(self, value: float) -> float:
        return round(SIZE * (self.top - value) / (self.top - self.bottom), 1)

    def path(self, points: Sequence[Point]) -> str:
        return " ".join(f"{self.x(step):g},{self.y(value):g}" for step, value in points)

    def x_ticks(self) -> list[Tick]:
        last = max(1, self.last_step)
        apart = max(1, round(_nice(last / 4)))
        return [Tick(100 * step / last, f"{step:,}") for step in range(0, last + 1, apart)]

    def y_ticks(self, ticks: Sequence[float], shown: Callable[[float], str]) -> list[Tick]:
        return [Tick(100 * (tick - self.bottom) / (self.top - self.bottom), shown(tick)) for tick in ticks]


def _nice(rough: float) -> float:
    """Returns 1, 2, 2.5 or 5 times a power of ten, at or over `rough`."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * (1 - 1e-9))


def _means(values: Sequence[Point]) -> list[Point]:
    """Returns the mean step and the mean value of each span of a long series."""
    parts = (values[span * len(values) // NUM_MEANS : (span + 1) * len(values) // NUM_MEANS] for span in range(NUM_MEANS))
    return [(fmean(step for step, _ in part), fmean(value for _, value in part)) for part in parts]


def _evenly(values: Sequence[tuple[int, float, float, float]], limit: int) -> list[tuple[int, float, float, float]]:
    """Returns at most `limit` of the evaluations, evenly apart, with the first and the last."""
    if len(values) <= limit:
        return list(values)
    return [values[index * (len(values) - 1) // (limit - 1)] for index in range(limit)]


def _said(row: tuple[int, float, float, float]) -> str:
    return f"step {row[0]:,}: {_share(row[1])} ({_share(row[2])} – {_share(row[3])})"


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


def _share_tick(value: float) -> str:
    return f"{100 * value:.3g} %"
