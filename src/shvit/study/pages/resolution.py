"""The report of `shvit study resolution`."""

from collections.abc import Mapping
from typing import Any

from ...bench.peers import published_top1
from ...report.blocks import Column, Plot, Section, Table
from .. import figures
from ..report import NETWORK_COLUMN, NOTHING_MEASURED, StudyReport
from ..resolution import ResolutionResult

CLAIM = (
    "S4 at 384 pixels is 77.4 % faster on a GPU than EfficientViT-M5 at 512 pixels. S4 fine-tuned at 512 pixels has a "
    "top-1 of 82.0 % at 3,957 images/s on an A100. At 1024x1024 pixels on a phone, the latency of S4 is 34.4 % lower "
    "than FastViT's and 69.7 % lower than EfficientFormer's."
)
Values = Mapping[tuple[str, int], float]
"""Values by network and image size."""
Setting = tuple[str, str, int]
"""Engine, precision, batch size."""


def resolution_page(result: ResolutionResult, about: dict[str, Any]) -> StudyReport:
    """Report latency and accuracy against image size."""
    latencies: dict[Setting, dict[tuple[str, int], float]] = {}
    for row in result.latencies:
        setting = row.engine, row.precision, row.batch_size
        latencies.setdefault(setting, {})[row.model, row.image_size] = row.milliseconds
    tops = {(row.model, row.image_size): 100 * row.top1 for row in result.accuracies}
    sections = [_latency_section(result, latencies)]
    if tops:
        sections.append(_accuracy_section(result, tops, latencies))
    published = [
        [name, size, top.percent, "yes" if top.distilled else "no", top.source]
        for name in result.models
        for size in result.sizes
        if (top := published_top1(name, size))
    ]
    if published:
        columns = (
            NETWORK_COLUMN,
            Column("pixels"),
            Column("top-1, %", "{:.1f}"),
            Column("distilled"),
            Column("source"),
        )
        table = Table("published", "Published top-1 on ImageNet-1K", columns, published)
        sections.append(Section("Published accuracy", (), (table,)))
    sections.append(Section("What the paper says", (CLAIM,)))
    if result.omitted:
        sections.append(Section("Not measured", result.omitted))
    data = {
        "what": "lowest latency per image",
        "value": min((row.milliseconds for row in result.latencies), default=None),
        "unit": "ms",
        "threads": result.speed.threads,
        **result.to_dict(),
        **about,
    }
    findings = [_fastest(result, setting, here) for setting, here in latencies.items()]
    for name, values in _series(result, tops).items():
        size, top = max(values, key=lambda value: value[1])
        findings.append(f"{name} is most accurate at {size} pixels: {top:.2f} %.")
    lead = "How latency and accuracy change with the image size, for SHViT and other networks."
    return StudyReport(
        "Latency and accuracy against resolution", lead, tuple(findings) or (NOTHING_MEASURED,), tuple(sections), data
    )


def _named(setting: Setting) -> str:
    engine, precision, batch = setting
    return f"{engine} {precision}, batch {batch}"


def _series(result: ResolutionResult, values: Values) -> dict[str, list[tuple[int, float]]]:
    """The values of each network, by increasing image size. Networks without values are left out."""
    series = {
        name: [(size, values[name, size]) for size in result.sizes if (name, size) in values] for name in result.models
    }
    return {name: points for name, points in series.items() if points}


def _table(result: ResolutionResult, values: Values, name: str, title: str) -> Table:
    rows = [[model, *(values.get((model, size)) for size in result.sizes)] for model in result.models]
    return Table(name, title, (NETWORK_COLUMN, *(Column(f"{size} px", "{:.2f}") for size in result.sizes)), rows)


def _fastest(result: ResolutionResult, setting: Setting, here: Values) -> str:
    largest = max(size for _, size in here)
    order = sorted((here[name, largest], name) for name in result.models if (name, largest) in here)
    listed = ", ".join(f"{name} {spent:.1f}" for spent, name in order)
    return f"{_named(setting)}, at {largest} pixels, ms/image: {listed}."


def _latency_section(result: ResolutionResult, latencies: Mapping[Setting, Values]) -> Section:
    tables, pictures = [], []
    for setting, here in latencies.items():
        name = "latency_{}_{}_{}".format(*setting)
        tables.append(_table(result, here, name, f"{_named(setting)}: ms/image"))
        figure = figures.lines(_series(result, here), "image size, pixels", "ms/image", log=True)
        pictures.append(Plot(name, figure, f"Latency against image size, {_named(setting)}."))
    text = "In each round, every network is timed once at each size."
    return Section("Latency", (text,), tuple(tables), tuple(pictures))


def _accuracy_section(result: ResolutionResult, tops: Values, latencies: Mapping[Setting, Values]) -> Section:
    series = _series(result, tops)
    figure = figures.lines(series, "image size, pixels", "top-1, %")
    pictures = [Plot("accuracy", figure, "Top-1 against image size.")]
    for setting, here in list(latencies.items())[:1]:
        against = {
            name: [(here[name, size], top, f"{size}") for size, top in values if (name, size) in here]
            for name, values in series.items()
        }
        against = {name: values for name, values in against.items() if values}
        figure = figures.points(against, f"ms/image, {_named(setting)}", "top-1, %")
        pictures.append(
            Plot("tradeoff", figure, "Top-1 against latency. Points are labelled with the image size in pixels.")
        )
    text = "A network has the same weights at each size: they are not fine-tuned, and norms are not recalibrated."
    return Section("Accuracy", (text,), (_table(result, tops, "accuracy", "Top-1, %"),), tuple(pictures))
