"""A training run from the names a user gives: data, model, recipe, folder."""

import json
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from ..data.loader import seeded
from ..data.sources import Source, duplicates, open_source
from ..data.transforms import Preprocess
from ..engines import pick_device
from ..errors import InputError
from ..files import check_folder, write_csv
from ..model.architecture import Architecture
from ..model.cost import cost
from ..modelfile import ModelFile
from ..pretrained import create_model, default_preprocess, is_published, load_model, transfer
from ..provenance import facts
from ..tasks.classify import Classify
from .loop import Result, Trainer
from .recipe import RECIPES, Recipe, fit
from .report import Reporter


def train(
    data: str | Path,
    model: str | None = None,
    recipe: str | None = None,
    out: str | Path = "runs/train",
    *,
    settings: Mapping[str, Any] | None = None,
    device: str = "auto",
    workers: int = 2,
    resume: bool = False,
    reporter: Reporter | None = None,
) -> Result:
    """Train a classifier on labelled images, and write best.safetensors and all that belongs to it into `out`.

    Args:
        data: A folder, a CSV or `digits`; see `shvit.data.sources.open_source`.
        model: A variant, `timm/NAME`, published weights (`shvit_s1.in1k`), or a model file to go on from; default:
            shvit_s1.
        recipe: A key of `RECIPES`; default: scratch.
        out: A new folder; with `resume`, that of the run to continue.
        settings: Fields of the recipe to set; the others are fitted to the data (`recipe.fit`).
        device: `auto`, `cpu`, `cuda`, …
        workers: Processes that decode.
        resume: Continue at the step where the run in `out` stopped, with its own model and recipe.
        reporter: Told of what happens; default: nobody.

    Raises:
        InputError: Anything that was given is wrong; nothing was trained.
        Failure: Training cannot go on.
    """
    out, reporter = Path(out), reporter or Reporter()
    device = pick_device(device)
    named = {key: value for key, value in (settings or {}).items() if value is not None}
    check_folder(out, new=not resume)
    if resume:
        record = _recorded(out, {**named, "model": model, "name": recipe})
        chosen = Recipe.from_dict(record["recipe"])
        source = open_source(data, chosen.seed, chosen.val_share)
        source.check_trainable()
        network = Architecture.from_dict(record["architecture"]).build()
        start = ModelFile(network, source.classes, Preprocess.from_dict(record["preprocess"]))
    else:
        model = model or "shvit_s1"
        draft = make_recipe(recipe or "scratch", model, named)
        source = open_source(data, draft.seed, draft.val_share)
        source.check_trainable()
        chosen = fit(draft, len(source.train), frozenset(named))
        with seeded(chosen.seed):
            start = starting_point(model, source, chosen)
    if chosen.batch_size > len(source.train):
        raise InputError(f"batch_size {chosen.batch_size} is more than the {len(source.train)} training images")
    if chosen.batch_size % 2 and (chosen.mixup or chosen.cutmix):
        raise InputError(f"mixup and cutmix mix pairs: the batch size must be even, got {chosen.batch_size}")
    task = Classify(source.classes, chosen.label_smoothing, chosen.mixup, chosen.cutmix, chosen.random_erasing, device)
    about = facts()
    trainer = Trainer(task, start, source, chosen, out, device, workers, reporter, about)
    if not resume:
        out.mkdir(parents=True, exist_ok=True)
        record = {
            "recipe": chosen.to_dict(),
            "model": model,
            "architecture": start.architecture.to_dict(),
            "preprocess": start.preprocess.to_dict(),
            "data": str(data),
            "classes": source.classes,
            **about,
        }
        (out / "recipe.json").write_text(json.dumps(record, indent=2) + "\n")
        _report_duplicates(source, out, reporter)
    return trainer.run(resume)


def make_recipe(name: str, model: str, settings: Mapping[str, Any]) -> Recipe:
    """The recipe of this name for this model, with these fields set. Raises InputError for what does not exist."""
    if name not in RECIPES:
        raise InputError(f"unknown recipe {name!r}: allowed are {', '.join(RECIPES)}")
    allowed = {entry.name for entry in fields(Recipe)} - {"name"}
    if unknown := set(settings) - allowed:
        raise InputError(f"a recipe has no {', '.join(sorted(unknown))}: allowed are {', '.join(sorted(allowed))}")
    base = RECIPES[name](model.removesuffix(".in1k"))
    if "epochs" in settings:  # fewer epochs than the published warm-up are allowed, with as much less of it
        share = min(1.0, settings["epochs"] / base.epochs)
        shorter = {key: getattr(base, key) * share for key in ("warmup_epochs", "cooldown_epochs")}
        return replace(base, **{**shorter, **settings})
    return replace(base, **settings)


def starting_point(model: str, source: Source, recipe: Recipe) -> ModelFile:
    """The network to train, with the data's classes: fresh, or trained weights under a head that fits."""
    count = len(source.classes)
    if is_published(model) or Path(model).suffix == ".safetensors" or Path(model).is_file():
        trained = load_model(model)
        architecture = replace(trained.architecture, num_classes=count, distilled=False)
        network = transfer(trained.model, architecture, fresh_head=trained.classes != source.classes)
        size = recipe.image_size or trained.preprocess.image_size
        preprocess = replace(trained.preprocess, image_size=size)
    else:
        network = create_model(model, count)
        preprocess = default_preprocess(network, recipe.image_size)
    cost(network, (preprocess.image_size, preprocess.image_size))  # refuses what timm's model cannot take
    return ModelFile(network, source.classes, preprocess)


def _recorded(out: Path, named: Mapping[str, Any]) -> dict[str, Any]:
    """recipe.json of the run in `out`. Raises InputError where something else is named now."""
    path = out / "recipe.json"
    try:
        record = json.loads(path.read_text())
        begun = {**record["recipe"], "model": record["model"]}
        Recipe.from_dict(record["recipe"])
        Architecture.from_dict(record["architecture"])
        Preprocess.from_dict(record["preprocess"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be read, so there is no run to resume: {error}") from None
    for key, value in named.items():
        if value is not None and begun.get(key) != value:
            raise InputError(f"{out} was begun with {key} {begun.get(key)}, not {value}; a new run needs another --out")
    return record


def _report_duplicates(source: Source, out: Path, reporter: Reporter) -> None:
    """Images that are in both splits make the validation look better than it is."""
    pairs = duplicates(source.train, source.val)
    if pairs:
        write_csv(out / "duplicates.csv", ["train", "val"], pairs)
        reporter.warn(
            f"{len({val for _, val in pairs})} validation images are training images too, such as {pairs[0][1]}: "
            f"accuracy will look better than it is; {out / 'duplicates.csv'} lists them"
        )
