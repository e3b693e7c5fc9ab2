"""The report of `shvit study macro`, `ablation` and `designs`."""

from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any

from ...errors import counted
from ...report.blocks import Column, Plot, Section, Table
from .. import figures
from ..breakdown import MEMORY_BOUND
from ..compare import ComparisonResult, Entry, EntryResult, Speed
from ..report import NETWORK_COLUMN, NOTHING_MEASURED, StudyReport

PAPER_ENGINES = {"torch": "cpu", "torch-traced": "cpu", "onnx": "cpu-onnx"}
"""The key in `Entry.paper` with which an engine is compared on a CPU. On a GPU, the key is `gpu` for all engines."""
PAPER_NAMES = {"gpu": "A100", "cpu": "PyTorch on a Xeon", "cpu-onnx": "ONNX Runtime on a Xeon"}

PARAMS, MACS = Column("parameters, M", "{:.2f}"), Column("MACs, M", "{:.0f}")


def comparison_page(result: ComparisonResult, about: dict[str, Any]) -> StudyReport:
    """Report cost, speed, time by stage and accuracy."""
    comparison = result.comparison
    sections = [_costs_section(result)]
    if result.pairs():
        sections.append(_speed_section(result))
    if any(row.breakdowns for row in result.rows):
        sections.append(_time_section(result))
    if any(row.top1 for row in result.rows):
        sections.append(_accuracy_section(result))
    sections.append(Section("What the paper says", comparison.claims))
    if result.omitted:
        sections.append(Section("Not measured", result.omitted))
    value = max((s.ratio for row in result.rows for s in row.speeds if s.ratio), default=None)
    data = {
        "what": f"{comparison.title}: highest speed on any engine, relative to {comparison.reference}",
        "value": value,
        "unit": "ratio",
        "threads": result.speed.threads,
        **result.to_dict(),
        "claims": list(comparison.claims),
        **about,
    }
    return StudyReport(comparison.title, comparison.question, _findings(result), tuple(sections), data)


def _findings(result: ComparisonResult) -> tuple[str, ...]:
    findings = []
    for engine, precision, batch in result.pairs():
        ratios = [(row.entry, _ratio(row, engine, precision, batch)) for row in result.rows]
        parts = [
            f"{entry.label} {ratio:.2f}{_paper_note(result, entry, engine)}"
            for entry, ratio in ratios
            if ratio is not None and entry.label != result.comparison.reference
        ]
        if parts:
            findings.append(
                f"{engine} {precision}, batch {batch}, speed relative to {result.comparison.reference}: "
                f"{'; '.join(parts)}."
            )
    trained = [row for row in result.rows if row.top1]
    if len(trained) > 1 and result.training:
        best = max(trained, key=lambda row: row.mean_top1 or 0)
        order = "; ".join(f"{row.entry.label} {_top1(row)}" for row in trained)
        findings.append(
            f"Top-1 after {counted(result.training.epochs, 'epoch')}: {order}. The highest is {best.entry.label}. "
            f"{_noise(trained)}"
        )
    return tuple(findings) or (NOTHING_MEASURED,)


def _top1(row: EntryResult) -> str:
    return f"{100 * (row.mean_top1 or 0):.2f} %"


def _noise(rows: Sequence[EntryResult]) -> str:
    """A sentence that says which differences of top-1 are significant, given the spread between seeds."""
    several = [row for row in rows if len(row.top1) > 1]
    if not several:
        return "Each network was trained with one seed. The spread between seeds is unknown: ignore small differences."
    spread = (mean(stdev(row.top1) ** 2 for row in several)) ** 0.5
    seeds = min(len(row.top1) for row in several)
    certain = 2 * spread * (2 / seeds) ** 0.5
    return (
        f"The standard deviation between seeds of one network is {100 * spread:.2f} points, so differences of less "
        f"than {100 * certain:.1f} points between means over {seeds} seeds are not significant."
    )


def _speed(row: EntryResult, engine: str, precision: str, batch: int) -> Speed | None:
    return next((s for s in row.speeds if (s.engine, s.precision, s.batch_size) == (engine, precision, batch)), None)


def _ratio(row: EntryResult, engine: str, precision: str, batch: int) -> float | None:
    speed = _speed(row, engine, precision, batch)
    return speed.ratio if speed else None


def _paper_kind(result: ComparisonResult, engine: str) -> str | None:
    return "gpu" if result.speed.device.startswith("cuda") else PAPER_ENGINES.get(engine)


def _paper_ratio(result: ComparisonResult, entry: Entry, kind: str | None) -> float | None:
    """The speed of an entry relative to the reference entry, from the paper's numbers. None if a number is missing."""
    speed, reference = (one.paper.get(kind or "") for one in (entry, result.reference.entry))
    return speed / reference if speed and reference else None


def _paper_note(result: ComparisonResult, entry: Entry, engine: str) -> str:
    ratio = _paper_ratio(result, entry, _paper_kind(result, engine))
    return f" (paper {ratio:.2f})" if ratio else ""


def _costs_section(result: ComparisonResult) -> Section:
    columns = (NETWORK_COLUMN, Column("name"), Column("pixels"), PARAMS, MACS, Column("activations, MB", "{:.2f}"))
    paper = any("params" in row.entry.paper for row in result.rows)
    rows = []
    for row in result.rows:
        costs: list[Any] = [row.params / 1e6, row.macs / 1e6, row.activation_bytes / 1e6]
        cells: list[Any] = [row.entry.label, row.entry.model, row.image_size, *costs]
        rows.append([*cells, row.entry.paper.get("params")] if paper else cells)
    if paper:
        columns = (*columns, Column("paper's parameters, M", "{:.1f}"))
    note = "Activations: outputs of convolutions, linear layers and attention products for one image, in fp32."
    return Section("Cost", (), (Table("costs", "Cost per image", columns, rows, note),))


def _speed_section(result: ComparisonResult) -> Section:
    rows: list[list[Any]] = []
    pictured: dict[str, list[float | None]] = {}
    for setting in result.pairs():
        engine = setting[0]
        pictured["{} {}, batch {}".format(*setting)] = [_ratio(row, *setting) for row in result.rows]
        for row in result.rows:
            speed = _speed(row, *setting)
            cells = [speed.images_per_second, speed.ratio, speed.spread] if speed else [None, None, None]
            rows.append(
                [row.entry.label, *setting, *cells, _paper_ratio(result, row.entry, _paper_kind(result, engine))]
            )
    columns = (
        NETWORK_COLUMN,
        Column("engine"),
        Column("precision"),
        Column("batch"),
        Column("images/s", "{:,.0f}"),
        Column("ratio", "{:.2f}"),
        Column("spread", "{:.1%}"),
        Column("paper's ratio", "{:.2f}"),
    )
    for kind, name in PAPER_NAMES.items():
        ratios = [_paper_ratio(result, row.entry, kind) for row in result.rows]
        if any(ratios):
            pictured[f"paper, {name}"] = ratios
    labels = [row.entry.label for row in result.rows]
    axis = f"images/s, relative to {result.comparison.reference}"
    figure = figures.bars(labels, pictured, axis, 1.0)
    note = (
        "Engines are measured one after the other. In each round, every network is timed once. Ratios compare medians. "
        "Half of the rounds differ from the median by less than the spread. Random weights do not change the speed."
    )
    return Section(
        "Speed",
        (f"Ratios are relative to the speed of {result.comparison.reference}, timed in the same rounds.",),
        (Table("speed", "Speed", columns, rows, note),),
        (Plot("speed", figure, "Speed on each engine. Gray bars, if any, show the paper's results."),),
    )


def _time_section(result: ComparisonResult) -> Section:
    tables, pictures = [], []
    for engine in dict.fromkeys(one.engine for row in result.rows for one in row.breakdowns):
        here = [(row, one) for row in result.rows for one in row.breakdowns if one.engine == engine]
        stages = list(dict.fromkeys(name for _, one in here for name in one.stage_seconds()))
        stages.sort(key=lambda name: (name != "pixels to floats", name != "stem", name == "head", name))
        batch = here[0][1].batch_size
        times = {row.entry.label: one.stage_seconds() for row, one in here}
        milliseconds = {
            stage: [1e3 * seconds.get(stage, 0.0) / batch for seconds in times.values()] for stage in stages
        }
        pictures.append(
            Plot(
                f"stages_{engine}",
                figures.stacks(list(times), milliseconds, "ms/image"),
                f"{engine}: time per image by stage.",
            )
        )
        rows = []
        for row, one in here:
            seconds = one.stage_seconds()
            cells: list[Any] = [1e3 * seconds[name] / batch if name in seconds else None for name in stages]
            mixers = one.attention.seconds()
            rows.append(
                [row.entry.label, *cells, one.memory_bound(), 1e3 * mixers / batch, one.attention.memory_bound()]
            )
        columns = (
            NETWORK_COLUMN,
            *(Column(f"{name}, ms", "{:.3f}") for name in stages),
            Column("memory-bound", "{:.1%}"),
            Column("token mixers, ms", "{:.3f}"),
            Column("memory-bound in token mixers", "{:.1%}"),
        )
        tables.append(Table(f"stages_{engine}", f"{engine} fp32: ms/image by stage", columns, rows))
    text = (
        "From each engine's own profiler, in fp32. Profiling makes runs a little slower than in the tables above. "
        f"Memory-bound is the share of time in {', '.join(MEMORY_BOUND)}. Operations fused into a matrix product count "
        "as part of that product. Token mixers include their norms and projections.",
    )
    return Section("Where the time goes", text, tuple(tables), tuple(pictures))


def _accuracy_section(result: ComparisonResult) -> Section:
    training = result.training
    assert training
    rows: list[list[Any]] = []
    seeds = max(len(row.top1) for row in result.rows)
    for row in result.rows:
        each = [100 * value for value in row.top1] + [None] * (seeds - len(row.top1))
        rows.append(
            [row.entry.label, 100 * row.mean_top1 if row.mean_top1 else None, *each, row.entry.paper.get("top1")]
        )
    columns = (
        NETWORK_COLUMN,
        Column("top-1, mean, %", "{:.2f}"),
        *(Column(f"seed {seed}, %", "{:.2f}") for seed in range(seeds)),
        Column("paper, ImageNet-1K, %", "{:.1f}"),
    )
    trained = [row for row in result.rows if row.top1]
    pictures = []
    if result.pairs():
        engine, precision, batch = result.pairs()[0]
        marks = {
            row.entry.label: [(speed.images_per_second, 100 * (row.mean_top1 or 0), "")]
            for row in trained
            if (speed := _speed(row, engine, precision, batch))
        }
        if marks:
            figure = figures.points(marks, f"images/s, {engine} {precision}, batch {batch}", "top-1, %")
            pictures.append(Plot("accuracy", figure, "Accuracy against speed."))
    size = training.image_size or result.image_size
    text = (
        f"Each network is trained from random weights on the dataset {training.data}, for "
        f"{counted(training.epochs, 'epoch')} at {size} pixels (if speed is measured on larger images, they are "
        "larger by the same factor), with the recipe scratch. Top-1 is that of the best epoch, which was selected on "
        "the same validation images.",
        _noise(trained),
    )
    return Section("Accuracy", text, (Table("accuracy", "Top-1", tuple(columns), rows),), tuple(pictures))
