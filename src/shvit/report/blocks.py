"""The parts of a report: headline numbers, tables, charts, figures, galleries, commands and sections."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Cell = str | float | int | None
Tone = Literal["", "right", "wrong", "doubt"]
"""The color of a label or box: none, green, red or amber."""


@dataclass(frozen=True)
class Card:
    """A headline number."""

    label: str
    value: str
    interval: tuple[float, float] | None = None
    """95 % confidence interval of a value between 0 and 1."""
    note: str = ""


@dataclass(frozen=True)
class Headline:
    """A row of headline numbers. The title is needed only if a page has several rows."""

    cards: tuple[Card, ...]
    title: str = ""
    note: str = ""


@dataclass(frozen=True)
class Column:
    """The name and the number format of a column of a table."""

    name: str
    form: str = "{}"
    bar: bool = False
    """Whether to draw a bar beside each number, which must be between 0 and 1."""

    def show(self, cell: Cell) -> str:
        """Format a cell as text. None becomes a dash."""
        return "–" if cell is None else cell if isinstance(cell, str) else self.form.format(cell)


@dataclass(frozen=True)
class Table:
    """A table of a report. Its CSV file holds the unrounded numbers."""

    name: str
    """Name of the CSV file, without .csv."""
    title: str
    columns: tuple[Column, ...]
    rows: Sequence[Sequence[Cell]]
    note: str = ""

    @property
    def shown(self) -> list[list[str]]:
        """The rows, with each cell as text."""
        return [[column.show(cell) for column, cell in zip(self.columns, row, strict=True)] for row in self.rows]

    @property
    def textual(self) -> list[bool]:
        """Whether each column, except the first, has text rather than numbers."""
        return [
            index > 0 and any(isinstance(row[index], str) for row in self.rows) for index in range(len(self.columns))
        ]


@dataclass(frozen=True)
class ConfusionMatrix:
    """Counts of true (rows) and predicted classes (columns). Each cell is shaded by its share of the row."""

    names: Sequence[str]
    counts: Sequence[Sequence[int]]

    @property
    def rows(self) -> list[tuple[str, list[tuple[int, float]]]]:
        """For each row, its name and its cells: count and share of the row."""
        totals = [max(1, sum(row)) for row in self.counts]
        cells = [[(count, count / total) for count in row] for row, total in zip(self.counts, totals, strict=True)]
        return list(zip(self.names, cells, strict=True))


@dataclass(frozen=True)
class Plot:
    """A figure of matplotlib, its caption, and the name of its PNG file without .png."""

    name: str
    figure: "Figure"
    caption: str


@dataclass(frozen=True)
class Label:
    """A class name below a picture."""

    role: str
    """What the name stands for: `true`, `predicted`."""
    text: str
    tone: Tone = ""
    score: float | None = None
    """Probability of the class."""


@dataclass(frozen=True)
class Mark:
    """A rectangle over a picture."""

    area: tuple[float, float, float, float]
    """Left, top, right and bottom, as fractions of the picture's width and height."""
    text: str
    tone: Tone = ""


@dataclass(frozen=True)
class Picture:
    """A small photograph with its caption."""

    image: bytes
    """The file's content: JPEG, or PNG."""
    caption: str
    """Text below the picture. Lines are separated by newlines."""
    mime: str = "image/jpeg"
    labels: tuple[Label, ...] = ()
    """Class names above the caption."""
    boxes: tuple[Mark, ...] = ()
    overlay: bytes | None = None
    """A PNG with transparency that is stretched over the picture. The reader can switch it on and off."""


@dataclass(frozen=True)
class Gallery:
    """A grid of pictures."""

    title: str
    pictures: Sequence[Picture]
    note: str = ""
    overlaid: bool = False
    """Whether overlays are shown at first."""


@dataclass(frozen=True)
class Command:
    """Text to copy: a shell command, or code."""

    title: str
    text: str


@dataclass(frozen=True)
class Chart:
    """A drawing made by `report.charts`, which follows the colors of the page."""

    title: str
    svg: str
    caption: str = ""
    legend: tuple[tuple[str, str], ...] = ()
    """Name and CSS class of each series."""


@dataclass(frozen=True)
class Section:
    """A section of a report: text, then charts, figures, the matrix, galleries, tables and commands."""

    title: str
    text: Sequence[str] = ()
    tables: tuple[Table, ...] = ()
    pictures: tuple[Plot, ...] = ()
    galleries: tuple[Gallery, ...] = ()
    charts: tuple[Chart, ...] = ()
    matrix: ConfusionMatrix | None = None
    commands: tuple[Command, ...] = ()
