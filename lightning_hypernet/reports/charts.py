"""Charts: pictures as inline SVG, whose colours are the page's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 440, 290
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 14, 48


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers within a range.

    Args:
        low: Where it begins.
        high: Where it ends, above `low`.
        about: How many.

    Example:
        >>> ticks(0, 1)
        [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


class Chart:
    """A frame with two axes, into which marks are drawn.

    Args:
        x: Range of the horizontal axis.
        y: Range of the vertical axis.
        labels: Names of both axes.
        title: What the picture shows, for those who can't see it.
        x_ticks: Positions and names on the horizontal axis; None: round numbers.
    """

    def __init__(
        self,
        x: tuple[float, float],
        y: tuple[float, float],
        labels: tuple[str, str],
        title: str,
        x_ticks: Sequence[tuple[float, str]] | None = None,
    ) -> None:
        self.x, self.y = widened(*x), widened(*y)
        self.labels, self.title = labels, title
        self.x_ticks = [(at, f"{at:g}") for at in ticks(*self.x)] if x_ticks is None else list(x_ticks)
        self.marks: list[str] = []
        self.names: list[tuple[str, str]] = []

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Where a point lies in the picture."""
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        return _LEFT + across * (WIDTH - _LEFT - _RIGHT), HEIGHT - _BOTTOM - up * (HEIGHT - _TOP - _BOTTOM)

    def bar(self, start: float, end: float, top: float, tip: str, colour: str = "a") -> None:
        """A bar from the lower edge."""
        (left, above), (right, below) = self.place(start, top), self.place(end, self.y[0])
        self.marks.append(
            f'<rect class="fill-{colour}" x="{left + 1:.1f}" y="{above:.1f}" width="{max(right - left - 2, 1):.1f}" '
            f'height="{max(below - above, 0):.1f}" rx="2"><title>{escape(tip)}</title></rect>'
        )

    def line(self, points: Sequence[tuple[float, float]], colour: str = "a", name: str = "", thin: bool = False) -> None:
        """A line through points; with a name it is in the legend."""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (self.place(*point) for point in points))
        self.marks.append(f'<polyline class="line-{colour}{" thin" if thin else ""}" points="{path}"/>')
        self._name(name, colour)

    def dots(
        self,
        points: Sequence[tuple[float, float]],
        tips: Sequence[str] = (),
        colour: str = "a",
        size: float = 3,
        name: str = "",
    ) -> None:
        """A dot for every point."""
        for index, point in enumerate(points):
            x, y = self.place(*point)
            tip = f"<title>{escape(tips[index])}</title>" if tips else ""
            self.marks.append(f'<circle class="fill-{colour} dot" cx="{x:.1f}" cy="{y:.1f}" r="{size:g}">{tip}</circle>')
        self._name(name, colour)

    def upright(self, x: float, colour: str, name: str) -> None:
        """A vertical line."""
        self.line([(x, self.y[0]), (x, self.y[1])], colour, name)

    def _name(self, name: str, colour: str) -> None:
        if name and (name, colour) not in self.names:
            self.names.append((name, colour))

    def html(self) -> str:
        """The picture and its legend."""
        parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img"><title>{escape(self.title)}</title>']
        bottom = HEIGHT - _BOTTOM
        for at in ticks(*self.y):
            _, y = self.place(self.x[0], at)
            parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{at:g}</text>')
        for at, text in self.x_ticks:
            x, _ = self.place(at, self.y[0])
            parts.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{escape(text)}</text>')
        parts += self.marks
        parts.append(f'<line class="axis" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{bottom}" y2="{bottom}"/>')
        middle = (_LEFT + WIDTH - _RIGHT) / 2
        parts.append(f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle" class="name">{escape(self.labels[0])}</text>')
        half = (_TOP + bottom) / 2
        turned = f'transform="rotate(-90 14 {half})"'
        parts.append(
            f'<text x="14" y="{half}" text-anchor="middle" class="name" {turned}>{escape(self.labels[1])}</text></svg>'
        )
        keys = "".join(f'<li><i class="key-{colour}"></i>{escape(name)}</li>' for name, colour in self.names)
        return "".join(parts) + (f'<ul class="legend">{keys}</ul>' if keys else "")


def widened(low: float, high: float) -> tuple[float, float]:
    """A range that is no single point."""
    if high > low:
        return low, high
    room = max(abs(low), 1e-3) * 0.05
    return low - room, high + room


def roomy(low: float, high: float) -> tuple[float, float]:
    """A range with some room on both sides."""
    low, high = widened(low, high)
    return low - 0.05 * (high - low), high + 0.05 * (high - low)


def heat(values: Sequence[Sequence[float]], title: str, unit: str = "") -> str:
    """A square table as shades, the darker the larger; the diagonal is left blank."""
    count = len(values)
    most = max((value for row in values for value in row), default=0.0) or 1.0
    side = 300 / count
    parts = [f'<svg viewBox="0 0 340 340" role="img" class="square"><title>{escape(title)}</title>']
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            if row != column:
                parts.append(
                    f'<rect class="fill-a" x="{34 + column * side:.1f}" y="{4 + row * side:.1f}" width="{side - 1:.1f}" '
                    f'height="{side - 1:.1f}" rx="2" fill-opacity="{0.06 + 0.94 * value / most:.3f}">'
                    f"<title>{row + 1} and {column + 1}: {value:.3g}{unit}</title></rect>"
                )
    for index in range(0, count, max(1, -(-count // 10))):
        at = (index + 0.5) * side
        parts.append(f'<text x="28" y="{8 + at:.1f}" text-anchor="end">{index + 1}</text>')
        parts.append(f'<text x="{34 + at:.1f}" y="322" text-anchor="middle">{index + 1}</text>')
    return "".join(parts) + "</svg>"


def shades(images: Sequence[Sequence[Sequence[float]]], title: str) -> str:
    """Small images side by side on one scale, below zero in one colour and above in another."""
    most = max((abs(value) for image in images for line in image for value in line), default=0.0) or 1.0
    rows, columns = len(images[0]), len(images[0][0])
    across = 6
    down = -(-len(images) // across)
    cell = 60 / max(rows, columns)
    parts = [f'<svg viewBox="0 0 {across * 70} {down * 70}" role="img"><title>{escape(title)}</title>']
    for index, image in enumerate(images):
        left, top = index % across * 70 + 5, index // across * 70 + 5
        for row, line in enumerate(image):
            for column, value in enumerate(line):
                parts.append(
                    f'<rect class="fill-{"a" if value > 0 else "b"}" x="{left + column * cell:.2f}" y="{top + row * cell:.2f}" '
                    f'width="{cell:.2f}" height="{cell:.2f}" fill-opacity="{abs(value) / most:.3f}"/>'
                )
        parts.append(f'<rect class="edge" x="{left}" y="{top}" width="{columns * cell:.2f}" height="{rows * cell:.2f}"/>')
    return "".join(parts) + "</svg>"
