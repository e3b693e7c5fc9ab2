"""Networks side by side: what they cost, how fast they run on each engine, where the time goes, how well they learn."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

from .. import engines
from ..bench.case import Case, as_failure, open_model
from ..bench.run import Progress
from ..bench.run import Row as Timed
from ..errors import Failure, InputError
from ..model.config import VARIANTS
from ..model.cost import cost
from ..modelfile import ModelFile
from ..redact import redacted
from ..train.progress import Reporter
from .accuracy import Training
from .breakdown import Breakdown, able, breakdown
from .speeds import SpeedOptions, timed

FP32_BYTES = 4


@dataclass(frozen=True)
class Entry:
    """One network of a comparison."""

    label: str
    model: str
    """Name of a network."""
    scale: float = 1.0
    """Side of its images, as a multiple of what the others get; rounded to 32 pixels."""
    paper: Mapping[str, float] = field(default_factory=dict)
    """What the paper has of it: images/s by `gpu`, `cpu` and `cpu-onnx`, `top1` in %, `params` in millions."""

    def image_size(self, base: int) -> int:
        return base if self.scale == 1.0 else 32 * round(base * self.scale / 32)

    @property
    def folder(self) -> str:
        """For its runs."""
        return self.model.replace("/", "-") + ("" if self.scale == 1.0 else "-larger")


@dataclass(frozen=True)
class Comparison:
    """What is compared, and what the paper says of it."""

    name: str
    """The verb's."""
    title: str
    question: str
    """What it is to find out, for the report."""
    claims: tuple[str, ...]
    """The paper's findings, each a sentence."""
    entries: tuple[Entry, ...]
    reference: str
    """Label of the entry that ratios are to."""


@dataclass(frozen=True)
class Speed:
    """Of one entry on one engine."""

    engine: str
    precision: str
    batch_size: int
    images_per_second: float
    ratio: float | None
    """To the reference, timed in the same rounds; None where that could not run."""
    spread: float
    """Half of the rounds lie within so much of the median."""


@dataclass(frozen=True)
class Measured:
    """What is known of one entry."""

    entry: Entry
    image_size: int
    params: int
    macs: int
    activation_bytes: int
    """Written by convolutions, linear layers and attention's products, of one image, in fp32."""
    speeds: tuple[Speed, ...] = ()
    breakdowns: tuple[Breakdown, ...] = ()
    top1: tuple[float, ...] = ()
    """Of each seed that was trained to its end."""

    @property
    def mean_top1(self) -> float | None:
        return mean(self.top1) if self.top1 else None

    def to_dict(self) -> dict[str, Any]:
        found = {key: value for key, value in asdict(self).items() if key != "breakdowns"}
        return {
            **found,
            "mean_top1": self.mean_top1,
            "breakdowns": [breakdown_dict(one, in_mixer) for one in self.breakdowns],
        }


def breakdown_dict(one: Breakdown, attention: Callable[[str], bool]) -> dict[str, Any]:
    """Args: one; whether a part belongs to an attention layer."""
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
class Compared:
    """A comparison's outcome, as far as it has come."""

    comparison: Comparison
    how: SpeedOptions
    training: Training | None
    rows: tuple[Measured, ...]
    omitted: tuple[str, ...] = ()
    """What has no number, and why."""

    @property
    def reference(self) -> Measured:
        [row] = [row for row in self.rows if row.entry.label == self.comparison.reference]
        return row

    def pairs(self) -> list[tuple[str, str, int]]:
        """Engine, precision and batch size of each speed that any row has."""
        return list(dict.fromkeys((s.engine, s.precision, s.batch_size) for row in self.rows for s in row.speeds))

    def without(self, why: str) -> "Compared":
        """With something more that has no number."""
        return replace(self, omitted=(*self.omitted, why))

    def to_dict(self) -> dict[str, Any]:
        return {
            "study": self.comparison.name,
            "reference": self.comparison.reference,
            "how": asdict(self.how),
            "training": redacted(asdict(self.training)) if self.training else None,
            "rows": [row.to_dict() for row in self.rows],
            "omitted": list(self.omitted),
        }


def compare(
    comparison: Comparison,
    how: SpeedOptions,
    training: Training | None,
    out: Path,
    told: Progress = lambda what, done, total: None,
    reporter: Reporter | None = None,
    so_far: Callable[[Compared], None] = lambda found: None,
) -> Compared:
    """Measure costs and speeds, then train: as many runs as entries times seeds, each in a folder of `out`/runs.

    A run that is complete there is not repeated, one that was stopped goes on. An entry or engine that fails costs the
    others nothing.

    Args:
        comparison: What is compared.
        how: Of costs and speeds.
        training: Of accuracy; None: not measured.
        out: Where runs are kept.
        told: Of progress.
        reporter: Of training.
        so_far: Given what is known after each step that took long.

    Raises:
        InputError: An engine, precision or device that cannot run here, data that cannot be trained on, or a run in
            `out` that was begun otherwise; before anything is measured.
        KeyboardInterrupt: Ctrl-C; `so_far` was given all that was known.
    """
    base = how.image_size or need_model_file(comparison.entries[0].model).preprocess.image_size
    how = replace(how, image_size=base, device=engines.pick_device(how.device))
    if training:
        training = training.like(next(e.model for e in comparison.entries if e.model in VARIANTS))
        for entry, seed in product(comparison.entries, range(training.seeds)):
            training.check(entry.model, *_run_of(entry, training, base, seed, out), seed)
    found = Compared(comparison, how, training, tuple(_costs(entry, base) for entry in comparison.entries))
    for measure in (_with_speeds, _with_breakdowns):
        for more in measure(found, told):
            found = more
            so_far(found)
    if training:
        for seed in range(training.seeds):  # so that a stop leaves all with equally many, but one
            for number in range(len(found.rows)):
                found = _with_training(found, number, seed, out, reporter or Reporter())
                so_far(found)
    return found


def need_model_file(name: str, image_size: int | None = None) -> ModelFile:
    """A network by name, a model file or published weights. Raises InputError for an exported file."""
    opened = open_model(name, image_size)
    if not isinstance(opened, ModelFile):
        raise InputError(f"{name} is an exported file: give the model file, or a network's name")
    return opened


def _costs(entry: Entry, base: int) -> Measured:
    size = entry.image_size(base)
    total = cost(need_model_file(entry.model, size).model, (size, size))
    return Measured(entry, size, total.params, total.macs, FP32_BYTES * total.activations)


def _with_speeds(found: Compared, told: Progress) -> Iterator[Compared]:
    """All entries against each other, with each engine more."""
    wanted = {(row.entry.model, row.image_size): None for row in found.rows}
    models, sizes = (tuple(dict.fromkeys(column)) for column in zip(*wanted, strict=True))
    for rows, why in timed(found.how, models, sizes, told, lambda case: (case.model, case.image_size) in wanted):
        speeds: dict[tuple[str, int], list[Speed]] = {}
        for case, speed in _speeds(rows, found.reference):
            speeds.setdefault((case.model, case.image_size), []).append(speed)
        entries = tuple(
            replace(row, speeds=(*row.speeds, *speeds.get((row.entry.model, row.image_size), ()))) for row in found.rows
        )
        found = replace(found, rows=entries, omitted=tuple(dict.fromkeys((*found.omitted, *why))))
        yield found


def _speeds(rows: Sequence[Timed], reference: Measured) -> list[tuple[Case, Speed]]:
    """Each case's, and its ratio to the reference at the same precision and batch size."""
    to = {
        (row.case.precision, row.case.batch_size): row.images_per_second
        for row in rows
        if (row.case.model, row.case.image_size) == (reference.entry.model, reference.image_size)
    }
    found = []
    for row in rows:
        case, speed = row.case, row.images_per_second
        known = to.get((case.precision, case.batch_size))
        ratio = speed / known if known else None
        found.append((case, Speed(case.engine, case.precision, case.batch_size, speed, ratio, row.timing.spread)))
    return found


def _with_breakdowns(found: Compared, told: Progress) -> Iterator[Compared]:
    """With the time of each entry more."""
    how = found.how
    if how.device != "cpu":
        yield found.without("where the time goes: on the CPU alone; see shvit bench --profile")
        return
    names = [name for name in able() if name in (how.engines or able())]
    for number, (row, engine) in enumerate(product(found.rows, names)):
        told(f"where the time goes: {row.entry.label}, {engine}", number, len(found.rows) * len(names))
        model = need_model_file(row.entry.model, row.image_size)
        try:
            with as_failure():
                part = breakdown(model, engine, how.batch_sizes[0], how.threads)
        except Failure as failure:
            found = found.without(f"where the time goes, {row.entry.label}, {engine}: {failure}")
        else:
            rows = (
                replace(one, breakdowns=(*one.breakdowns, part)) if one.entry is row.entry else one
                for one in found.rows
            )
            found = replace(found, rows=tuple(rows))
        yield found


def in_mixer(part: str) -> bool:
    """Whether a module of SHViT belongs to a token mixer; the residual sum does not."""
    return ".mixer.branch." in f"{part}."


def stage_seconds(one: Breakdown) -> dict[str, float]:
    """A call's time by the parts of SHViT."""
    seconds: dict[str, float] = {}
    for row in one.spent:
        seconds[_stage(row.part)] = seconds.get(_stage(row.part), 0.0) + row.seconds
    return seconds


def _stage(part: str) -> str:
    first, _, rest = part.partition(".")
    if first == "stages":
        return f"stage {int(rest.partition('.')[0]) + 1}"
    if part == "network":  # the mean over the last maps
        return "head"
    return first if first in ("stem", "head") else "pixels to floats"


def _run_of(entry: Entry, training: Training, base: int, seed: int, out: Path) -> tuple[Path, int]:
    """The folder of a run, and the side of its images."""
    return out / "runs" / f"{entry.folder}-seed{seed}", entry.image_size(training.image_size or base)


def _with_training(found: Compared, number: int, seed: int, out: Path, reporter: Reporter) -> Compared:
    """One run more."""
    training, row = found.training, found.rows[number]
    assert training
    assert found.how.image_size
    folder, size = _run_of(row.entry, training, found.how.image_size, seed, out)
    try:
        top1 = training.run(row.entry.model, folder, size, seed, reporter)
    except Failure as failure:
        return found.without(f"training {folder.name}: {failure}")
    row = replace(row, top1=(*row.top1, top1))
    return replace(found, rows=(*found.rows[:number], row, *found.rows[number + 1 :]))
