"""Print text, tables, progress bars and JSON. Names that look like rich's markup are printed unchanged."""

import codecs
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TimeRemainingColumn
from rich.text import Text

METRICS = {
    "top1": "top-1",
    "AP": "AP",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "top5": "top-5",
}
"""Display names of metrics. Other metrics are shown by their key."""
BESIDE = {"top1": ("balanced_accuracy", "macro_f1"), "AP": ("AP50",)}
"""The metrics by which models are compared, each with the metrics that are shown next to it."""
LOSSES = frozenset({"loss"})
"""The metrics that are not percentages."""

PLAIN = str.maketrans(
    {"·": "-", "–": "-", "—": "-", "−": "-", "×": "x", "…": "...", "→": "->", "“": '"', "”": '"', "µ": "u", "†": "+"}
)
"""ASCII replacements for characters that an encoding lacks."""
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that control a terminal: escapes, line ends, and changes of the writing direction."""


def _in_plain(error: UnicodeError) -> tuple[str, int]:
    """Error handler for codecs: replace the characters in `PLAIN` and escape all other characters."""
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end].translate(PLAIN)
    return text.encode("ascii", "backslashreplace").decode("ascii"), error.end


codecs.register_error("shvit-plain", _in_plain)


def metric_text(key: str, value: float, of: str = "") -> str:
    """A metric with its name, and `of` after the name: "top-1 93.10%"."""
    return f"{METRICS.get(key, key)}{of} " + (f"{value:.4f}" if key in LOSSES else f"{value:.2%}")


def main_metrics(metrics: Mapping[str, Any], first: str | None = None) -> str:
    """The metric by which models are compared and those next to it as text, after the metric `first`."""
    main = next((key for key in BESIDE if key in metrics), "")
    keys = dict.fromkeys([first or main, main, *BESIDE.get(main, ())])
    return ", ".join(metric_text(key, metrics[key]) for key in keys if key in metrics)


def takes_all(stream: Any) -> None:
    """Make a text stream accept every character, by replacing or escaping those that its encoding lacks."""
    if hasattr(stream, "reconfigure"):  # a library or a test may have replaced the stream
        stream.reconfigure(errors="shvit-plain")


def visible(text: str) -> str:
    r"""The text with control characters escaped, such as \x1b. File and class names may contain such characters."""
    return CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def say(console: Console, text: str, style: str | None = None) -> None:
    """Print one line of text, without wrapping it or interpreting markup."""
    console.print(visible(text), style=style, markup=False, highlight=False, soft_wrap=True)


def show_table(console: Console, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table. The first column is left-aligned, all others are right-aligned."""
    shown = [[visible(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(cell_len, column)) for column in zip(*shown, strict=True)]
    for index, row in enumerate(shown):
        blanks = [" " * (width - cell_len(cell)) for width, cell in zip(widths, row, strict=True)]
        cells = [row[0] + blanks[0], *(blank + cell for blank, cell in zip(blanks[1:], row[1:], strict=True))]
        say(console, "  ".join(cells).rstrip(), style="bold" if index == 0 else None)


class ImagesPerSecond(ProgressColumn):
    """Speed column of a progress bar that counts images."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.finished_speed or task.speed or 0:.0f} images/s")


def images_progress(shown: bool) -> Progress:
    """A progress bar with images/s and remaining time, on stderr, shown only if stderr is a terminal."""
    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), ImagesPerSecond(), TimeRemainingColumn())
    disable = not (shown and console.is_terminal)
    return Progress(*columns, console=console, disable=disable, transient=True, redirect_stdout=False)


def as_json(document: Any, encoding: str = "utf-8") -> str:
    """The document as JSON text. Escape control characters and, unless `encoding` is a UTF, non-ASCII characters."""
    escaped = not encoding.lower().startswith("utf")
    text = json.dumps(document, indent=2, ensure_ascii=escaped, default=str)
    return "\n".join(CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", line) for line in text.split("\n"))
