"""Networks side by side: what they cost, how fast they run on each engine, where the time goes, how well they learn."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import Any

from .. import engines
from ..bench.plan import Omitted, Request, pairs, settle
from ..bench.run import Row as Timed
from ..bench.run import bench
from ..bench.subject import Case, open_model
from ..errors import Failure, InputError
from ..model.cost import cost
from ..modelfile import ModelFile
from ..train.report import Reporter
from ..train.run import RECORD
from ..train.run import train as run_training
from .breakdown import Breakdown, able, breakdown

FP32_BYTES = 4
Told = Callable[[str, int, int], None]
"""What is done now, and how many of how many steps were done before."""


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
class How:
    """How it is measured; as `shvit bench` has it."""

    image_size: int | None = None
    """None: what the first network was designed for."""
    engines: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ()
    batch_sizes: tuple[int, ...] = (16,)
    threads: int | None = None
    device: str = "auto"
    rounds: int = 10


@dataclass(frozen=True)
class Training:
    """How accuracy is measured: every network alike, from fresh weights."""

    data: str
    epochs: int
    seeds: int = 1
    image_size: int | None = None
    """None: as in `How`."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of the recipe `scratch`."""
    device: str = "auto"
    workers: int = 2


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
    how: How
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

    def to_dict(self) -> dict[str, Any]:
        return {
            "study": self.comparison.name,
            "reference": self.comparison.reference,
            "how": asdict(self.how),
            "training": asdict(self.training) if self.training else None,
            "rows": [row.to_dict() for row in self.rows],
            "omitted": list(self.omitted),
        }


def compare(
    comparison: Comparison,
    how: How,
    training: Training | None,
    out: Path,
    told: Told = lambda what, done, total: None,
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
        InputError: An engine, precision or device that cannot run here, or data that cannot be trained on.
        KeyboardInterrupt: Ctrl-C; `so_far` was given all that was known.
    """
    base = how.image_size or need_model_file(comparison.entries[0].model).preprocess.image_size
    how = replace(how, image_size=base, device=engines.pick_device(how.device))
    found = Compared(comparison, how, training, tuple(_costs(entry, base) for entry in comparison.entries))
    found = _with_speeds(found, told)
    so_far(found)
    if how.device == "cpu":
        found = _with_breakdowns(found, told)
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


def _with_speeds(found: Compared, told: Told) -> Compared:
    """All entries against each other on each engine."""
    omitted = list(found.omitted)
    speeds: dict[tuple[str, int], list[Speed]] = {}
    wanted = {(row.entry.model, row.image_size): None for row in found.rows}
    models, sizes = (tuple(dict.fromkeys(column)) for column in zip(*wanted, strict=True))
    for rows, why in timed(found.how, models, sizes, told, lambda case: (case.model, case.image_size) in wanted):
        omitted += why
        for case, speed in _speeds(rows, found.reference):
            speeds.setdefault((case.model, case.image_size), []).append(speed)
    rows = (replace(row, speeds=tuple(speeds.get((row.entry.model, row.image_size), ()))) for row in found.rows)
    return replace(found, rows=tuple(rows), omitted=tuple(dict.fromkeys(omitted)))


def timed(
    how: How,
    models: tuple[str, ...],
    sizes: tuple[int, ...],
    told: Told,
    wanted: Callable[[Case], bool] = lambda case: True,
) -> Iterator[tuple[Sequence[Timed], list[str]]]:
    """Networks at sizes against each other, on one engine after the other; and what has no number, and why.

    An engine that fails costs the others nothing.

    Raises:
        InputError: An engine, precision or size that cannot be measured here; before anything is.
    """
    precisions = how.precisions or (("fp32",) if how.device == "cpu" else ("fp16",))
    request = settle(
        Request(models, how.engines, precisions, how.batch_sizes, sizes, how.threads, how.device, how.rounds)
    )
    here, left_out = pairs(request)
    yield (), _why(left_out)
    for engine in dict.fromkeys(engine for engine, _ in here):
        one = replace(request, engines=(engine,), precisions=tuple(p for name, p in here if name == engine))
        try:
            result = bench(one, lambda what, *steps, engine=engine: told(f"{engine}: {what}", *steps), wanted)
        except Failure as failure:
            yield (), [f"{engine}: {failure}"]
            continue
        yield result.rows, _why((*result.skipped, *result.failed))


def _why(omitted: Sequence[Omitted]) -> list[str]:
    return [f"{row.what}: {row.reason}" for row in omitted]


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


def _with_breakdowns(found: Compared, told: Told) -> Compared:
    how = found.how
    names = [name for name in able() if name in (how.engines or able())]
    rows, omitted = [], list(found.omitted)
    for number, row in enumerate(found.rows):
        parts = []
        for engine in names:
            told(f"where the time goes: {row.entry.label}, {engine}", number, len(found.rows))
            model = need_model_file(row.entry.model, row.image_size)
            try:
                parts.append(breakdown(model, engine, how.batch_sizes[0], how.threads))
            except (Failure, RuntimeError) as error:
                omitted.append(f"where the time goes, {row.entry.label}, {engine}: {error}")
        rows.append(replace(row, breakdowns=tuple(parts)))
    return replace(found, rows=tuple(rows), omitted=tuple(omitted))


def in_mixer(part: str) -> bool:
    """Whether a module of SHViT belongs to a token mixer."""
    return ".mixer." in f"{part}."


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
    return first if first in ("stem", "head") else "pixels to floats"


def _with_training(found: Compared, number: int, seed: int, out: Path, reporter: Reporter) -> Compared:
    """One run more."""
    training, row = found.training, found.rows[number]
    assert training
    base = training.image_size or found.how.image_size
    assert base
    name = f"{row.entry.folder}-seed{seed}"
    settings = {**training.settings, "epochs": training.epochs, "image_size": row.entry.image_size(base), "seed": seed}
    try:
        top1 = train_one(training, row.entry.model, out / "runs" / name, settings, reporter)
    except Failure as failure:
        return replace(found, omitted=(*found.omitted, f"training {name}: {failure}"))
    row = replace(row, top1=(*row.top1, top1))
    return replace(found, rows=(*found.rows[:number], row, *found.rows[number + 1 :]))


def train_one(training: Training, model: str, folder: Path, settings: Mapping[str, Any], reporter: Reporter) -> float:
    """Top-1 of best.safetensors of a run; begun, gone on with, or only looked at.

    Raises:
        KeyboardInterrupt: The run was stopped; it goes on another time.
    """
    begun = (folder / RECORD).exists()
    where = {"device": training.device, "workers": training.workers}
    result = run_training(
        training.data, model, None, folder, settings=settings, resume=begun, reporter=reporter, **where
    )
    if result.interrupted:
        raise KeyboardInterrupt
    if "top1" not in result.best:
        raise InputError(f"{folder} has no evaluation")
    return float(result.best["top1"])
