"""Charts as SVG elements whose colors are those of the page, light or dark."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from ..confidence import ReliabilityBin
from ..console import visible
from .blocks import Chart

CHART_WIDTH, CHART_HEIGHT = 460, 270
MARGIN_LEFT, MARGIN_RIGHT, MARGIN_TOP, MARGIN_BOTTOM = 52, 22, 12, 40
"""Size of a chart and of its margins, in units of the SVG. The text is 12 units high."""
Points = Sequence[tuple[float, float]]
Format = Callable[[float], str]


def percent(value: float) -> str:
    """A fraction as a percentage without needless digits: `80 %`, `99.5 %`."""
    return f"{100 * value:.3g} %"


def plain(value: float) -> str:
    """A number without needless digits."""
    return f"{value:,.4g}" if abs(value) < 1e6 else f"{value:.3g}"


@dataclass(frozen=True)
class Axis:
    """The range of an axis, its label and the format of its numbers."""

    label: str
    low: float
    high: float
    show: Format = plain
    whole: bool = False
    """Whether only whole numbers get a tick."""

    @classmethod
    def around(cls, label: str, values: Sequence[float], show: Format = plain, whole: bool = False) -> "Axis":
        """An axis that holds all values, with round ends."""
        low, high = min(values), max(values)
        if low == high:
            low, high = (low - 1, high + 1) if whole else (low - abs(low) / 10 - 1e-9, high + abs(high) / 10 + 1e-9)
        if whole:
            return cls(label, low, high, show, True)
        step = tick_step(low, high)
        return cls(label, math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step, show)

    def share(self, value: float) -> float:
        """Position of a value between the ends, from 0 to 1."""
        return (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Round numbers between the ends, at most seven."""
        step = tick_step(self.low, self.high)
        step = max(1, math.ceil(step)) if self.whole else step
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(number * step, 12) for number in range(first, last + 1)]


def tick_step(low: float, high: float, most: int = 6) -> float:
    """The smallest step of 1, 2 or 5 times a power of ten that divides the range into at most `most` parts."""
    rough = (high - low) / most
    power = 10 ** math.floor(math.log10(rough))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))


@dataclass(frozen=True)
class Series:
    """A line through points."""

    name: str
    points: Points
    color: str = "s0"
    """A CSS class: `s0` to `s3`, or `faint`."""
    band: Sequence[tuple[float, float, float]] = ()
    """A shaded area around the line: x, lower and upper end."""


@dataclass(frozen=True)
class Spot:
    """A marked point with a label."""

    x: float
    y: float
    text: str


def line_chart(
    title: str, series: Sequence[Series], x: Axis, y: Axis, spots: Sequence[Spot] = (), caption: str = ""
) -> Chart:
    """Draw lines. The legend names those that are not faint, if there are several."""
    drawing = _Drawing(x, y)
    for one in series:
        if one.band:
            upper, lower = [(at, high) for at, _, high in one.band], [(at, low) for at, low, _ in one.band]
            drawing.add(f'<path class="band {one.color}" d="{drawing.path([*upper, *lower[::-1]])}Z"/>')
    for one in series:
        if one.points:
            name = f"<title>{_text(one.name)}</title>"
            drawing.add(f'<path class="line {one.color}" d="{drawing.path(one.points)}">{name}</path>')
        if 0 < len(one.points) <= 40 and one.color != "faint":
            for across, up in one.points:
                drawing.dot(across, up, one.color, f"{one.name}: {x.show(across)}, {y.show(up)}")
    for spot in spots:
        drawing.spot(spot)
    named = [(one.name, one.color) for one in series if one.color != "faint"]
    return Chart(title, drawing.svg(title), caption, tuple(named) if len(named) > 1 else ())


def reliability_chart(title: str, bins: Sequence[ReliabilityBin], caption: str = "") -> Chart:
    """Draw accuracy and mean confidence of each bin, and below them the number of images in the bin."""
    drawing = _Drawing(Axis("confidence", 0, 1, percent), Axis("", 0, 1, percent), foot=46)
    most, total = max(each.images for each in bins), sum(each.images for each in bins)
    drawing.add(f'<path class="refer" d="{drawing.path([(0, 0), (1, 1)])}"/>')
    for each in bins:
        text = (
            f"confidence {percent(each.low)} to {percent(each.high)}: {each.images:,} of {total:,} images, "
            f"mean confidence {percent(each.confidence)}, accuracy {percent(each.accuracy)}"
        )
        drawing.bar(each.low, each.high, each.accuracy, "s0", text)
        drawing.level(each.low, each.high, each.confidence, "s1")
        drawing.below(each.low, each.high, each.images / most, text)
    legend = ("accuracy", "s0"), ("mean confidence", "s1"), ("images", "faint")
    return Chart(title, drawing.svg(title), caption, legend)


class _Drawing:
    """Collects SVG elements in the coordinates of two axes."""

    def __init__(self, x: Axis, y: Axis, foot: int = 0) -> None:
        """`foot` is the height of an area between the chart and the labels of the x axis."""
        self.x, self.y, self.foot = x, y, foot
        self.parts: list[str] = []
        for value in y.ticks():
            at = self._down(value)
            kind = "base" if value == y.low else "grid"
            self.add(f'<path class="{kind}" d="M{MARGIN_LEFT} {at:.1f}H{CHART_WIDTH - MARGIN_RIGHT}"/>')
            self.add(f'<text x="{MARGIN_LEFT - 7}" y="{at + 4:.1f}" text-anchor="end">{_text(y.show(value))}</text>')
        for value in x.ticks():
            at = self._across(value)
            place = f'x="{at:.1f}" y="{CHART_HEIGHT + foot - MARGIN_BOTTOM + 18}" text-anchor="middle"'
            self.add(f"<text {place}>{_text(x.show(value))}</text>")
        middle = (MARGIN_LEFT + CHART_WIDTH - MARGIN_RIGHT) / 2
        self.add(f'<text x="{middle}" y="{CHART_HEIGHT + foot - 4}" text-anchor="middle">{_text(x.label)}</text>')

    def _across(self, value: float) -> float:
        return MARGIN_LEFT + (CHART_WIDTH - MARGIN_LEFT - MARGIN_RIGHT) * self.x.share(value)

    def _down(self, value: float) -> float:
        return CHART_HEIGHT - MARGIN_BOTTOM - (CHART_HEIGHT - MARGIN_TOP - MARGIN_BOTTOM) * self.y.share(value)

    def add(self, part: str) -> None:
        self.parts.append(part)

    def path(self, points: Points) -> str:
        return "M" + "L".join(f"{self._across(across):.1f} {self._down(up):.1f}" for across, up in points)

    def dot(self, across: float, up: float, color: str, text: str, radius: float = 3.5) -> None:
        at = f'cx="{self._across(across):.1f}" cy="{self._down(up):.1f}" r="{radius}"'
        self.add(f'<circle class="dot {color}" {at}><title>{_text(text)}</title></circle>')

    def spot(self, spot: Spot) -> None:
        """Mark a point, with its label below it, on the side that has more room."""
        at, base = self._across(spot.x), CHART_HEIGHT - MARGIN_BOTTOM
        self.add(f'<path class="refer" d="M{at:.1f} {base}V{self._down(spot.y):.1f}"/>')
        self.dot(spot.x, spot.y, "s1", spot.text, 5)
        x, anchor = (at + 8, "start") if spot.x < 0.5 else (at - 8, "end")
        self.add(f'<text class="on" x="{x:.1f}" y="{base - 10}" text-anchor="{anchor}">{_text(spot.text)}</text>')

    def bar(self, left: float, right: float, high: float, color: str, text: str) -> None:
        """A bar from the base line up to `high`."""
        self._box(left, right, self._down(high), CHART_HEIGHT - MARGIN_BOTTOM - self._down(high), color, text)

    def below(self, left: float, right: float, share: float, text: str) -> None:
        """A bar that hangs from the base line into the foot, by a share of its height."""
        self._box(left, right, CHART_HEIGHT - MARGIN_BOTTOM + 4, max(1.0, share * (self.foot - 8)), "faint", text)

    def level(self, left: float, right: float, value: float, color: str) -> None:
        """A short horizontal line."""
        start, end = self._across(left) + 1, self._across(right) - 1
        self.add(f'<path class="level {color}" d="M{start:.1f} {self._down(value):.1f}H{end:.1f}"/>')

    def _box(self, left: float, right: float, top: float, height: float, color: str, text: str) -> None:
        x, width = self._across(left) + 1, self._across(right) - self._across(left) - 2
        self.add(
            f'<rect class="bar {color}" x="{x:.1f}" y="{top:.1f}" width="{width:.1f}" height="{height:.1f}">'
            f"<title>{_text(text)}</title></rect>"
        )

    def svg(self, title: str) -> str:
        label = escape(visible(title))
        size = f'viewBox="0 0 {CHART_WIDTH} {CHART_HEIGHT + self.foot}"'
        return f'<svg {size} role="img" aria-label="{label}">{"".join(self.parts)}</svg>'


def _text(text: str) -> str:
    return escape(visible(text))
