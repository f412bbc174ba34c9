"""The report's drawings: charts as SVG (reliability, coverage, learning curve), and sheets of thumbnails.

The charts' colours and fonts come from the page's style sheet by class, so charts follow light and dark. Nothing in
them comes from the user: they are made of numbers and fixed words only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from markupsafe import Markup, escape

from quickstudy.bottlenecks.looks import sheet_of
from quickstudy.learning.calibration import Bin, CoveragePoint
from quickstudy.learning.learning_curve import LearningCurve
from quickstudy.process import usable_cores
from quickstudy.wording import as_percent, as_probability, count

_WIDTH, _HEIGHT = 400, 290
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 26, 12, 42

Point = tuple[float, float]


class _Axes:
    """Draws a frame with ticks, and turns values into places in it."""

    def __init__(
        self, x: tuple[float, float], y: tuple[float, float], *, labels: tuple[str, str], logarithmic: bool = False
    ) -> None:
        self._x, self._y, self._logarithmic = x, y, logarithmic
        self._labels = labels
        self.parts: list[str] = []

    def place(self, point: Point) -> Point:
        (low, high), (bottom, top) = self._x, self._y
        x, low, high = (math.log(v) if self._logarithmic else v for v in (point[0], low, high))
        across = (x - low) / (high - low)
        up = (min(max(point[1], bottom), top) - bottom) / (top - bottom)
        return (
            _LEFT + across * (_WIDTH - _LEFT - _RIGHT),
            _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM),
        )

    def line(self, points: Sequence[Point], kind: str) -> None:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(self.place, points))
        self.parts.append(f'<polyline class="{kind}" points="{path}"/>')

    def area(self, lower: Sequence[Point], upper: Sequence[Point], kind: str) -> None:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(self.place, [*lower, *reversed(upper)]))
        self.parts.append(f'<polygon class="{kind}" points="{path}"/>')

    def dot(self, point: Point, title: str, *, radius: float = 4, kind: str = "dot") -> None:
        x, y = self.place(point)
        self.parts.append(
            f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"><title>{escape(title)}</title></circle>'
        )

    def draw(self, ticks_x: Sequence[float], ticks_y: Sequence[float], *, percent_x: bool, about: str) -> Markup:
        ground = []
        for tick in ticks_y:
            left, y = self.place((self._x[0], tick))
            ground.append(f'<line class="grid" x1="{left:.1f}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            ground.append(f'<text x="{left - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">{100 * tick:.3g} %</text>')
        for tick in ticks_x:
            x, y = self.place((tick, self._y[0]))
            name = f"{100 * tick:.0f} %" if percent_x else f"{tick:,.0f}"
            ground.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{y:.1f}"/>')
            ground.append(f'<text x="{x:.1f}" y="{y + 16:.1f}" text-anchor="middle">{name}</text>')
        middle = (_LEFT + _WIDTH - _RIGHT) / 2
        ground.append(f'<text x="{middle}" y="{_HEIGHT - 6}" text-anchor="middle">{self._labels[0]}</text>')
        body = "".join([*ground, *self.parts])
        # Every piece is made here of numbers and fixed words.
        return Markup(  # noqa: S704
            f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{about}">{body}</svg>'
        )


def reliability_chart(after: Sequence[Bin], before: Sequence[Bin]) -> Markup:
    """Draw confidence against accuracy, bin by bin, with the temperature and, fainter, without it."""
    axes = _Axes((0, 1), (0, 1), labels=("Confidence", "Accuracy"))
    axes.line([(0, 0), (1, 1)], "reference")
    axes.line([(b.confidence, b.accuracy) for b in before], "line faint")
    axes.line([(b.confidence, b.accuracy) for b in after], "line")
    for b in after:
        axes.dot(
            (b.confidence, b.accuracy),
            f"{count(b.n, 'image')}: confidence {as_probability(b.confidence)}, accuracy {as_percent(b.accuracy)}",
        )
    ticks = (0, 0.25, 0.5, 0.75, 1)
    about = "Reliability: accuracy against confidence; on the diagonal, confidence and accuracy agree"
    return axes.draw(ticks, ticks, percent_x=True, about=about)


def coverage_chart(curve: Sequence[CoveragePoint], chosen: CoveragePoint | None) -> Markup:
    """Draw the accuracy of the answered images against their share, and the suggested threshold."""
    lowest = min(point.accuracy for point in curve)
    bottom = max(0.0, math.floor(20 * lowest - 1e-9) / 20)
    bottom = min(bottom, 0.95)
    axes = _Axes((0, 1), (bottom, 1), labels=("Share of images answered", "Accuracy"))
    axes.line([(point.coverage, point.accuracy) for point in curve], "line")
    if chosen:
        title = (
            f"At {as_percent(chosen.threshold, 0)} confidence or more: {as_percent(chosen.coverage, 0)} answered, "
            f"{as_percent(chosen.accuracy)} of them right"
        )
        axes.dot((chosen.coverage, chosen.accuracy), title, radius=6, kind="dot chosen")
    about = "Accuracy of the answered images against the share that is answered"
    return axes.draw((0, 0.25, 0.5, 0.75, 1), _ticks(bottom, 1), percent_x=True, about=about)


def learning_chart(curve: LearningCurve) -> Markup:
    """Draw accuracy against training images: measured, and forecast to four times as many."""
    first, last = curve.points[0].images, 4 * curve.images
    sizes = [first * (last / first) ** (step / 40) for step in range(41)]
    forecasts = [(size, *curve.forecast(size)) for size in sizes]
    values = [mean - 2 * scatter for _, mean, scatter in forecasts] + [p.accuracy for p in curve.points]
    highest = min(1.0, max(mean + 2 * scatter for _, mean, scatter in forecasts) + 0.01)
    bottom = max(0.0, math.floor(20 * min(values)) / 20)
    top = max(bottom + 0.05, math.ceil(20 * highest) / 20)
    axes = _Axes((first, last), (bottom, top), labels=("Training images", "Accuracy"), logarithmic=True)
    axes.area(
        [(size, mean - 2 * scatter) for size, mean, scatter in forecasts],
        [(size, mean + 2 * scatter) for size, mean, scatter in forecasts],
        "band",
    )
    axes.line([(size, mean) for size, mean, _ in forecasts if size <= curve.images], "line")
    axes.line([(size, mean) for size, mean, _ in forecasts if size >= curve.images * 0.95], "line dashed")
    for point in curve.points:
        accuracy = f"{as_percent(point.accuracy)}, standard deviation {100 * point.deviation:.1f}"
        title = f"{count(point.images, 'image')}: {accuracy}"
        axes.dot((point.images, point.accuracy), title)
    ticks = [size for size in (curve.images // 8, curve.images // 2, curve.images, 4 * curve.images) if size >= first]
    about = "Learning curve: accuracy against the number of training images, measured and forecast"
    return axes.draw(ticks, _ticks(bottom, top), percent_x=False, about=about)


def _ticks(low: float, high: float) -> list[float]:
    step = 0.05 if high - low <= 0.3 else 0.1 if high - low <= 0.6 else 0.25
    return [low + step * number for number in range(round((high - low) / step) + 1)]


SHEET_SIDE = 80
"""Side of a thumbnail's square on a sheet, in pixels."""
SHEET_COLUMNS = 16
PER_SHEET = 256
_QUALITY = 65


def sprite_sheets(thumbnails: Sequence[bytes]) -> list[bytes]:
    """Make WebP files of 256 thumbnails each, 16 a row: the centred square of each image, as the network sees it.

    An image takes 0.85 kB on a sheet, a third of what it takes as a JPEG file.

    Args:
        thumbnails: JPEG files; an empty one leaves its square grey.
    """
    parts = [thumbnails[start : start + PER_SHEET] for start in range(0, len(thumbnails), PER_SHEET)]
    with ThreadPoolExecutor(usable_cores()) as pool:
        return list(
            pool.map(lambda part: sheet_of(part, side=SHEET_SIDE, across=SHEET_COLUMNS, quality=_QUALITY), parts)
        )
