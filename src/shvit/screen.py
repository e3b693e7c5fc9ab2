"""Text and tables for people, as they are: names may hold what Rich takes for markup, and commands must stay whole."""

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table


def say(console: Console, text: str, style: str | None = None) -> None:
    """One piece of text, never broken into lines."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def show_table(console: Console, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns, the first to the left, the others to the right."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, name in enumerate(header):
        table.add_column(name, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    console.print(table)
