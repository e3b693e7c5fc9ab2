"""The output of a benchmark: progress, tables, files. All formatting is in this file and figures.py."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from ..console import say, show_table, visible
from ..errors import InputError, counted
from ..files import write_json
from ..provenance import hardware_in_words
from .case import is_detector
from .peers import Top1
from .run import Result, Row

SHOWN_KERNELS, NAME_LENGTH = 40, 60
"""Maximum number of rows, and maximum length of names, in a printed profile. The file contains the whole profile."""

RowColumn = tuple[str, Callable[[Row], str]]


def mark(top1: Top1) -> str:
    """The symbols after an accuracy: ‡ if it is stored in a model file, † if the network was distilled."""
    return "‡" * top1.own + "†" * top1.distilled


CASE_COLUMNS: tuple[RowColumn, ...] = (
    ("engine", lambda row: row.case.engine + (f" ({row.detail})" if row.detail else "")),
    ("precision", lambda row: row.case.precision + ("*" if row.random_calibration else "")),
    ("batch", lambda row: str(row.case.batch_size)),
    ("pixels", lambda row: str(row.case.image_size)),
)
"""Columns that are shown only if their values differ between rows."""

COLUMNS: tuple[RowColumn, ...] = (
    ("images/s", lambda row: f"{row.images_per_second:,.{0 if row.images_per_second >= 100 else 1}f}"),
    ("ms per call", lambda row: f"{row.timing.median * 1e3:.2f}"),
    ("p95", lambda row: f"{row.timing.p95 * 1e3:.2f}"),
    ("spread", lambda row: f"{row.timing.spread:.1%}"),
    ("of peak", lambda row: f"{row.share:.0%}" if row.share else "-"),
    ("memory", lambda row: f"{row.memory / 1e6:.0f} MB" if row.memory is not None else "-"),
    ("params", lambda row: f"{row.cost.params / 1e6:.1f} M" if row.cost else "-"),
    ("MACs", lambda row: f"{row.cost.macs / 1e6:.0f} M" if row.cost else "-"),
)  # fmt: skip
TOP1: RowColumn = ("top-1", lambda row: f"{row.top1.percent:.1f}%{mark(row.top1) or ' '}" if row.top1 else "- ")
TRAINING: RowColumn = ("training", lambda row: row.top1.training if row.top1 else "")

OF_DETECTORS: tuple[RowColumn, ...] = (
    ("part", lambda row: row.case.part),
    ("ms per image", lambda row: f"{1e3 / row.images_per_second:.2f}"),
    ("paper, ms", lambda row: f"{row.paper_milliseconds:.2f}" if row.paper_milliseconds else "-"),
)

NOTES_ON_DETECTORS = (
    "part: backbones are timed up to the last feature map, whole detectors from pixels to boxes, including any "
    "NMS. RetinaNet and Mask R-CNN with random weights find no objects, so NMS and masks take almost no time. paper, "
    "ms: milliseconds per image of the backbone, on the paper's hardware."
)
NOTES = (
    "ms per call: time of one batch, median of the rounds. p95: 95th percentile of all calls. spread: half of the "
    "rounds differ from the median by at most this much.",
    "of peak: operations/s relative to the machine's peak matmul FLOP/s in the same precision.",
    "memory: peak while the network runs, minus memory before it was loaded. It includes the runtime.",
    "params, MACs: of the network after its BatchNorms are folded.",
)
NOTE_ON_TOP1 = (
    "top-1: published on ImageNet-1K († distilled), or stored in the model file and measured on its validation images "
    "(‡). training: data and distillation. Networks given without weights run with random weights."
)


@contextmanager
def watching(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """Show a progress bar in a terminal; yields the function that updates it."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        bar = progress.add_task("")
        yield lambda what, done, total: progress.update(bar, description=visible(what), completed=done, total=total)


def show(console: Console, result: Result) -> None:
    """Print the machine, the table, and the reasons for missing rows."""
    hardware, machine = result.about["hardware"], result.machine
    threads = result.request.threads or "chosen by each engine"
    cores, rounds = counted(hardware["cores"], "core"), counted(result.request.rounds, "interleaved round")
    if result.groups > 1:
        rounds += f" in {result.groups} groups, one after another, because memory did not hold all models"
    say(console, f"{hardware_in_words(hardware)}, {cores}; threads: {threads}; {rounds}")
    products = (f"{name} {p.rate / 1e9:,.0f} GFLOP/s ({p.by})" for name, p in machine.products.items())
    say(console, f"peak matmul: {', '.join(products)}")
    say(
        console,
        f"memory bandwidth (bytes copied, read plus written): {machine.copy_cache / 1e9:.1f} GB/s in the caches, "
        f"{machine.copy_memory / 1e9:.1f} GB/s in memory",
    )
    if result.protocol:
        say(console, f"protocol {result.request.protocol}: {result.protocol.about}")
    differing = [column for column in CASE_COLUMNS if len({column[1](row) for row in result.rows}) > 1]
    same = [f"{name} {cell(result.rows[0])}" for name, cell in CASE_COLUMNS if (name, cell) not in differing]
    if same:
        say(console, f"same in every row: {', '.join(same)}")
    detects = is_detector(result.request.task)
    shown = (*OF_DETECTORS, *COLUMNS) if detects else (*COLUMNS, TOP1, TRAINING)
    columns = [("model", lambda row: row.case.model), *differing, *shown, *_paper_columns(result)]
    rows = [[cell(row) for _, cell in columns] for row in result.rows]
    show_table(console, [name for name, _ in columns], rows)
    for note in (*NOTES, NOTES_ON_DETECTORS if detects else NOTE_ON_TOP1):
        say(console, note, style="dim")
    if any(row.random_calibration for row in result.rows):
        say(console, "* quantized with random images: only the speed is meaningful", style="dim")
    if result.request.profile:
        for row in result.rows:
            _show_profile(console, result, row)
    for title, group in (("left out", result.skipped), ("failed", result.failed)):
        for omitted in group:
            say(console, f"{title}: {omitted.what}: {omitted.reason}", style="yellow")


def _show_profile(console: Console, result: Result, row: Row) -> None:
    """Print the time of each kernel or operation in a call. For the engine cuda, also print the minimum time."""
    say(console, "")
    say(console, f"{row.case}: time of each operation in a call", style="bold")
    if not row.profile:
        say(console, f"PyTorch's profiler cannot record the operations of {row.case.engine}")
        return
    total = sum(spent.seconds for spent in row.profile)
    floors = [spent.floor(result.machine, row.case.precision) for spent in row.profile]
    rows = []
    for spent, floor in list(zip(row.profile, floors, strict=True))[:SHOWN_KERNELS]:
        known = (
            [f"{spent.operations / 1e9:.2f}", f"{spent.bytes / 1e6:.1f}", f"{floor / spent.seconds:.0%}"]
            if floor and spent.operations is not None and spent.bytes is not None
            else ["-", "-", "-"]
        )
        name = spent.what if len(spent.what) <= NAME_LENGTH else f"{spent.what[: NAME_LENGTH - 1]}…"
        rows.append([name, str(spent.times), f"{spent.seconds * 1e6:.1f}", f"{spent.seconds / total:.1%}", *known])
    show_table(console, ["operation", "calls", "µs", "of total", "GFLOP", "MB", "min/actual"], rows)
    least = sum(filter(None, floors))
    floor = f"; the minimum times of the layers add up to {least * 1e6:.1f} µs" if least else ""
    say(console, f"total: {total * 1e6:.1f} µs of {row.timing.median * 1e6:.1f} µs per call{floor}")


def _paper_columns(result: Result) -> list[RowColumn]:
    if not result.protocol:
        return []

    def ratios(row: Row) -> str:
        here, published = result.ratio_to_s1(row), result.published_speed(row)
        return f"{f'{here:.2f}' if here else '-'} / {f'{published[1]:.2f}' if published else '-'}"

    def speed(row: Row) -> str:
        published = result.published_speed(row)
        return f"{published[0]:,}" if published else "-"

    return [("ratio to shvit_s1, here / paper", ratios), ("paper's images/s", speed)]


def check_paths(out: Path | None, plot: Path | None) -> None:
    """Raises InputError if `out` is neither a .json file nor a folder, or if `plot` is not a .png file."""
    if out and not _is_folder(out) and out.suffix != ".json":
        raise InputError(f"--out must be a folder or end in .json, got {out}")
    if plot and plot.suffix.lower() != ".png":
        raise InputError(f"--plot must end in .png, got {plot}")


def write_result(result: Result, out: Path) -> Path:
    """Write the result as JSON. If `out` is a folder, the file is named after the hardware and the date."""
    if _is_folder(out):
        what = f"bench-{result.request.task}" if is_detector(result.request.task) else "bench"
        out = out / f"{what}_{hardware_name(result.about['hardware'])}_{result.about['date'][:10]}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, result.to_dict())
    return out


def hardware_name(hardware: dict[str, Any]) -> str:
    """A short name of the machine for file names, such as amd-epyc-bf16-2core (bf16: the newest instruction set)."""
    words = re.sub(r"\((r|tm|c)\)|\bcpu\b|@.*", " ", hardware.get("gpu", hardware["processor"]).lower())
    name = re.findall(r"[a-z0-9.]+", words)
    if "gpu" not in hardware:
        newest = [text.lower() for text in hardware.get("instructions", ())[-1:]]
        name += [*newest, f"{hardware['cores']}core"]
    return "-".join(name)


def _is_folder(path: Path) -> bool:
    return path.is_dir() or path.suffix == ""
