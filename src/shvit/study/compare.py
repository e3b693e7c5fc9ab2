"""Compare networks: their cost, their speed on each engine, where their time goes, and their accuracy."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import cycle, product
from pathlib import Path
from statistics import mean
from typing import Any

from .. import engines
from ..bench.case import as_failure, open_model
from ..bench.run import OnProgress
from ..errors import Failure, InputError
from ..model.config import VARIANTS
from ..model.cost import cost
from ..modelfile import ModelFile
from ..requests.study import ComparisonRequest, SpeedOptions
from ..train.progress import Reporter
from .accuracy import Training
from .breakdown import Breakdown, pick_profilers, time_breakdown
from .speeds import timed


@dataclass(frozen=True)
class Entry:
    """One network of a comparison."""

    label: str
    model: str
    """Name of the network. In `experiments.COMPARISONS`, SIZE stands for s1 to s4."""
    scale: float = 1.0
    """Factor on the image size. The product is rounded to a multiple of 32 pixels, unless the factor is 1."""
    paper: Mapping[str, float] = field(default_factory=dict)
    """The paper's numbers: `gpu`, `cpu`, `cpu-onnx` in images/s (or as ratios), `top1` in %, `params` in millions."""

    def image_size(self, base: int) -> int:
        """This entry's image size in pixels, where `base` is the image size of entries with scale 1."""
        return base if self.scale == 1.0 else 32 * round(base * self.scale / 32)


@dataclass(frozen=True)
class Comparison:
    """The networks to compare, and what the paper says about them."""

    name: str
    """Name of the verb, such as `macro`."""
    title: str
    question: str
    """What the comparison tests. This is the first paragraph of the report."""
    claims: tuple[str, ...]
    """The paper's findings. Each becomes a paragraph of the report."""
    size: str
    """Size of the networks: s1 to s4."""
    entries: tuple[Entry, ...]
    reference: str
    """Label of the reference entry. Ratios are speeds divided by the speed of this entry."""


@dataclass(frozen=True)
class Speed:
    """Speed of one entry on one engine."""

    engine: str
    precision: str
    batch_size: int
    images_per_second: float
    ratio: float | None
    """Speed divided by the speed of the reference entry in the same rounds. None if the reference entry did not run."""
    spread: float
    """Median absolute deviation of the speeds in all rounds, divided by their median."""


@dataclass
class EntryResult:
    """The measurements of one entry so far."""

    entry: Entry
    image_size: int
    params: int
    macs: int
    activation_bytes: int
    """Bytes of the outputs of convolutions, linear layers and attention's matrix products, for one image in fp32."""
    speeds: list[Speed] = field(default_factory=list)
    breakdowns: list[Breakdown] = field(default_factory=list)
    top1: list[float] = field(default_factory=list)
    """Top-1 (0 to 1) of each completed training run."""

    @property
    def network(self) -> tuple[str, int]:
        """Name and image size of the network."""
        return self.entry.model, self.image_size

    @property
    def mean_top1(self) -> float | None:
        """Mean top-1 of the training runs. None if no run was completed."""
        return mean(self.top1) if self.top1 else None

    def to_dict(self) -> dict[str, Any]:
        """Convert to JSON data."""
        breakdowns = [one.to_dict() for one in self.breakdowns]
        return {**asdict(self), "mean_top1": self.mean_top1, "breakdowns": breakdowns}


@dataclass
class ComparisonResult:
    """The measurements of a comparison so far."""

    comparison: Comparison
    image_size: int
    speed: SpeedOptions
    training: Training | None
    rows: list[EntryResult]
    omitted: list[str] = field(default_factory=list)
    """What was not measured, and why."""

    @property
    def reference(self) -> EntryResult:
        """The row of the reference entry, with which the other rows are compared."""
        [row] = [row for row in self.rows if row.entry.label == self.comparison.reference]
        return row

    def pairs(self) -> list[tuple[str, str, int]]:
        """All combinations of engine, precision and batch size for which speeds were measured."""
        return list(dict.fromkeys((s.engine, s.precision, s.batch_size) for row in self.rows for s in row.speeds))

    def to_dict(self) -> dict[str, Any]:
        """Convert to JSON data, without credentials."""
        return {
            "study": self.comparison.name,
            "reference": self.comparison.reference,
            "how": {"image_size": self.image_size, **asdict(self.speed)},
            "training": self.training.to_dict() if self.training else None,
            "rows": [row.to_dict() for row in self.rows],
            "omitted": self.omitted,
        }


OnResult = Callable[[ComparisonResult], object]
"""Called with the results so far after each long step."""


def run_comparison(
    comparison: Comparison,
    request: ComparisonRequest,
    training: Training | None,
    progress: OnProgress = lambda what, done, total: None,
    reporter: Reporter | None = None,
    on_update: OnResult = lambda result: None,
) -> ComparisonResult:
    """Measure cost and speed, and profile the networks. With `training`, also train each network once per seed.

    Each training run has its own folder in `out`/runs. Complete runs are reused, and interrupted runs are resumed. If a
    network or an engine fails, the rest is still measured.

    Raises:
        InputError: An engine, precision or device cannot be used here. Or the data cannot be used for training. Or a
            run in `out` has different settings. Raised before any measurement.
        KeyboardInterrupt: Ctrl-C. `on_update` has been called with all results so far.
    """
    base = request.image_size or need_model_file(comparison.entries[0].model).preprocess.image_size
    speed = replace(request.speed, device=engines.pick_device(request.speed.device))
    runs: list[tuple[str, Path, int, int]] = []
    if training:
        training = training.like(next(e.model for e in comparison.entries if e.model in VARIANTS))
        for seed, entry in product(range(training.seeds), comparison.entries):
            name = entry.model.replace("/", "-") + ("" if entry.scale == 1.0 else "-larger")
            folder = request.out / "runs" / f"{name}-seed{seed}"
            runs.append((entry.model, folder, entry.image_size(training.image_size or base), seed))
            training.check(*runs[-1])
    rows = [_costs(entry, base) for entry in comparison.entries]
    result = ComparisonResult(comparison, base, speed, training, rows)
    _time(result, progress, on_update)
    _profile(result, progress, on_update)
    if training:
        for row, run in zip(cycle(rows), runs, strict=False):
            try:
                row.top1.append(training.run(*run, reporter or Reporter()))
            except Failure as failure:
                result.omitted.append(f"training {run[1].name}: {failure}")
            on_update(result)
    return result


def need_model_file(name: str, image_size: int | None = None) -> ModelFile:
    """Open a named network, a model file or published weights. Raises InputError for an exported file."""
    opened = open_model(name, image_size)
    if not isinstance(opened, ModelFile):
        raise InputError(f"{name} is an exported file: give the model file or the name of a network instead")
    return opened


def _costs(entry: Entry, base: int) -> EntryResult:
    size = entry.image_size(base)
    total = cost(need_model_file(entry.model, size).model, (size, size))
    return EntryResult(entry, size, total.params, total.macs, 4 * total.activations)  # 4 bytes in fp32


def _time(result: ComparisonResult, progress: OnProgress, on_update: OnResult) -> None:
    """Measure the speed of each entry on each engine, and divide it by the speed of the reference entry."""
    for rows, reasons in timed(result.speed, [row.network for row in result.rows], progress):
        by_network = defaultdict(list)
        for row in rows:
            by_network[row.case.model, row.case.image_size].append(row)
        reference = {(row.case.precision, row.case.batch_size): row for row in by_network[result.reference.network]}
        for entry in result.rows:
            for row in by_network[entry.network]:
                case, speed, spread = row.case, row.images_per_second, row.timing.spread
                known = reference.get((case.precision, case.batch_size))
                ratio = speed / known.images_per_second if known else None
                entry.speeds.append(Speed(case.engine, case.precision, case.batch_size, speed, ratio, spread))
        result.omitted = list(dict.fromkeys((*result.omitted, *reasons)))
        on_update(result)


def _profile(result: ComparisonResult, progress: OnProgress, on_update: OnResult) -> None:
    """Measure where the time of each entry goes, on each engine that has a profiler."""
    speed = result.speed
    names = [name for name in pick_profilers() if name in (speed.engines or pick_profilers())]
    if speed.device != "cpu":
        result.omitted.append("where the time goes: measured on the CPU only; on a GPU, use shvit bench --profile")
        names = []
    for done, (row, engine) in enumerate(product(result.rows, names)):
        progress(f"where the time goes: {row.entry.label}, {engine}", done, len(result.rows) * len(names))
        model = need_model_file(*row.network)
        try:
            with as_failure():
                row.breakdowns.append(time_breakdown(model, engine, speed.batch_sizes[0], speed.threads))
        except Failure as failure:
            result.omitted.append(f"where the time goes, {row.entry.label}, {engine}: {failure}")
        on_update(result)
