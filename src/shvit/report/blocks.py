"""The parts of a report: tables, figures, galleries and sections."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

Cell = str | float | int | None


@dataclass(frozen=True)
class Column:
    """The name and the number format of a column of a table."""

    name: str
    form: str = "{}"

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


@dataclass(frozen=True)
class Plot:
    """A figure, its caption, and the name of its PNG file without .png."""

    name: str
    figure: Figure
    caption: str


@dataclass(frozen=True)
class Picture:
    """A small photograph with its caption."""

    image: bytes
    """The file's content: JPEG, or PNG."""
    caption: str
    """Text below the picture. Lines are separated by newlines."""
    mime: str = "image/jpeg"


@dataclass(frozen=True)
class Gallery:
    """A grid of pictures."""

    title: str
    pictures: Sequence[Picture]
    note: str = ""


@dataclass(frozen=True)
class Section:
    """A section of a report: text, then figures, then pictures, then tables."""

    title: str
    text: Sequence[str] = ()
    tables: tuple[Table, ...] = ()
    pictures: tuple[Plot, ...] = ()
    galleries: tuple[Gallery, ...] = ()
