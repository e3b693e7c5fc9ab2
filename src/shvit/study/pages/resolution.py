"""What latency and accuracy against size say."""

from collections.abc import Mapping
from typing import Any

from ...bench.peers import published_top1
from .. import figures
from ..report import LABEL, Column, Picture, Report, Section, Table
from ..resolution import AgainstSize

CLAIM = (
    "S4 at 384 pixels is 77.4 % faster on a GPU than EfficientViT-M5 at 512; S4 fine-tuned at 512 has 82.0 % and runs "
    "at 3,957 images/s on an A100. At 1024x1024 on a phone, S4's latency is 34.4 % below FastViT's and 69.7 % below "
    "EfficientFormer's."
)
Values = Mapping[tuple[str, int], float]
"""By network and size."""
Setting = tuple[str, str, int]
"""Engine, precision, batch size."""


def resolution_page(found: AgainstSize, about: dict[str, Any]) -> Report:
    """Of latency and accuracy against size."""
    latencies: dict[Setting, dict[tuple[str, int], float]] = {}
    for point in found.points:
        setting = point.engine, point.precision, point.batch_size
        latencies.setdefault(setting, {})[point.model, point.image_size] = point.milliseconds
    tops = {(row.model, row.image_size): 100 * row.top1 for row in found.accuracies}
    sections = [_latency_section(found, latencies)]
    if tops:
        sections.append(_accuracy_section(found, tops, latencies))
    published = [
        [name, size, top.percent, "yes" if top.distilled else "no", top.source]
        for name in found.models
        for size in found.sizes
        if (top := published_top1(name, size))
    ]
    if published:
        columns = (LABEL, Column("pixels"), Column("top-1, %", "{:.1f}"), Column("distilled"), Column("source"))
        table = Table("published", "Published top-1 on ImageNet-1K", columns, published)
        sections.append(Section("Published accuracy", (), (table,)))
    sections.append(Section("What the paper says", (CLAIM,)))
    if found.omitted:
        sections.append(Section("What has no number, and why", found.omitted))
    data = {
        "what": "the least milliseconds an image",
        "value": min((p.milliseconds for p in found.points), default=None),
        "unit": "ms",
        "threads": found.how.threads,
        **found.to_dict(),
        **about,
    }
    said = [_fastest_said(found, setting, here) for setting, here in latencies.items()]
    for name, values in _series(found, tops).items():
        size, top = max(values, key=lambda value: value[1])
        said.append(f"{name} is most accurate at {size} pixels, {top:.2f} %.")
    lead = "How latency and accuracy change with the size of the images, for SHViT beside other networks."
    said = said or ["Nothing could be measured: see below why."]
    return Report("Latency and accuracy against resolution", lead, tuple(said), tuple(sections), data)


def _named(setting: Setting) -> str:
    engine, precision, batch = setting
    return f"{engine} {precision}, batch {batch}"


def _series(found: AgainstSize, values: Values) -> dict[str, list[tuple[int, float]]]:
    """Of each network that has any, from small to large images."""
    series = {
        name: [(size, values[name, size]) for size in found.sizes if (name, size) in values] for name in found.models
    }
    return {name: points for name, points in series.items() if points}


def _table(found: AgainstSize, values: Values, name: str, title: str) -> Table:
    rows = [[model, *(values.get((model, size)) for size in found.sizes)] for model in found.models]
    return Table(name, title, (LABEL, *(Column(f"{size} px", "{:.2f}") for size in found.sizes)), rows)


def _fastest_said(found: AgainstSize, setting: Setting, here: Values) -> str:
    largest = max(size for _, size in here)
    order = sorted((here[name, largest], name) for name in found.models if (name, largest) in here)
    listed = ", ".join(f"{name} {spent:.1f}" for spent, name in order)
    return f"{_named(setting)}, at {largest} pixels, milliseconds an image: {listed}."


def _latency_section(found: AgainstSize, latencies: Mapping[Setting, Values]) -> Section:
    tables, pictures = [], []
    for setting, here in latencies.items():
        name = "latency_{}_{}_{}".format(*setting)
        tables.append(_table(found, here, name, f"{_named(setting)}: milliseconds an image"))
        figure = figures.lines(_series(found, here), "side of the image, pixels", "milliseconds an image", log=True)
        pictures.append(Picture(name, figure, f"Latency against size, {_named(setting)}."))
    text = "Networks and sizes are timed in turn, round by round."
    return Section("Latency", (text,), tuple(tables), tuple(pictures))


def _accuracy_section(found: AgainstSize, tops: Values, latencies: Mapping[Setting, Values]) -> Section:
    series = _series(found, tops)
    figure = figures.lines(series, "side of the image, pixels", "top-1, %")
    pictures = [Picture("accuracy", figure, "Top-1 against size.")]
    for setting, here in list(latencies.items())[:1]:
        against = {
            name: [(here[name, size], top, f"{size}") for size, top in values if (name, size) in here]
            for name, values in series.items()
        }
        against = {name: values for name, values in against.items() if values}
        figure = figures.points(against, f"milliseconds an image, {_named(setting)}", "top-1, %")
        pictures.append(Picture("tradeoff", figure, "Top-1 against latency; the points are sizes, in pixels."))
    text = "The same weights at each size, as they are: trained at one of them. Norms are not measured anew."
    return Section("Accuracy", (text,), (_table(found, tops, "accuracy", "Top-1, %"),), tuple(pictures))
