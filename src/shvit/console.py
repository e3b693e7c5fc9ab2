"""Text, tables and figures for people: names may hold what Rich or matplotlib take for markup, and stay as they are."""

import codecs
import json
import re
from collections.abc import Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TimeRemainingColumn
from rich.text import Text

METRICS = {"top1": "top-1", "AP": "AP"}
"""What people call the numbers by which models are compared."""
BESIDE = {"AP": ("AP50",)}
"""Further numbers that are shown beside them."""

PLAIN = str.maketrans(
    {"·": "-", "–": "-", "—": "-", "−": "-", "×": "x", "…": "...", "→": "->", "“": '"', "”": '"', "µ": "u", "†": "+"}
)
"""What stands for our own signs where an encoding lacks them."""
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What a terminal obeys instead of showing it: its escapes, line ends, and what turns the direction of writing."""


def _in_plain(error: UnicodeError) -> tuple[str, int]:
    """For codecs: signs as `PLAIN` has them, other characters as escapes."""
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end].translate(PLAIN)
    return text.encode("ascii", "backslashreplace").decode("ascii"), error.end


codecs.register_error("shvit-plain", _in_plain)


def takes_all(stream: Any) -> None:
    """From now on nothing that is written to this text stream fails for its encoding."""
    if hasattr(stream, "reconfigure"):  # not where a library or a test has put its own in place
        stream.reconfigure(errors="shvit-plain")


def visible(text: str) -> str:
    r"""The text with control characters as escapes, such as \x1b: names of files and classes may hold them."""
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def say(console: Console, text: str, style: str | None = None) -> None:
    """One line of text, however long."""
    console.print(visible(text), style=style, markup=False, highlight=False, soft_wrap=True)


def show_table(console: Console, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns, the first to the left, the others to the right, as wide as their cells."""
    shown = [[visible(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(cell_len, column)) for column in zip(*shown, strict=True)]
    for index, row in enumerate(shown):
        blanks = [" " * (width - cell_len(cell)) for width, cell in zip(widths, row, strict=True)]
        cells = [row[0] + blanks[0], *(blank + cell for blank, cell in zip(blanks[1:], row[1:], strict=True))]
        say(console, "  ".join(cells).rstrip(), style="bold" if index == 0 else None)


class ImagesPerSecond(ProgressColumn):
    """Of a progress bar that counts images."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.finished_speed or task.speed or 0:.0f} images/s")


def images_progress(shown: bool) -> Progress:
    """Images done, images a second and the time left: on stderr, and only where that is a terminal."""
    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), ImagesPerSecond(), TimeRemainingColumn())
    disable = not (shown and console.is_terminal)
    return Progress(*columns, console=console, disable=disable, transient=True, redirect_stdout=False)


def as_json(document: Any, encoding: str = "utf-8") -> str:
    """Text that this encoding can write: outside UTF-8, and for what a terminal obeys, with JSON's own escapes."""
    escaped = not encoding.lower().startswith("utf")
    text = json.dumps(document, indent=2, ensure_ascii=escaped, default=str)
    return "\n".join(CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", line) for line in text.split("\n"))
