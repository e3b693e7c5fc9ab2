"""What macro, ablation and designs say."""

from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any

from .. import figures
from ..breakdown import MEMORY_BOUND
from ..compare import Compared, Entry, Measured, Speed, in_mixer, stage_seconds
from ..report import LABEL, Column, Picture, Report, Section, Table

PAPER_ENGINES = {"torch": "cpu", "torch-traced": "cpu", "onnx": "cpu-onnx"}
"""With which of the paper's speeds an engine's on a CPU are compared; all on a GPU are with those on a GPU."""
PAPER_NAMES = {"gpu": "A100", "cpu": "PyTorch on a Xeon", "cpu-onnx": "ONNX Runtime on a Xeon"}

PARAMS, MACS = Column("parameters, M", "{:.2f}"), Column("MACs, M", "{:.0f}")


def compared_page(found: Compared, about: dict[str, Any]) -> Report:
    """Of macro, ablation and designs."""
    comparison = found.comparison
    sections = [_costs_section(found)]
    if found.pairs():
        sections.append(_speed_section(found))
    if any(row.breakdowns for row in found.rows):
        sections.append(_time_section(found))
    if any(row.top1 for row in found.rows):
        sections.append(_accuracy_section(found))
    sections.append(Section("What the paper says", comparison.claims))
    if found.omitted:
        sections.append(Section("What has no number, and why", found.omitted))
    value = max((s.ratio for row in found.rows for s in row.speeds if s.ratio), default=None)
    data = {
        "what": f"{comparison.title}: the highest speed on any engine, as a multiple of {comparison.reference}",
        "value": value,
        "unit": "ratio",
        "threads": found.how.threads,
        **found.to_dict(),
        "claims": list(comparison.claims),
        **about,
    }
    return Report(comparison.title, comparison.question, _compared_findings(found), tuple(sections), data)


def _compared_findings(found: Compared) -> tuple[str, ...]:
    said = []
    for engine, precision, batch in found.pairs():
        ratios = [(row.entry, _ratio(row, engine, precision, batch)) for row in found.rows]
        parts = [
            f"{entry.label} {ratio:.2f}{_paper_ratio_said(found, entry, engine)}"
            for entry, ratio in ratios
            if ratio is not None and entry.label != found.comparison.reference
        ]
        if parts:
            said.append(
                f"{engine} {precision}, batches of {batch}: as a multiple of the speed of "
                f"{found.comparison.reference}: {'; '.join(parts)}."
            )
    trained = [row for row in found.rows if row.top1]
    if len(trained) > 1 and found.training:
        best = max(trained, key=lambda row: row.mean_top1 or 0)
        order = ", ".join(f"{row.entry.label} {_top1_said(row)}" for row in trained)
        said.append(
            f"Top-1 after {found.training.epochs} epochs: {order}. The highest is {best.entry.label}. {_noise(trained)}"
        )
    return tuple(said) or ("Nothing could be measured: see below why.",)


def _top1_said(row: Measured) -> str:
    return f"{100 * (row.mean_top1 or 0):.2f} %"


def _noise(rows: Sequence[Measured]) -> str:
    """What differences mean, by how far seeds of one network are apart."""
    several = [row for row in rows if len(row.top1) > 1]
    if not several:
        return "One seed each: how far seeds of one network are apart is not known, so small differences mean nothing."
    spread = (mean(stdev(row.top1) ** 2 for row in several)) ** 0.5
    seeds = min(len(row.top1) for row in several)
    certain = 2 * spread * (2 / seeds) ** 0.5
    return (
        f"Seeds of one network are {100 * spread:.2f} points apart (standard deviation), so means over {seeds} seeds "
        f"that differ by less than {100 * certain:.1f} points are not told apart."
    )


def _speed(row: Measured, engine: str, precision: str, batch: int) -> Speed | None:
    return next((s for s in row.speeds if (s.engine, s.precision, s.batch_size) == (engine, precision, batch)), None)


def _ratio(row: Measured, engine: str, precision: str, batch: int) -> float | None:
    speed = _speed(row, engine, precision, batch)
    return speed.ratio if speed else None


def _paper_kind(found: Compared, engine: str) -> str | None:
    return "gpu" if found.how.device.startswith("cuda") else PAPER_ENGINES.get(engine)


def _paper_ratio(found: Compared, entry: Entry, kind: str | None) -> float | None:
    """The paper's speed of an entry as a multiple of that of the reference."""
    speed, reference = (one.paper.get(kind or "") for one in (entry, found.reference.entry))
    return speed / reference if speed and reference else None


def _paper_ratio_said(found: Compared, entry: Entry, engine: str) -> str:
    ratio = _paper_ratio(found, entry, _paper_kind(found, engine))
    return f" (paper {ratio:.2f})" if ratio else ""


def _costs_section(found: Compared) -> Section:
    columns = (LABEL, Column("name"), Column("pixels"), PARAMS, MACS, Column("activations, MB", "{:.2f}"))
    paper = any("params" in row.entry.paper for row in found.rows)
    rows = []
    for row in found.rows:
        costs: list[Any] = [row.params / 1e6, row.macs / 1e6, row.activation_bytes / 1e6]
        cells: list[Any] = [row.entry.label, row.entry.model, row.image_size, *costs]
        rows.append([*cells, row.entry.paper.get("params")] if paper else cells)
    if paper:
        columns = (*columns, Column("paper's parameters, M", "{:.1f}"))
    note = "Activations: what convolutions, linear layers and attention's products write for one image, in fp32."
    return Section("What they cost", (), (Table("costs", "Costs of one image", columns, rows, note),))


def _speed_section(found: Compared) -> Section:
    rows: list[list[Any]] = []
    pictured: dict[str, list[float | None]] = {}
    for setting in found.pairs():
        engine = setting[0]
        pictured["{} {}, batch {}".format(*setting)] = [_ratio(row, *setting) for row in found.rows]
        for row in found.rows:
            speed = _speed(row, *setting)
            cells = [speed.images_per_second, speed.ratio, speed.spread] if speed else [None, None, None]
            rows.append([row.entry.label, *setting, *cells, _paper_ratio(found, row.entry, _paper_kind(found, engine))])
    columns = (
        LABEL,
        Column("engine"),
        Column("precision"),
        Column("batch"),
        Column("images/s", "{:,.0f}"),
        Column("ratio", "{:.2f}"),
        Column("spread", "{:.1%}"),
        Column("paper's ratio", "{:.2f}"),
    )
    for kind, name in PAPER_NAMES.items():
        ratios = [_paper_ratio(found, row.entry, kind) for row in found.rows]
        if any(ratios):
            pictured[f"paper, {name}"] = ratios
    labels = [row.entry.label for row in found.rows]
    axis = f"images/s, as a multiple of {found.comparison.reference}"
    figure = figures.bars(labels, pictured, axis, 1.0)
    note = (
        "Networks are timed in turn, round by round, on one engine after the other; ratios are of medians. Half of the "
        "rounds lie within the spread. Weights are random: they do not change the speed."
    )
    return Section(
        "How fast they run",
        (f"Ratios are to {found.comparison.reference}, timed in the same rounds.",),
        (Table("speed", "Speed", columns, rows, note),),
        (Picture("speed", figure, "Speed of each network on each engine; grey: the paper's, on its hardware."),),
    )


def _time_section(found: Compared) -> Section:
    tables, pictures = [], []
    for engine in dict.fromkeys(one.engine for row in found.rows for one in row.breakdowns):
        here = [(row, one) for row in found.rows for one in row.breakdowns if one.engine == engine]
        stages = list(dict.fromkeys(name for _, one in here for name in stage_seconds(one)))
        stages.sort(key=lambda name: (name != "pixels to floats", name != "stem", name == "head", name))
        batch = here[0][1].batch_size
        times = {row.entry.label: stage_seconds(one) for row, one in here}
        milliseconds = {
            stage: [1e3 * found_seconds.get(stage, 0.0) / batch for found_seconds in times.values()] for stage in stages
        }
        pictures.append(
            Picture(
                f"stages_{engine}",
                figures.stacks(list(times), milliseconds, "milliseconds an image"),
                f"{engine}: where the time of an image goes, by stage.",
            )
        )
        rows = []
        for row, one in here:
            seconds = stage_seconds(one)
            cells: list[Any] = [1e3 * seconds[name] / batch if name in seconds else None for name in stages]
            mixers = one.seconds(within=in_mixer)
            rows.append([row.entry.label, *cells, one.memory_bound(), 1e3 * mixers / batch, one.memory_bound(in_mixer)])
        columns = (
            LABEL,
            *(Column(f"{name}, ms", "{:.3f}") for name in stages),
            Column("memory-bound", "{:.1%}"),
            Column("token mixers, ms", "{:.3f}"),
            Column("memory-bound in these", "{:.1%}"),
        )
        tables.append(Table(f"stages_{engine}", f"{engine} fp32: milliseconds an image by stage", columns, rows))
    text = (
        "By each engine's own profiler, in fp32; profiled runs are somewhat slower than the ones above. Memory-bound "
        f"is the share of time in {', '.join(MEMORY_BOUND)}; what a fused kernel does beside a product counts as "
        "product.",
    )
    return Section("Where the time goes", text, tuple(tables), tuple(pictures))


def _accuracy_section(found: Compared) -> Section:
    training = found.training
    assert training
    rows: list[list[Any]] = []
    seeds = max(len(row.top1) for row in found.rows)
    for row in found.rows:
        each = [100 * value for value in row.top1] + [None] * (seeds - len(row.top1))
        rows.append(
            [row.entry.label, 100 * row.mean_top1 if row.mean_top1 else None, *each, row.entry.paper.get("top1")]
        )
    columns = (
        LABEL,
        Column("top-1, mean, %", "{:.2f}"),
        *(Column(f"seed {seed}, %", "{:.2f}") for seed in range(seeds)),
        Column("paper, ImageNet-1K, %", "{:.1f}"),
    )
    trained = [row for row in found.rows if row.top1]
    pictures = []
    if found.pairs():
        engine, precision, batch = found.pairs()[0]
        marks = []
        for row in trained:
            if speed := _speed(row, engine, precision, batch):
                marks.append((speed.images_per_second, 100 * (row.mean_top1 or 0), row.entry.label))
        if marks:
            figure = figures.points({"": marks}, f"images/s, {engine} {precision}, batch {batch}", "top-1, %")
            pictures.append(Picture("accuracy", figure, "Accuracy against speed."))
    size = training.image_size or found.how.image_size
    text = (
        f"Each network from fresh weights on {training.data}, {training.epochs} epochs at {size} pixels (larger "
        "images: as many times as large), by the recipe scratch, all alike; top-1 of best.safetensors, on the "
        "validation images that chose it.",
        _noise(trained),
    )
    return Section("How well they learn", text, (Table("accuracy", "Top-1", tuple(columns), rows),), tuple(pictures))
