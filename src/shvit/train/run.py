"""A training run from the names a user gives: data, model, recipe, folder."""

import csv
import json
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from ..data.loader import seeded
from ..data.sources import Source, duplicates, open_source
from ..engines import pick_device
from ..errors import InputError
from ..modelfile import ModelFile
from ..pretrained import create_model, default_preprocess, is_published, load, transfer
from ..provenance import facts
from ..tasks.classify import Classify
from .loop import Result, Trainer
from .recipe import RECIPES, Recipe, fit
from .report import Reporter


def train(
    data: str | Path,
    model: str = "shvit_s1",
    recipe: str = "scratch",
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
        model: A variant, `timm/NAME`, published weights (`shvit_s1.in1k`), or a model file to go on from.
        recipe: A key of `RECIPES`.
        out: A new folder; with `resume`, that of the run to continue.
        settings: Fields of the recipe to set; the others are fitted to the data (`recipe.fit`).
        device: `auto`, `cpu`, `cuda`, …
        workers: Processes that decode.
        resume: Continue at the step where the run in `out` stopped, with its own recipe.
        reporter: Told of what happens; default: nobody.

    Raises:
        InputError: Anything that was given is wrong; nothing was trained.
        Failure: Training cannot go on.
    """
    out, reporter = Path(out), reporter or Reporter()
    device = pick_device(device)
    named = {key: value for key, value in (settings or {}).items() if value is not None}
    if resume:
        chosen, model = _recorded(out, named)
        source = open_source(data, chosen.seed, chosen.val_share)
    else:
        if out.exists() and any(out.iterdir()):
            raise InputError(f"{out} is not empty: give another --out, or --resume to continue the run in it")
        draft = make_recipe(recipe, model, named)
        source = open_source(data, draft.seed, draft.val_share)
        chosen = fit(draft, len(source.train), frozenset(named))
    source.check_trainable()
    with seeded(chosen.seed):
        start = starting_point(model, source, chosen)
    task = Classify(source.classes, chosen.label_smoothing, chosen.mixup, chosen.cutmix, chosen.random_erasing, device)
    about = facts()
    trainer = Trainer(task, start, source, chosen, out, device, workers, reporter, about)
    if not resume:
        out.mkdir(parents=True, exist_ok=True)
        record = {"recipe": chosen.to_dict(), "model": model, "data": str(data), "classes": source.classes, **about}
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
    if "epochs" in settings and settings["epochs"] != base.epochs:  # so that fewer epochs than the warm-up are allowed
        share = settings["epochs"] / base.epochs
        base = replace(
            base,
            epochs=settings["epochs"],
            warmup_epochs=base.warmup_epochs * min(1, share),
            cooldown_epochs=base.cooldown_epochs * min(1, share),
        )
    return replace(base, **settings)


def starting_point(model: str, source: Source, recipe: Recipe) -> ModelFile:
    """The network to train, with the data's classes: fresh, or trained weights under a head that fits."""
    count = len(source.classes)
    if is_published(model) or Path(model).suffix == ".safetensors" or Path(model).is_file():
        trained = load(model)
        if trained.classes == source.classes:
            network = trained.model
        else:
            network = transfer(trained.model, replace(trained.architecture, num_classes=count))
        size = recipe.image_size or trained.preprocess.image_size
        preprocess = replace(trained.preprocess, image_size=size)
    else:
        network = create_model(model, count)
        preprocess = default_preprocess(network, recipe.image_size)
    return ModelFile(network, source.classes, preprocess)


def _recorded(out: Path, named: Mapping[str, Any]) -> tuple[Recipe, str]:
    """The recipe and model of the run in `out`. Raises InputError where other settings are named now."""
    path = out / "recipe.json"
    try:
        record = json.loads(path.read_text())
        recipe = Recipe.from_dict(record["recipe"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be read, so there is no run to resume: {error}") from None
    for key, value in named.items():
        if getattr(recipe, key) != value:
            raise InputError(
                f"{out} was begun with {key} {getattr(recipe, key)}, not {value}; a new run needs another --out"
            )
    return recipe, record["model"]


def _report_duplicates(source: Source, out: Path, reporter: Reporter) -> None:
    """Images that are in both splits make the validation look better than it is."""
    pairs = duplicates(source.train, source.val)
    if pairs:
        with (out / "duplicates.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("train", "val"), *pairs])
        reporter.warn(
            f"{len({val for _, val in pairs})} validation images are training images too, such as {pairs[0][1]}: "
            f"accuracy will look better than it is; {out / 'duplicates.csv'} lists them"
        )
