"""A training run from the names a user gives: data, model, recipe, folder."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ..data.loader import seeded
from ..data.sources import Source, duplicates, open_source
from ..data.transforms import Preprocess
from ..engines import pick_device
from ..errors import InputError
from ..files import check_folder, replacing, write_csv
from ..model.architecture import TIMM_PREFIX, Architecture
from ..model.cost import cost
from ..modelfile import ModelFile, digest_of
from ..pretrained import create_model, default_preprocess, is_published, load_model, transfer
from ..provenance import facts
from ..tasks.base import Task
from ..tasks.classify import Classify
from .distill import AnswerCache, Distill, Teacher
from .loop import SAVE_EVERY, Result, Trainer
from .profile import Profile
from .profile import profile as measure
from .recipe import RECIPES, TUNES, Recipe, fit
from .report import Reporter
from .setup import DTYPES, picks_precision
from .state import NAMES as STATES
from .track import check_tracker, tracking
from .world import World


@dataclass(frozen=True)
class Options:
    """How a run is carried out. What comes out is the same, but for the digits that a cache of answers rounds off."""

    device: str = "auto"
    """`auto`, `cpu`, `cuda`, …; under torchrun `cuda` is a GPU for each process."""
    workers: int = 2
    """Processes that decode, for each process that trains."""
    save_every: int = SAVE_EVERY
    """Steps from one state on disk to the next."""
    teacher_cache: str | Path | None = None
    """A folder for the teacher's answers, so that no image is shown to it twice; for recipes that mix no images."""
    track: str | None = None
    """`tensorboard`: also write what is in metrics.jsonl, and the steps between, for TensorBoard."""

    def check(self) -> None:
        """Raises InputError for a value that is not allowed."""
        if self.save_every < 1:
            raise InputError(f"save_every must be at least 1 step, got {self.save_every}")
        check_tracker(self.track)


def train(
    data: str | Path,
    model: str | None = None,
    recipe: str | None = None,
    out: str | Path = "runs/train",
    *,
    settings: Mapping[str, Any] | None = None,
    resume: bool = False,
    reporter: Reporter | None = None,
    **options: Any,
) -> Result:
    """Train a classifier on labelled images, and write best.safetensors and all that belongs to it into `out`.

    Several processes that torchrun started train one network together. Where torchrun starts them anew, after one was
    lost, they go on from the last state.

    Args:
        data: A folder, a CSV, shards, `hf://NAME` or `digits`; see `shvit.data.sources.open_source`.
        model: A variant, `timm/NAME`, published weights (`shvit_s1.in1k`), or a model file to go on from; default:
            shvit_s1.
        recipe: A key of `RECIPES`; default: scratch.
        out: A new folder; with `resume`, that of the run to continue.
        settings: Fields of the recipe to set; the others are fitted to the data (`recipe.fit`).
        resume: Continue at the step where the run in `out` stopped, with its own model and recipe.
        reporter: Told of what happens; default: nobody.
        options: Fields of `Options`.

    Raises:
        InputError: Anything that was given is wrong; nothing was trained.
        Failure: Training cannot go on.
    """
    out, how, world = Path(out), Options(**options), World.from_environment()
    how.check()
    device = world.device(pick_device(how.device))
    with world.joined(device):
        run = str(out.resolve())
        resume = world.first(lambda: resume or (world.has_begun(run) and (out / RECORD).exists()))
        check_folder(out, new=not resume)
        plan = _resumed(data, model, recipe, out, settings or {}) if resume else _planned(data, model, recipe, settings)
        reporter = reporter if reporter and world.leads else Reporter()
        for warning in (*plan.source.warnings, *plan.warnings()):
            reporter.warn(warning)
        trainer = _trainer(plan, how, out, device, reporter, world)
        if not resume:
            if world.leads:
                world.begin(run)
            world.first(lambda: _prepare(plan, str(data), out, trainer.facts, reporter))
        with tracking(reporter, how.track if world.leads else None, out):
            return trainer.run(resume)


def profile(
    data: str | Path,
    model: str | None = None,
    recipe: str | None = None,
    *,
    settings: Mapping[str, Any] | None = None,
    **options: Any,
) -> Profile:
    """What would hold back `train` with the same arguments, here. Nothing is written.

    Raises:
        InputError: As `train`.
    """
    how, world = replace(Options(**options), teacher_cache=None), World.from_environment()
    how.check()
    device = world.device(pick_device(how.device))
    with world.joined(device):
        plan = _planned(data, model, recipe, settings)
        return measure(_trainer(plan, how, Path(), device, Reporter(), world), how.workers)


@dataclass(frozen=True)
class Plan:
    """What is to be trained, on what, and how."""

    model: str
    recipe: Recipe
    source: Source
    start: ModelFile

    def check(self, processes: int = 1) -> None:
        """Raises InputError where batch, images and processes do not go together."""
        images, batch = len(self.source.train) - len(self.source.train.bad), self.recipe.batch_size
        if batch > images:
            raise InputError(f"batch_size {batch} is more than the {images} training images")
        self.recipe.check_divisible(processes)

    def warnings(self) -> list[str]:
        """What is allowed and hardly meant."""
        if self.recipe.name in TUNES and not _is_trained(self.model):
            return [f"recipe {self.recipe.name} tunes trained weights, and {self.model} has none: give --model a file"]
        return []


RECORD = "recipe.json"
"""In a run's folder: what the run was begun with."""


def _planned(data: str | Path, model: str | None, recipe: str | None, settings: Mapping[str, Any] | None) -> Plan:
    model = model or "shvit_s1"
    named = {key: value for key, value in (settings or {}).items() if value is not None}
    draft = make_recipe(recipe or "scratch", model, named)
    source = open_source(data, draft.seed, draft.val_share)
    source.check_trainable()
    chosen = fit(draft, len(source.train), frozenset(named))
    return Plan(model, chosen, source, starting_point(model, source, chosen))


def _resumed(data: str | Path, model: str | None, recipe: str | None, out: Path, settings: Mapping[str, Any]) -> Plan:
    """As the run in `out` was begun. Raises InputError where something else is named now."""
    record = _recorded(out, {**settings, "model": model, "name": recipe})
    chosen = Recipe.from_dict(record["recipe"])
    source = open_source(data, chosen.seed, chosen.val_share)
    source.check_trainable()
    if any((out / name).exists() for name in STATES):
        network = Architecture.from_dict(record["architecture"]).build()
        start = ModelFile(network, source.classes, Preprocess.from_dict(record["preprocess"]))
    else:  # killed before its first state
        start = starting_point(record["model"], source, chosen)
    return Plan(record["model"], chosen, source, start)


def _prepare(plan: Plan, data: str, out: Path, about: dict[str, Any], reporter: Reporter) -> None:
    """The folder, with the record of how the run was begun; warnings about the data."""
    out.mkdir(parents=True, exist_ok=True)
    record = {
        "recipe": plan.recipe.to_dict(),
        "model": plan.model,
        "architecture": plan.start.architecture.to_dict(),
        "preprocess": plan.start.preprocess.to_dict(),
        "data": data,
        "classes": plan.source.classes,
        **about,
    }
    with replacing(out / RECORD) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n")
    _report_duplicates(plan.source, out, reporter)


def _trainer(plan: Plan, how: Options, out: Path, device: str, reporter: Reporter, world: World) -> Trainer:
    plan.check(world.size)
    task = make_task(plan, how, device)
    where = out, device, how.workers
    return Trainer(task, plan.start, plan.source, plan.recipe, *where, reporter, facts(), world, how.save_every)


def make_task(plan: Plan, options: Options, device: str) -> Task:
    """What is learnt: from labels, and from a teacher where the recipe names one."""
    recipe, source = plan.recipe, plan.source
    mixing = recipe.label_smoothing, recipe.mixup, recipe.cutmix, recipe.random_erasing
    task = Classify(source.classes, *mixing, device)
    if recipe.teacher is None:
        if options.teacher_cache is not None:
            raise InputError(f"a cache of a teacher's answers needs a teacher, and recipe {recipe.name} has none")
        return task
    trained, dtype = load_model(recipe.teacher), DTYPES[picks_precision(recipe, device)]
    cache = None
    if options.teacher_cache is not None:
        about = {
            "teacher": digest_of(trained),
            "precision": str(dtype),
            "data": source.fingerprint,
            "classes": source.classes,
        }
        cache = AnswerCache(Path(options.teacher_cache), recipe, plan.start.preprocess, about, len(source.train))
    teacher = Teacher(trained, source.classes, plan.start.preprocess, device, dtype, cache)
    return Distill(task, teacher, recipe.distillation, recipe.distillation_share, recipe.temperature)


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
    """The network to train, with the data's classes: fresh, or trained weights under a head that fits.

    It has a second head where a teacher is to be learnt from, and the network can have one.
    """
    with seeded(recipe.seed):
        return _starting_point(model, source, recipe)


def _starting_point(model: str, source: Source, recipe: Recipe) -> ModelFile:
    count = len(source.classes)
    if _is_trained(model):
        trained = load_model(model)
        distilled = recipe.teacher is not None and trained.architecture.config is not None
        architecture = replace(trained.architecture, num_classes=count, distilled=distilled)
        network = transfer(trained.model, architecture, fresh_head=trained.classes != source.classes)
        size = recipe.image_size or trained.preprocess.image_size
        preprocess = replace(trained.preprocess, image_size=size)
    else:
        network = create_model(model, count, distilled=recipe.teacher is not None and not model.startswith(TIMM_PREFIX))
        preprocess = default_preprocess(network, recipe.image_size)
    cost(network, (preprocess.image_size, preprocess.image_size))  # refuses what timm's model cannot take
    return ModelFile(network, source.classes, preprocess)


def _is_trained(model: str) -> bool:
    return is_published(model) or Path(model).suffix == ".safetensors" or Path(model).is_file()


def _recorded(out: Path, named: Mapping[str, Any]) -> dict[str, Any]:
    """recipe.json of the run in `out`. Raises InputError where something else is named now."""
    path = out / RECORD
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
