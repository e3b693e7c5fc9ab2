"""The page of a training run: results on the validation and test split, curves, settings and data."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import engines
from ..console import METRICS
from ..data.coco import CocoDataset, CocoSplit
from ..data.dataset import Dataset, Split
from ..data.splits import SPLIT_ADJECTIVES
from ..errors import counted
from ..evaluation_report import PAGE, name_of, speed_section, use_section
from ..files import read_json
from ..modelfile import ModelFile
from ..provenance import facts
from ..report.blocks import Chart, Column, Headline, Section, Table
from ..report.charts import Axis, Series, Spot, line_chart, percent, plain
from ..report.page import Page, save_page
from ..tasks import task_of
from ..tasks.base import Evaluation, ReportSubject, Task
from .metrics import read_metrics

SHOWN_SETTINGS = (
    *("name", "model", "epochs", "image_size", "batch_size", "effective_lr", "schedule", "warmup_epochs", "optimizer"),
    *("weight_decay", "clip", "ema", "label_smoothing", "mixup", "cutmix", "rand_augment", "random_erasing", "teacher"),
    *("frozen_norms", "layout", "precision", "seed", "val_share", "balance", "select_by", "patience", "fit"),
)
"""The settings on the page, in this order, if the recipe has them. recipe.json has all settings."""
LOSS_NAMES = {"train_loss": "training (augmented)", "loss": "validation"}
WEIGHT_NAMES = {"model": "weights", "ema": "EMA weights"}


def write_training_report(
    out: Path,
    model_file: ModelFile,
    evaluation: Evaluation,
    split: Split | CocoSplit,
    source: Dataset | CocoDataset,
    device: str = "cpu",
) -> Path:
    """Write report.html of a finished run, and return its path.

    Args:
        out: The run's folder, with metrics.jsonl and recipe.json.
        model_file: The best weights, as in best.safetensors. Numbers of the test split are in `metrics["test"]`.
        evaluation: Its evaluation on the validation images, with `outputs`.
        split: The validation images.
        source: The dataset.
        device: Where to measure the speed.
    """
    task, record, rows = task_of(model_file), _record(out), read_metrics(out)
    path = str(out / "best.safetensors")
    part = task.report(evaluation, ReportSubject(model_file, split, path))
    engine = engines.load(model_file, "torch", "fp32", device)
    page = Page(
        title=f"{name_of(model_file)} on {Path(source.name).name or source.name}",
        lead=f"Trained for {counted(len(rows), 'epoch')} on {counted(len(source.train), 'image')} of "
        f"{counted(len(source.classes), 'class', 'classes')}. Everything below is measured on the validation images "
        f"with the best weights, those of epoch {model_file.metrics.get('epoch', len(rows))}.",
        findings=part.findings,
        sections=(
            Section("Training", charts=_curves(rows, model_file.metrics.get("epoch"))),
            *part.sections,
            _data_section(task, source),
            _settings_section(model_file, record),
            speed_section(model_file, engine),
            use_section(model_file, path),
        ),
        about={**facts(), **{key: record[key] for key in ("command",) if key in record}},
        headlines=tuple(_headlines(task, part.cards, model_file)),
        kind="Training run",
    )
    save_page(page, out / PAGE)
    return out / PAGE


def _record(out: Path) -> dict[str, Any]:
    path = out / "recipe.json"
    return read_json(path) if path.exists() else {}


def _headlines(task: Task, cards: Any, model_file: ModelFile) -> list[Headline]:
    """The results on the validation split and, apart from them, on the test split."""
    test = model_file.metrics.get("test")
    if not test:
        return [Headline(cards)]
    note = "Used to choose the best epoch, so slightly optimistic."
    judged = "Evaluated once, at the end. Nothing was chosen on these images."
    return [Headline(task.cards(test), "Test split", judged), Headline(cards, "Validation split", note)]


def _curves(rows: Sequence[Mapping[str, Any]], best: int | None) -> tuple[Chart, ...]:
    """Loss, each validation metric and learning rate by epoch."""
    if not rows:
        return ()
    epochs = Axis.around("epoch", [row["epoch"] for row in rows], whole=True)
    colors = dict(zip((*LOSS_NAMES, *WEIGHT_NAMES), ("s0", "s1", "s0", "s1"), strict=True))
    charts = [_curve("Loss", rows, {key: (name, colors[key]) for key, name in LOSS_NAMES.items()}, epochs, plain)]
    metrics = [key.partition("_")[2] for row in rows for key in row if key.partition("_")[0] in WEIGHT_NAMES]
    for metric in dict.fromkeys(metrics):
        keys = {f"{kind}_{metric}": (name, colors[kind]) for kind, name in WEIGHT_NAMES.items()}
        show = plain if metric in LOSS_NAMES else percent
        saved = [row for row in rows if row["epoch"] == best and metric in row]
        spots = [Spot(row["epoch"], row[metric], f"best epoch: {show(row[metric])}") for row in saved]
        charts.append(_curve(f"Validation {METRICS.get(metric, metric)}", rows, keys, epochs, show, spots))
    charts.append(_curve("Learning rate", rows, {"lr": ("learning rate", "s0")}, epochs, plain))
    return tuple(filter(None, charts))


def _curve(
    title: str,
    rows: Sequence[Mapping[str, Any]],
    keys: Mapping[str, tuple[str, str]],
    epochs: Axis,
    show: Any,
    spots: Sequence[Spot] = (),
) -> Chart | None:
    """A chart of the values under these keys; None if no row has one."""
    series = [
        Series(name, [(row["epoch"], row[key]) for row in rows if row.get(key) is not None], color)
        for key, (name, color) in keys.items()
    ]
    series = [each for each in series if each.points]
    values = [value for each in series for _, value in each.points]
    return line_chart(title, series, epochs, Axis.around("", values, show), spots) if values else None


def _data_section(task: Task, source: Dataset | CocoDataset) -> Section:
    """Counts of images, and of images or objects of each class, by split."""
    present = {SPLIT_ADJECTIVES[name]: split for name, split in source.splits().items()}
    unit, counts = "", {}
    for name, split in present.items():
        unit, counts[name] = task.class_counts(split, len(source.classes))
    order = sorted(range(len(source.classes)), key=lambda label: -counts["training"][label])
    rows = [[source.classes[label], *(int(column[label]) for column in counts.values())] for label in order]
    columns = (Column("class"), *(Column(name, "{:,}") for name in counts))
    images = ", ".join(f"{counted(len(split), f'{name} image')}" for name, split in present.items())
    drawn = " The validation images were drawn at random." if source.drawn else ""
    table = Table("classes", f"{unit.capitalize()} of each class", columns, rows)
    return Section("Data", (f"{images}.{drawn}", *source.warnings), (table,))


def _settings_section(model_file: ModelFile, record: Mapping[str, Any]) -> Section:
    """The recipe's important settings, and those that were adapted to the dataset."""
    recipe = {**model_file.provenance.get("recipe", {}), "model": record.get("model")}
    recipe["image_size"] = model_file.preprocess.image_size
    names = {"name": "recipe", "model": "start"}
    rows = [[names.get(key, key), _shown(recipe[key])] for key in SHOWN_SETTINGS if recipe.get(key) is not None]
    tables = [
        Table("settings", "Settings", (Column("setting"), Column("value")), rows, "recipe.json has all settings.")
    ]
    if choices := record.get("choices"):
        columns = Column("setting"), Column("published"), Column("used"), Column("reason")
        changed = [[each["field"], _shown(each["published"]), _shown(each["used"]), each["reason"]] for each in choices]
        tables.append(Table("adapted", "Settings adapted to the dataset", columns, changed))
    return Section("Settings", tables=tuple(tables))


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
