"""Save a study: study.json, a CSV file per table, a PNG file per figure, and report.html with tables and figures."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

from jinja2 import Environment, select_autoescape
from matplotlib.figure import Figure
from rich.console import Console

from ..bench.report import hardware_in_words
from ..console import as_json, say, show_table
from ..errors import counted
from ..figures import literal_text
from ..files import replacing, write_csv

Cell = str | float | int | None


@dataclass(frozen=True)
class Column:
    """The name and the number format of a column of a table."""

    name: str
    form: str = "{}"

    def show(self, cell: Cell) -> str:
        """Format a cell as text. None becomes a dash."""
        return "–" if cell is None else cell if isinstance(cell, str) else self.form.format(cell)


NETWORK_COLUMN = Column("network")
NOTHING_MEASURED = "Nothing could be measured. The reasons are listed below."


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
class Section:
    """A section of a report: text, then figures, then tables."""

    title: str
    text: Sequence[str] = ()
    tables: tuple[Table, ...] = ()
    pictures: tuple[Plot, ...] = ()


@dataclass(frozen=True)
class StudyReport:
    """The results of a study, for people and programs."""

    title: str
    lead: str
    """The question that the study answers."""
    findings: tuple[str, ...]
    """Sentences that state the main results."""
    sections: tuple[Section, ...]
    data: dict[str, Any] = field(default_factory=dict)
    """Contents of study.json: the main value and its unit, all other numbers, and where they were measured."""

    @property
    def tables(self) -> list[Table]:
        """The tables of all sections."""
        return [table for section in self.sections for table in section.tables]


@literal_text()
def save_report(report: StudyReport, out: Path) -> list[Path]:
    """Write the files of the report, each one atomically. Returns their paths, report.html first."""
    out.mkdir(parents=True, exist_ok=True)
    pictures = {}
    for picture in (picture for section in report.sections for picture in section.pictures):
        buffer = BytesIO()
        picture.figure.savefig(buffer, format="png", dpi=130)
        pictures[picture.name] = buffer.getvalue()
    files = {
        out / "report.html": _page(report, pictures).encode(errors="backslashreplace"),
        out / "study.json": as_json(report.data).encode(),
        **{out / f"{name}.png": content for name, content in pictures.items()},
    }
    for path, content in files.items():
        with replacing(path) as temporary:
            temporary.write_bytes(content)
    tables = {out / f"{table.name}.csv": table for table in report.tables}
    for path, table in tables.items():
        write_csv(path, [column.name for column in table.columns], table.rows)
    return [*files, *tables]


def print_report(console: Console, report: StudyReport, files: Sequence[Path]) -> None:
    """Print the tables, the findings, and the path of report.html."""
    for table in report.tables:
        say(console, "")
        say(console, table.title, style="bold")
        show_table(console, [column.name for column in table.columns], table.shown)
    for text in ("", *(f"· {finding}" for finding in report.findings), ""):
        say(console, text)
    say(console, f"wrote {files[0]} and {counted(len(files) - 1, 'other file')}")


def _page(report: StudyReport, pictures: dict[str, bytes]) -> str:
    environment = Environment(autoescape=select_autoescape(default=True), trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(PAGE).render(
        report=report,
        images={name: base64.b64encode(content).decode() for name, content in pictures.items()},
        hardware=hardware_in_words(report.data["hardware"]),
        about=report.data,
    )


PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ report.title }}</title>
<style>
  :root { --ink: #1d2733; --soft: #5d6b7a; --line: #dfe4ea; --accent: #c2255c; --wash: #f7f8fa }
  body { font: 16px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; color: var(--ink); margin: 0 auto;
         max-width: 72rem; padding: 2.5rem 1.25rem 4rem }
  h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .6rem; overflow-wrap: anywhere }
  h2 { font-size: 1.25rem; margin: 2.6rem 0 .4rem; padding-top: 1.2rem; border-top: 1px solid var(--line) }
  .lead { font-size: 1.08rem; color: var(--soft); max-width: 46rem }
  .findings { background: var(--wash); border-left: 4px solid var(--accent); padding: .8rem 1.2rem; margin: 1.4rem 0 }
  .findings h2 { border: 0; margin: 0 0 .3rem; padding: 0; font-size: 1rem }
  .findings ul { margin: 0; padding-left: 1.1rem }
  p { max-width: 46rem; margin: .5rem 0 }
  figure { margin: 1.2rem 0 } img { max-width: 100%; height: auto; display: block }
  figcaption, .note, footer { color: var(--soft); font-size: .875rem; max-width: 46rem }
  .scroll { overflow-x: auto; margin: 1rem 0 .3rem }
  table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums }
  caption { text-align: left; font-weight: 600; padding-bottom: .35rem; white-space: nowrap }
  th, td { padding: .3rem .5rem; text-align: right; border-bottom: 1px solid var(--line); vertical-align: top }
  th { font-weight: 600; color: var(--soft); border-bottom: 2px solid var(--line); vertical-align: bottom;
       max-width: 7rem }
  th:first-child, td:first-child { text-align: left; padding-left: 0; max-width: none; white-space: nowrap }
  details > summary { cursor: pointer; color: var(--soft); margin: .8rem 0 }
  code { font-size: .85em; overflow-wrap: anywhere }
</style>
<h1>{{ report.title }}</h1>
<p class="lead">{{ report.lead }}</p>
<div class="findings"><h2>Findings</h2><ul>
{% for finding in report.findings %}
  <li>{{ finding }}</li>
{% endfor %}
</ul></div>
{% for section in report.sections %}
<h2>{{ section.title }}</h2>
{% for text in section.text %}
<p>{{ text }}</p>
{% endfor %}
{% for picture in section.pictures %}
<figure><img alt="{{ picture.caption }}" src="data:image/png;base64,{{ images[picture.name] }}">
<figcaption>{{ picture.caption }}</figcaption></figure>
{% endfor %}
{% for table in section.tables %}
{% if table.rows|length > 24 %}<details><summary>{{ table.title }}: {{ table.rows|length }} rows</summary>{% endif %}
<div class="scroll"><table><caption>{{ table.title }}</caption>
<thead><tr>{% for each in table.columns %}<th>{{ each.name|replace(" %", "\u00a0%") }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in table.shown %}
<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
{% if table.note %}<p class="note">{{ table.note }}</p>{% endif %}
{% if table.rows|length > 24 %}</details>{% endif %}
{% endfor %}
{% endfor %}
<h2>How it was measured</h2>
<p>{{ hardware }}, {{ about.hardware.cores }} cores{% if about.threads %}, threads: {{ about.threads }}{% endif %}.
{{ about.date }}, commit {{ about.commit or "unknown" }}.</p>
<p><code>{{ about.command }}</code></p>
<p class="note">{% for item in about.versions.items() %}{{ ", " if loop.index > 1 }}{{ item|join(" ") }}{% endfor %}</p>
<footer><p>Paper: S. Yun, Y. Ro, “SHViT: Single-Head Vision Transformer with Memory Efficient Macro Design”, CVPR
2024, arXiv:2401.16456. Its speeds were measured on an A100 and a Xeon Gold 5218R, its accuracy on
ImageNet-1K.</p></footer>
</html>
"""
