"""Render a report as one HTML file that needs no other file and no network."""

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from ..console import visible
from ..figures import literal_text
from ..files import replacing
from ..provenance import hardware_in_words
from .blocks import Cell, Column, Headline, Plot, Section

COLLAPSED = 24
"""Tables with more rows than this are collapsed until the reader opens them."""
SORTABLE = 5
"""Tables with at least this many rows can be sorted by a click on a column's name."""


@dataclass(frozen=True)
class Page:
    """The contents of an HTML report."""

    title: str
    lead: str
    """One or two sentences below the title."""
    findings: tuple[str, ...]
    """Sentences that state the main results."""
    sections: tuple[Section, ...]
    about: Mapping[str, Any]
    """Where the numbers were measured: `provenance.facts()`, and optionally `threads`."""
    footer: str = ""
    headlines: tuple[Headline, ...] = ()
    kind: str = ""
    """What the page is, above its title: `Evaluation`."""


@literal_text()
def png(plot: Plot) -> bytes:
    """The figure as a PNG file."""
    buffer = BytesIO()
    plot.figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


@literal_text()
def inline_svg(plot: Plot) -> Markup:
    """The figure as an SVG element whose text has the page's font and whose colors are CSS variables.

    The variable of a color is named after it, such as `--x3b5b7a`. The page overrides dark colors in dark mode.
    """
    from matplotlib import rc_context

    buffer = StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": plot.name}):
        plot.figure.savefig(buffer, format="svg", transparent=True, dpi=130)
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(r'(?<=style=")[^"]*', lambda style: re.sub(r"#([0-9a-f]{6})", r"var(--x\1,#\1)", style[0]), text)
    return Markup(text)


def render(page: Page) -> str:
    """The page as HTML."""
    environment = Environment(
        loader=PackageLoader("shvit.report", ""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    environment.filters |= {
        "svg": inline_svg,
        "markup": Markup,
        "data_url": _data_url,
        "cell_attributes": _cell_attributes,
        "unbroken": lambda text: text.replace(" %", "\u00a0%"),
    }
    return environment.get_template("page.html").render(
        page=page,
        hardware=hardware_in_words(page.about["hardware"]),
        about=page.about,
        collapsed=COLLAPSED,
        sortable=SORTABLE,
    )


def save_page(page: Page, path: Path) -> None:
    """Write the page as one HTML file. Raises Failure if no space is left."""
    with replacing(path) as temporary:
        temporary.write_bytes(render(page).encode(errors="backslashreplace"))


def _shown(value: Any) -> Any:
    """Make control characters in text visible, because class and file names may contain them."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return "\n".join(map(visible, value.split("\n")))


def _data_url(content: bytes, mime: str) -> Markup:
    return Markup(f"data:{mime};base64,{base64.b64encode(content).decode()}")


def _cell_attributes(cell: Cell, column: Column, textual: bool) -> Markup:
    """The attributes of a table's cell: its unrounded value for sorting, and the length of its bar."""
    if isinstance(cell, str):
        kind = Markup(' class="text"') if textual else Markup()
        return kind if textual else Markup(' title="{}"').format(_shown(cell))
    if cell is None:
        return Markup()
    bar = f' class="bar" style="--v:{cell:.3f}"' if column.bar else ""
    return Markup(f'{bar} data-v="{cell:.6g}"')
