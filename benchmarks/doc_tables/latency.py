"""Accuracy against latency of one image: the figure in README, its caption and its table."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from matplotlib.transforms import Bbox

from shvit.bench.peers import PROTOCOLS, published_top1
from shvit.errors import counted
from shvit.provenance import hardware_in_words

from .results import BATCH, NOTES, ROOT, latest, marks, table, throughput

FIGURE = "docs/accuracy-latency.png"
ENGINE, THREADS, PRECISIONS = "openvino", 1, ("fp32", "int8")
ENGINES = {"fp32": (ENGINE,), "int8": (ENGINE, "native")}
"""The engines of each precision. The faster one counts, if a network was measured in both."""
SOURCES = ("bench", "cpu_ratio", "study-resolution")
"""Kinds of results that time classifiers."""
OURS, PEER, INK, PAPER = "#c2255c", "#31557f", "#222222", "#ffffff"


@dataclass(frozen=True)
class Network:
    """A network's published accuracy, and its measured latency by precision."""

    name: str
    image_size: int
    top1: float
    """In percent, on ImageNet-1K."""
    training: str
    """Data and distillation, such as "in21k, distilled"."""
    milliseconds: dict[str, float]

    @property
    def ours(self) -> bool:
        return self.name.startswith("shvit")

    @property
    def label(self) -> str:
        """The name without the tag of its weights, followed by the marks that `NOTES` explains."""
        return self.name.partition(".")[0] + marks(self.training)

    def beats(self, other: "Network", precision: str) -> bool:
        """Whether this network is faster than `other`, and at least as accurate."""
        return self.milliseconds[precision] < other.milliseconds[precision] and self.top1 >= other.top1


def _files() -> Iterator[dict[str, Any]]:
    """Results with latencies of one image on one CPU thread, newest first."""
    paths = (path for source in SOURCES for path in (ROOT / "results").glob(f"{source}_*.json"))
    for path in sorted(paths, key=lambda path: path.stem[-10:], reverse=True):
        result = json.loads(path.read_text())
        if result["threads"] == THREADS and any(_rows(result)):
            yield result


def _rows(result: dict[str, Any]) -> Iterator[tuple[dict[str, Any], float]]:
    """The rows with batch size 1 in the figure's engines, and their milliseconds, fastest first."""
    found = [
        (row, row["milliseconds"] if "milliseconds" in row else 1e3 * row["seconds"])
        for row in result.get("rows") or result["points"]
        if row["batch_size"] == 1 and row["engine"] in ENGINES.get(row["precision"], ())
    ]
    yield from sorted(found, key=lambda pair: pair[1])


def networks() -> tuple[list[Network], dict[str, Any]]:
    """Networks with a published accuracy at the measured size, and the hardware of the newest result."""
    files = list(_files())
    hardware = files[0]["hardware"]
    times: dict[tuple[str, int], dict[str, float]] = {}
    for result in files:
        for row, milliseconds in _rows(result):
            if result["hardware"] == hardware:
                times.setdefault((row["model"], row["image_size"]), {}).setdefault(row["precision"], milliseconds)
    measured = []
    for (model, size), milliseconds in times.items():
        if top1 := published_top1(model, size):
            measured.append(Network(model.removeprefix("timm/"), size, top1.percent, top1.training, milliseconds))
    return sorted(measured, key=lambda network: network.top1), hardware


def caption() -> str:
    """The figure and its caption."""
    measured, hardware = networks()
    return "\n".join(
        [
            f"![ImageNet-1K top-1 against latency of one image on one CPU thread, SHViT and other networks]({FIGURE})",
            "",
            "*Published ImageNet-1K top-1 against measured latency of one image, on one thread of "
            f"{hardware_in_words(hardware)}. int8 accuracy was not measured: int8 points are drawn at the fp32 "
            f"accuracy.{_missing(measured)} [Data](docs/benchmarks.md#latency-of-one-image)*",
        ]
    )


def latencies() -> str:
    """The figure's data."""
    measured, hardware = networks()
    rows = (
        [
            f"`{network.name}`",
            str(network.image_size),
            f"{network.top1:.1f} %{marks(network.training)}",
            *(
                f"{network.milliseconds[name]:.1f}" if name in network.milliseconds else "not measured"
                for name in PRECISIONS
            ),
        ]
        for network in measured
    )
    return "\n".join(
        [
            f"Median latency at batch size 1 on one thread of {hardware_in_words(hardware)}, in OpenVINO; SHViT in "
            "int8 on the engine `native`. The values are from several benchmark runs on this machine.",
            "",
            *table(("network", "pixels", "published top-1 (fp32)", *(f"{name}, ms" for name in PRECISIONS)), rows),
            "",
            NOTES,
        ]
    )


def verdict() -> str:
    """Where SHViT is faster than its peers, and where it is not."""
    measured, _ = networks()
    settings = [(f"one image, {name}", measured, name) for name in PRECISIONS]
    settings.append((f"batch {BATCH}, fp32, ONNX Runtime", _batches(), "fp32"))
    rows = (
        [f"`{one.name}` ({one.top1:.1f} %)", *(_cell(one.name, among, precision) for _, among, precision in settings)]
        for one in measured
        if one.ours
    )
    by_name = {network.name: network.milliseconds for network in measured}
    gains = " and ".join(
        f"{by_name[name]['fp32'] / by_name[name]['int8']:.1f} (`{name}`, {1e3 / by_name[name]['int8']:.0f} images/s)"
        for name in ("shvit_s1", "shvit_s4")
    )
    times = {(p["model"], p["image_size"]): p["milliseconds"] for p in latest("study-resolution")["points"]
             if p["engine"] == ENGINE}  # fmt: skip
    growth = ", ".join(
        f"{times[name, 512] / times[name, 224]:.1f} (`{name.removeprefix('timm/')}`)"
        for name in ("shvit_s4", "timm/repvit_m0_9", "timm/fastvit_t8", "timm/mobilenetv4_conv_small")
    )
    paper = PROTOCOLS["paper-gpu"].images_per_second
    return "\n".join(
        [
            *table(("model (top-1)", *(title for title, _, _ in settings)), rows),
            "",
            "- **int8, one image.** SHViT runs on the engine `native`, the others in OpenVINO. The factors to SHViT in "
            f"fp32 (OpenVINO) are {gains}.{_missing(measured)}",
            f"- **Large images, fp32, OpenVINO.** From 224 to 512 pixels, latency grows by a factor of {growth}.",
            f"- **GPU.** The paper reports {paper['shvit_s4']:,} images/s for S4 and {paper['timm/fastvit_t8']:,} for "
            "FastViT-T8 on an A100. GPU speed was not measured here.",
        ]
    )


def _batches() -> list[Network]:
    """Networks of the newest throughput benchmark, with their milliseconds per image in ONNX Runtime."""
    return [
        Network(row["model"].removeprefix("timm/"), row["image_size"], top1["percent"], top1["training"],
                {row["precision"]: 1e3 / row["images_per_second"]})
        for row in throughput()["rows"]
        if row["engine"] == "onnx" and (top1 := row["published_top1"])
    ]  # fmt: skip


def _cell(name: str, among: list[Network], precision: str) -> str:
    """A network's time, the best peers that it beats and that beat it, and the numbers of other such peers."""
    timed = sorted((one for one in among if precision in one.milliseconds), key=lambda one: -one.top1)
    [one] = [one for one in timed if one.name == name]
    peers = [peer for peer in timed if not peer.ours]
    relations = {
        "beats": [peer for peer in peers if one.beats(peer, precision)],
        "beaten by": [peer for peer in peers if peer.beats(one, precision)],
    }
    texts = (
        f"{verb} `{found[0].name.partition('.')[0]}`"
        + (f" and {counted(len(found) - 1, 'other')}" if len(found) > 1 else "")
        for verb, found in relations.items()
        if found
    )
    return "; ".join([f"{one.milliseconds[precision]:.1f} ms", *texts])


def _missing(measured: list[Network]) -> str:
    timed = any("int8" in network.milliseconds for network in measured if not network.ours)
    return "" if timed else " Other networks were not measured in int8."


def data() -> str:
    """The figure's data as JSON, which the PNG contains."""
    measured, hardware = networks()
    return json.dumps({"hardware": hardware, "networks": [vars(network) for network in measured]}, sort_keys=True)


def draw(path: Path) -> None:
    """Draw the PNG. Its text chunk `Description` holds the data; its background is opaque, for light and dark pages."""
    measured, hardware = networks()
    figure = Figure(figsize=(8, 5.6), dpi=200, layout="constrained", facecolor=PAPER)
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_facecolor(PAPER)
    axes.set_xscale("log")
    for network in measured:
        color, width = (OURS, 2.0) if network.ours else (PEER, 1.2)
        times = network.milliseconds
        axes.plot(list(times.values()), [network.top1] * len(times), color=color, linewidth=width, alpha=0.5)
        for precision, milliseconds in times.items():
            axes.plot(milliseconds, network.top1, **_marker(precision, color), zorder=4 if network.ours else 3)
    for precision in PRECISIONS:
        axes.plot([], [], **_marker(precision, INK), label=precision)
    axes.plot([], [], color=OURS, linewidth=4, label="SHViT")
    axes.plot([], [], color=PEER, linewidth=4, label="peers († distilled, § ImageNet-21k or 22k)")
    figure.legend(loc="outside lower center", ncols=4, fontsize=11, frameon=False)
    figure.suptitle(
        f"One image, one thread of {hardware_in_words(hardware)}\nOpenVINO; SHViT in int8: engine native",
        fontsize=12,
        color=INK,
    )
    axes.set_xlabel("latency, ms (log scale, left is faster)", fontsize=12, color=INK)
    axes.set_ylabel("published ImageNet-1K top-1, %", fontsize=12, color=INK)
    axes.tick_params(labelsize=11, colors=INK)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(0.22, 0.06)
    figure.draw_without_rendering()  # the labels' positions depend on the final layout
    _label(axes, measured)
    figure.savefig(path, facecolor=PAPER, metadata={"Software": None, "Description": data()})


def _marker(precision: str, color: str) -> dict[str, Any]:
    face = color if precision == "fp32" else PAPER
    shape = "o" if precision == "fp32" else "D"
    return {"marker": shape, "color": color, "markerfacecolor": face, "markersize": 8, "markeredgewidth": 1.6,
            "linestyle": "none"}  # fmt: skip


def _label(axes: Axes, measured: list[Network]) -> None:
    """Write each name beside the network's fastest or slowest point, where the name covers nothing."""
    pixel = axes.figure.dpi / 72  # pyright: ignore[reportAttributeAccessIssue]
    ends = [
        axes.transData.transform([(f(one.milliseconds.values()), one.top1) for f in (min, max)]) for one in measured
    ]
    taken = [Bbox([left - 6 * pixel, right + 6 * pixel]) for left, right in ends]
    for one, (left, right) in sorted(zip(measured, ends, strict=True), key=lambda pair: -pair[0].ours):
        text = axes.text(0, 0, one.label, fontsize=9.5, transform=None, color=OURS if one.ours else PEER,
                         fontweight="bold" if one.ours else "normal", verticalalignment="center")  # fmt: skip
        width = text.get_window_extent().width
        text.set_in_layout(False)
        beside = (left[0] - width - 9 * pixel, left[1]), (right[0] + 9 * pixel, right[1])
        shift = 0
        for shift, (x, y) in product((0, 7, -7, 10, -10, *range(-20, -200, -5)), beside):
            text.set_position((x, y + shift * pixel))
            box = text.get_window_extent()
            if axes.bbox.x0 < box.x0 and box.x1 < axes.bbox.x1 and not any(box.overlaps(other) for other in taken):
                break
        taken.append(box := text.get_window_extent())
        if abs(shift) > 10:
            start, end = axes.transData.inverted().transform([((box.x0 + box.x1) / 2, box.y1), right])
            axes.plot(*zip(start, end, strict=True), color=text.get_color(), linewidth=0.6, zorder=1)
