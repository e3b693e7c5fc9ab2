"""Compare networks: their cost, their speed on each engine, where the time goes, and their accuracy."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

from .. import engines
from ..bench.case import Case, as_failure, open_model
from ..bench.run import Progress, Row
from ..errors import Failure, InputError
from ..model.config import VARIANTS
from ..model.cost import cost
from ..modelfile import ModelFile
from ..requests.study import ComparisonRequest, SpeedOptions
from ..train.progress import Reporter
from .accuracy import Training
from .breakdown import Breakdown, profilers, time_breakdown
from .speeds import timed

FP32_BYTES = 4


@dataclass(frozen=True)
class Entry:
    """One network of a comparison."""

    label: str
    model: str
    """Name of a network."""
    scale: float = 1.0
    """Image size relative to the other entries. The size is rounded to a multiple of 32 pixels."""
    paper: Mapping[str, float] = field(default_factory=dict)
    """The paper's numbers: images/s as `gpu`, `cpu` and `cpu-onnx`, `top1` in %, `params` in millions."""

    def image_size(self, base: int) -> int:
        return base if self.scale == 1.0 else 32 * round(base * self.scale / 32)

    @property
    def folder(self) -> str:
        """Name of its runs' folders, before the seed."""
        return self.model.replace("/", "-") + ("" if self.scale == 1.0 else "-larger")


@dataclass(frozen=True)
class Comparison:
    """The networks to compare, and what the paper says about them."""

    name: str
    """Name of the verb."""
    title: str
    question: str
    """What the comparison tests, for the report."""
    claims: tuple[str, ...]
    """The paper's findings, one sentence each."""
    entries: tuple[Entry, ...]
    reference: str
    """Label of the entry that the ratios refer to."""


@dataclass(frozen=True)
class Speed:
    """Speed of one entry on one engine."""

    engine: str
    precision: str
    batch_size: int
    images_per_second: float
    ratio: float | None
    """Speed relative to the reference in the same rounds. None if the reference did not run."""
    spread: float
    """Half of the rounds lie within this fraction of the median."""


@dataclass(frozen=True)
class EntryResult:
    """The measurements of one entry so far."""

    entry: Entry
    image_size: int
    params: int
    macs: int
    activation_bytes: int
    """Outputs of convolutions, linear layers and attention products for one image, in fp32."""
    speeds: tuple[Speed, ...] = ()
    breakdowns: tuple[Breakdown, ...] = ()
    top1: tuple[float, ...] = ()
    """One value per completed run."""

    @property
    def mean_top1(self) -> float | None:
        """Mean of the runs; None if the network was not trained."""
        return mean(self.top1) if self.top1 else None

    def to_dict(self) -> dict[str, Any]:
        fields = {key: value for key, value in asdict(self).items() if key != "breakdowns"}
        return {
            **fields,
            "mean_top1": self.mean_top1,
            "breakdowns": [breakdown_dict(one, in_mixer) for one in self.breakdowns],
        }


def breakdown_dict(one: Breakdown, attention: Callable[[str], bool]) -> dict[str, Any]:
    """A breakdown for JSON. `attention` returns whether a module belongs to an attention layer."""
    return {
        "engine": one.engine,
        "batch_size": one.batch_size,
        "image_size": one.image_size,
        "seconds": one.seconds(),
        "shares": one.shares(),
        "memory_bound": one.memory_bound(),
        "stage_seconds": stage_seconds(one),
        "attention_seconds": one.seconds(within=attention),
        "attention_shares": one.shares(attention),
        "attention_memory_bound": one.memory_bound(attention),
    }


@dataclass(frozen=True)
class ComparisonResult:
    """The measurements of a comparison so far."""

    comparison: Comparison
    image_size: int
    speed: SpeedOptions
    training: Training | None
    rows: tuple[EntryResult, ...]
    omitted: tuple[str, ...] = ()
    """What was not measured, and why."""

    @property
    def reference(self) -> EntryResult:
        """The row that the others are compared with."""
        [row] = [row for row in self.rows if row.entry.label == self.comparison.reference]
        return row

    def pairs(self) -> list[tuple[str, str, int]]:
        """Engine, precision and batch size of each measured speed."""
        return list(dict.fromkeys((s.engine, s.precision, s.batch_size) for row in self.rows for s in row.speeds))

    def without(self, reason: str) -> "ComparisonResult":
        """Add a reason to `omitted`."""
        return replace(self, omitted=(*self.omitted, reason))

    def with_row(self, number: int, **changes: Any) -> "ComparisonResult":
        """Change the fields of one row."""
        rows = list(self.rows)
        rows[number] = replace(rows[number], **changes)
        return replace(self, rows=tuple(rows))

    def to_dict(self) -> dict[str, Any]:
        return {
            "study": self.comparison.name,
            "reference": self.comparison.reference,
            "how": {"image_size": self.image_size, **asdict(self.speed)},
            "training": self.training.to_dict() if self.training else None,
            "rows": [row.to_dict() for row in self.rows],
            "omitted": list(self.omitted),
        }


def run_comparison(
    comparison: Comparison,
    request: ComparisonRequest,
    training: Training | None,
    progress: Progress = lambda what, done, total: None,
    reporter: Reporter | None = None,
    on_update: Callable[[ComparisonResult], object] = lambda result: None,
) -> ComparisonResult:
    """Measure costs and speeds, then train each entry once per seed.

    Each run has its own folder in `out`/runs. Complete runs are reused, interrupted runs are resumed. An entry or an
    engine that fails does not stop the others.

    Args:
        comparison: The networks to compare.
        request: How to measure.
        training: How to train. None: accuracy is not measured.
        progress: Called with the current step.
        reporter: Logs training.
        on_update: Called with the results so far after each long step.

    Raises:
        InputError: An engine, precision or device cannot run here, the data cannot be trained on, or a run in `out` has
            other settings. Raised before any measurement.
        KeyboardInterrupt: Ctrl-C. `on_update` got all results so far.
    """
    base = request.image_size or need_model_file(comparison.entries[0].model).preprocess.image_size
    speed = replace(request.speed, device=engines.pick_device(request.speed.device))
    if training:
        training = training.like(next(e.model for e in comparison.entries if e.model in VARIANTS))
        for entry, seed in product(comparison.entries, range(training.seeds)):
            training.check(entry.model, *_run_of(entry, training, base, seed, request.out), seed)
    rows = tuple(_costs(entry, base) for entry in comparison.entries)
    result = ComparisonResult(comparison, base, speed, training, rows)
    for measure in (_with_speeds, _with_breakdowns):
        for update in measure(result, progress):
            result = update
            on_update(result)
    if training:
        for seed in range(training.seeds):  # seed by seed, so an interrupted study has about as many runs of each entry
            for number in range(len(result.rows)):
                result = _with_training(result, number, training, seed, request.out, reporter or Reporter())
                on_update(result)
    return result


def need_model_file(name: str, image_size: int | None = None) -> ModelFile:
    """Open a network by name, a model file or published weights. Raises InputError for an exported file."""
    opened = open_model(name, image_size)
    if not isinstance(opened, ModelFile):
        raise InputError(f"{name} is an exported file: give the model file, or a network's name")
    return opened


def _costs(entry: Entry, base: int) -> EntryResult:
    size = entry.image_size(base)
    total = cost(need_model_file(entry.model, size).model, (size, size))
    return EntryResult(entry, size, total.params, total.macs, FP32_BYTES * total.activations)


def _with_speeds(result: ComparisonResult, progress: Progress) -> Iterator[ComparisonResult]:
    """Time all entries against each other. Yields after each engine."""
    wanted = {(row.entry.model, row.image_size): None for row in result.rows}
    models, sizes = (tuple(dict.fromkeys(column)) for column in zip(*wanted, strict=True))
    for rows, reasons in timed(
        result.speed, models, sizes, progress, lambda case: (case.model, case.image_size) in wanted
    ):
        speeds: dict[tuple[str, int], list[Speed]] = {}
        for case, speed in _speeds(rows, result.reference):
            speeds.setdefault((case.model, case.image_size), []).append(speed)
        entries = tuple(
            replace(row, speeds=(*row.speeds, *speeds.get((row.entry.model, row.image_size), ())))
            for row in result.rows
        )
        result = replace(result, rows=entries, omitted=tuple(dict.fromkeys((*result.omitted, *reasons))))
        yield result


def _speeds(rows: Sequence[Row], reference: EntryResult) -> list[tuple[Case, Speed]]:
    """The speed of each case, and its ratio to the reference at the same precision and batch size."""
    references = {
        (row.case.precision, row.case.batch_size): row.images_per_second
        for row in rows
        if (row.case.model, row.case.image_size) == (reference.entry.model, reference.image_size)
    }
    speeds = []
    for row in rows:
        case, speed = row.case, row.images_per_second
        known = references.get((case.precision, case.batch_size))
        ratio = speed / known if known else None
        speeds.append((case, Speed(case.engine, case.precision, case.batch_size, speed, ratio, row.timing.spread)))
    return speeds


def _with_breakdowns(result: ComparisonResult, progress: Progress) -> Iterator[ComparisonResult]:
    """Profile each entry on each engine. Yields after each."""
    speed = result.speed
    if speed.device != "cpu":
        yield result.without("where the time goes: measured on the CPU only; for GPUs see shvit bench --profile")
        return
    names = [name for name in profilers() if name in (speed.engines or profilers())]
    for done, (number, engine) in enumerate(product(range(len(result.rows)), names)):
        row = result.rows[number]
        progress(f"where the time goes: {row.entry.label}, {engine}", done, len(result.rows) * len(names))
        model = need_model_file(row.entry.model, row.image_size)
        try:
            with as_failure():
                part = time_breakdown(model, engine, speed.batch_sizes[0], speed.threads)
        except Failure as failure:
            result = result.without(f"where the time goes, {row.entry.label}, {engine}: {failure}")
        else:
            result = result.with_row(number, breakdowns=(*row.breakdowns, part))
        yield result


def in_mixer(part: str) -> bool:
    """Whether a module of SHViT belongs to a token mixer. The residual sum does not."""
    return ".mixer.branch." in f"{part}."


def stage_seconds(one: Breakdown) -> dict[str, float]:
    """Seconds per call, by stage of SHViT."""
    seconds: dict[str, float] = {}
    for row in one.spent:
        seconds[_stage(row.part)] = seconds.get(_stage(row.part), 0.0) + row.seconds
    return seconds


def _stage(part: str) -> str:
    first, _, rest = part.partition(".")
    if first == "stages":
        return f"stage {int(rest.partition('.')[0]) + 1}"
    if part == "network":  # global average pooling
        return "head"
    return first if first in ("stem", "head") else "pixels to floats"


def _run_of(entry: Entry, training: Training, base: int, seed: int, out: Path) -> tuple[Path, int]:
    """The folder of a run, and its image size."""
    return out / "runs" / f"{entry.folder}-seed{seed}", entry.image_size(training.image_size or base)


def _with_training(
    result: ComparisonResult, number: int, training: Training, seed: int, out: Path, reporter: Reporter
) -> ComparisonResult:
    """Add the accuracy of one run."""
    row = result.rows[number]
    folder, size = _run_of(row.entry, training, result.image_size, seed, out)
    try:
        top1 = training.run(row.entry.model, folder, size, seed, reporter)
    except Failure as failure:
        return result.without(f"training {folder.name}: {failure}")
    return result.with_row(number, top1=(*row.top1, top1))
