"""Save a study: study.json, a CSV file per table, a PNG file per figure, and report.html with tables and figures."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from ..console import as_json, say, show_table
from ..errors import counted
from ..files import replacing, write_csv
from ..report.blocks import Column, Section, Table
from ..report.page import Page, png, render

NETWORK_COLUMN = Column("network")
NOTHING_MEASURED = "Nothing could be measured. The reasons are listed below."
PAPER = (
    "Paper: S. Yun, Y. Ro, “SHViT: Single-Head Vision Transformer with Memory Efficient Macro Design”, CVPR 2024, "
    "arXiv:2401.16456. Its speeds were measured on an A100 and a Xeon Gold 5218R, its accuracy on ImageNet-1K."
)


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


def save_report(report: StudyReport, out: Path) -> list[Path]:
    """Write the files of the report, each one atomically. Returns their paths, report.html first."""
    out.mkdir(parents=True, exist_ok=True)
    page = Page(report.title, report.lead, report.findings, report.sections, report.data, PAPER)
    plots = [plot for section in report.sections for plot in section.pictures]
    files = {
        out / "report.html": render(page).encode(errors="backslashreplace"),
        out / "study.json": as_json(report.data).encode(),
        **{out / f"{plot.name}.png": png(plot) for plot in plots},
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
