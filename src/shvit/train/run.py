"""A training run from the names a user gives: data, model, recipe, folder."""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ..data.coco import CocoSource
from ..data.identity import DrawnBy, TrainedOn, drawn_before
from ..data.letterbox import check_fit
from ..data.loader import seeded
from ..data.sources import Dataset, duplicates
from ..data.transforms import COARSEST, Preprocess
from ..engines import pick_device
from ..errors import InputError
from ..files import check_folder, locked, replacing, write_csv
from ..model.architecture import TIMM_PREFIX, Architecture
from ..model.config import VARIANTS
from ..model.cost import cost
from ..modelfile import ModelFile, digest_of
from ..pretrained import create_model, default_preprocess, is_published, load_model, onto_detector, transfer
from ..provenance import facts
from ..redact import redacted
from ..tasks import TASKS, need_classifier
from ..tasks.base import Task
from ..tasks.classify import Classify
from ..tasks.detect import Detect
from ..tasks.segment import Segment
from .budget import Choice, choices, fit
from .checkpoint import NAMES as STATES
from .distill import AnswerCache, Distill, Teacher
from .distributed import World
from .idle import refuse_idle
from .loop import SAVE_EVERY, Result, Trainer
from .optim import DTYPES, picks_precision
from .profile import Profile
from .profile import profile as measure
from .recipe import RECIPES, TASK_RECIPES, TUNES, Recipe
from .report import Reporter
from .track import check_tracker, tracking

RESUMES = ", or --resume to continue the run in it"
"""What else can be done about a folder that is not empty."""


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
    task: str | None = None,
    settings: Mapping[str, Any] | None = None,
    resume: bool = False,
    reporter: Reporter | None = None,
    **options: Any,
) -> Result:
    """Train a network on labelled images, and write best.safetensors and all that belongs to it into `out`.

    Several processes that torchrun started train one network together. Where torchrun starts them anew, after one was
    lost, they go on from the last state.

    Args:
        data: A folder, a CSV, shards, `hf://NAME` or `digits`; see `shvit.data.sources.open_source`. For detection and
            segmentation a COCO folder; see `shvit.data.coco.open_coco`.
        model: A variant, `timm/NAME`, published weights (`shvit_s1.in1k`), or a model file to go on from; default:
            shvit_s1.
        recipe: A key of `RECIPES`; default: scratch, and small for detection and segmentation.
        out: A new folder; with `resume`, that of the run to continue.
        task: `classify`, `detect` or `segment`; default: classify or, with `resume`, what the run was begun with.
        settings: Fields of the recipe to set; the others are fitted to the data (`budget.fit`).
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
        check_folder(out, new=not resume, otherwise=RESUMES)
        named = data, task, model, recipe
        plan = _resumed(*named, out, settings or {}) if resume else _planned(*named, settings or {})
        reporter = reporter if reporter and world.leads else Reporter()
        for warning in (*plan.source.warnings, *plan.warnings()):
            reporter.warn(warning)
        trainer = _trainer(plan, how, out, device, reporter, world)
        reporter.fitted(plan.choices, len(plan.source.train), plan.recipe.epochs)
        if world.leads:
            trainer.facts["trained_on"] = plan.trained_on()
        with ExitStack() as held:
            world.first(lambda: held.enter_context(_claimed(out, new=not resume)))
            if not resume:
                if world.leads:
                    world.begin(run)
                world.first(lambda: _prepare(plan, str(data), out, trainer.facts, reporter))
            with tracking(reporter, how.track if world.leads else None, out):
                return replace(trainer.run(resume), choices=plan.choices)


@contextmanager
def _claimed(out: Path, new: bool) -> Iterator[None]:
    """Inside, no other training writes into the folder. Raises InputError where one does, or did so meanwhile."""
    out.mkdir(parents=True, exist_ok=True)
    taken = f"another training is writing into {out}: wait for its end, or give another --out"
    with locked(out / ".lock", taken):
        check_folder(out, new=new, otherwise=RESUMES)
        yield


def profile(
    data: str | Path,
    model: str | None = None,
    recipe: str | None = None,
    *,
    task: str | None = None,
    settings: Mapping[str, Any] | None = None,
    device: str = "auto",
    workers: int = 2,
) -> Profile:
    """What would hold back `train` with the same arguments, here. Nothing is written.

    Raises:
        InputError: As `train`.
    """
    how, world = Options(device, workers), World.from_environment()
    device = world.device(pick_device(device))
    with world.joined(device):
        plan = _planned(data, task, model, recipe, settings or {})
        return measure(_trainer(plan, how, Path(), device, Reporter(), world), workers)


@dataclass(frozen=True)
class Plan:
    """What is to be trained, on what, and how."""

    model: str
    recipe: Recipe
    source: Dataset | CocoSource
    start: ModelFile
    choices: tuple[Choice, ...] = ()
    """What `fit` changed of the published recipe."""
    drawn_by: DrawnBy = "content"
    """How the validation images were drawn, for data without a validation split."""
    known: Mapping[str, Any] | None = None
    """`trained_on` of a run that is resumed."""

    def check(self, processes: int = 1) -> None:
        """Raises InputError where batch, images and processes do not go together."""
        images, batch = len(self.source.train) - len(self.source.train.bad), self.recipe.batch_size
        if batch > images:
            raise InputError(f"batch_size {batch} is more than the {images} training images")
        self.recipe.check_divisible(processes)

    def warnings(self) -> list[str]:
        """Whether the weights to start from were trained on validation images."""
        provenance, val = self.start.provenance, self.source.val
        known = TrainedOn.recorded(provenance)
        if known is None:
            unknown = self.source.drawn and "data_fingerprint" in provenance
            text = (
                "does not name its training images, since an earlier version of shvit wrote it: they may be among the"
            )
            return [f"{self.model} {text} validation images"] if unknown else []
        count = int(known.among(val.images).sum())
        text = f"validation images were used in training {self.model}: accuracy will look better than it is"
        return [f"{count:,} of {len(val):,} {text}"] if count else []

    def trained_on(self) -> Mapping[str, Any]:
        """The training images, and those of the weights to start from, for model files and the run's record."""
        if self.known:
            return self.known
        return (TrainedOn.of(self.source.train.images) | TrainedOn.recorded(self.start.provenance)).to_dict()


RECORD = "recipe.json"
"""In a run's folder: what the run was begun with."""


def _planned(
    data: str | Path, task: str | None, model: str | None, recipe: str | None, settings: Mapping[str, Any]
) -> Plan:
    task, model = task or "classify", model or "shvit_s1"
    if task not in TASKS:
        raise InputError(f"unknown task {task!r}: allowed are {', '.join(TASKS)}")
    named = {key: value for key, value in settings.items() if value is not None}
    variant = variant_of(model)
    draft = make_recipe(recipe or TASK_RECIPES[task][0], variant, named, task)
    if draft.name in TUNES and not _is_trained(model):
        published = f"{model if model in VARIANTS else 'shvit_s1'}.in1k"
        raise InputError(
            f"recipe {draft.name} tunes trained weights, and {model} has none: --model must be a model file or "
            f"published weights such as {published}"
        )
    source = _opened(data, task, draft)
    start, images = starting_point(model, source, draft, task), len(source.train)
    chosen = fit(draft, images, frozenset(named), start.preprocess.image_size)
    refuse_idle(chosen, named, source.drawn)
    made = choices(make_recipe(chosen.name, variant, {}, task), chosen, images, named)
    return Plan(model, chosen, source, start, made)


def _resumed(
    data: str | Path,
    task: str | None,
    model: str | None,
    recipe: str | None,
    out: Path,
    settings: Mapping[str, Any],
) -> Plan:
    """As the run in `out` was begun. Raises InputError where something else is named now."""
    record = recorded(out, {**settings, "task": task, "model": model, "name": recipe})
    chosen, kind = Recipe.from_dict(record["recipe"]), str(record["task"])
    drawn_by = record.get("drawn_by", drawn_before(record))
    source = _opened(data, kind, chosen, drawn_by)
    if any((out / name).exists() for name in STATES):
        network = Architecture.from_dict(record["architecture"]).build()
        start = ModelFile(network, source.classes, Preprocess.from_dict(record["preprocess"]), kind)
    else:  # killed before its first state
        start = starting_point(record["model"], source, chosen, kind)
    made = tuple(Choice(**choice) for choice in record.get("choices", ()))
    return Plan(record["model"], chosen, source, start, made, drawn_by, record.get("trained_on"))


def _opened(data: str | Path, task: str, recipe: Recipe, drawn_by: DrawnBy = "content") -> Dataset | CocoSource:
    source = TASKS[task].open(data, recipe.seed, recipe.val_share, drawn_by)
    source.check_trainable(**({"masks": True} if task == "segment" else {}))
    return source


def _prepare(plan: Plan, data: str, out: Path, about: dict[str, Any], reporter: Reporter) -> None:
    """The record of how the run was begun, in its folder; warnings about the data."""
    record = {
        "recipe": plan.recipe.to_dict(),
        "choices": [choice.to_dict() for choice in plan.choices],
        "task": plan.start.task,
        "model": plan.model,
        "architecture": plan.start.architecture.to_dict(),
        "preprocess": plan.start.preprocess.to_dict(),
        "data": redacted(data),
        "classes": plan.source.classes,
        **about,
    }
    with replacing(out / RECORD) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    _report_duplicates(plan.source, out, reporter)


def _trainer(plan: Plan, how: Options, out: Path, device: str, reporter: Reporter, world: World) -> Trainer:
    plan.check(world.size)
    task = make_task(plan, how, device)
    where = out, device, how.workers
    about = {**facts(), "drawn_by": plan.drawn_by}
    if isinstance(plan.source, CocoSource):
        about["categories"] = plan.source.categories
    return Trainer(task, plan.start, plan.source, plan.recipe, *where, reporter, about, world, how.save_every)


def make_task(plan: Plan, options: Options, device: str) -> Task:
    """What is learnt: from labels or objects, and from a teacher where the recipe names one."""
    recipe, source = plan.recipe, plan.source
    if plan.start.task != "classify":
        return make_object_task(plan.start.task, source.classes, recipe)
    mixing = recipe.label_smoothing, recipe.mixup, recipe.cutmix, recipe.random_erasing
    task = Classify(source.classes, *mixing, device)
    if recipe.teacher is None:
        if options.teacher_cache is not None:
            raise InputError(f"a cache of a teacher's answers needs a teacher, and recipe {recipe.name} has none")
        return task
    trained, dtype = load_model(recipe.teacher), DTYPES[picks_precision(recipe, device)]
    need_classifier(trained, "distillation")
    cache = None
    if options.teacher_cache is not None:
        about = {
            "teacher": digest_of(trained),
            "precision": str(dtype),
            "data": source.fingerprint,
            "classes": source.classes,
            **({"drawn_by": plan.drawn_by} if source.drawn and plan.drawn_by != "position" else {}),
        }
        cache = AnswerCache(Path(options.teacher_cache), recipe, plan.start.preprocess, about, len(source.train))
    teacher = Teacher(trained, source.classes, plan.start.preprocess, device, dtype, cache)
    return Distill(task, teacher, recipe.distillation, recipe.distillation_share, recipe.temperature)


def make_object_task(task: str, classes: tuple[str, ...], recipe: Recipe) -> Task:
    """Detection or segmentation."""
    if task == "segment":
        return Segment(classes, recipe.frozen_norms, recipe.regions)
    return Detect(classes, recipe.frozen_norms)


def variant_of(model: str) -> str:
    """What recipes know the network by: what a model file says, whatever the file is called; else the plain name."""
    name = load_model(model).architecture.name if Path(model).is_file() else model
    return name.removeprefix(TIMM_PREFIX).partition(".")[0]


def make_recipe(name: str, variant: str, settings: Mapping[str, Any], task: str = "classify") -> Recipe:
    """The recipe of this name for this variant, with these fields set. Raises InputError for what does not exist."""
    if name not in TASK_RECIPES[task]:
        raise InputError(f"unknown recipe {name!r} of task {task}: allowed are {', '.join(TASK_RECIPES[task])}")
    allowed = {
        entry.name for entry in fields(Recipe) if not entry.metadata.get("tasks") or task in entry.metadata["tasks"]
    } - {"name"}
    if unknown := set(settings) - allowed:
        raise InputError(
            f"a recipe of task {task} has no {', '.join(sorted(unknown))}: allowed are {', '.join(sorted(allowed))}"
        )
    base = RECIPES[name](variant)
    shorter = {}
    if "epochs" in settings:  # fewer epochs than the published warm-up are allowed, with as much less of it
        share = min(1.0, settings["epochs"] / base.epochs)
        shorter = {key: getattr(base, key) * share for key in ("warmup_epochs", "cooldown_epochs")}
    draft = replace(base, **{**shorter, **settings})
    if "rate_batch" in settings and "rate" not in settings:  # the same effective rate
        return replace(draft, rate=base.rate * draft.rate_batch / base.rate_batch)
    return draft


def starting_point(model: str, source: Dataset | CocoSource, recipe: Recipe, task: str = "classify") -> ModelFile:
    """The network to train, with the data's classes: fresh, or trained weights under a head that fits.

    It has a second head where a teacher is to be learnt from, and the network can have one.
    """
    with seeded(recipe.seed):
        if isinstance(source, CocoSource):
            return _detector(task, model, source, recipe)
        return _starting_point(model, source, recipe)


def _detector(task: str, model: str, source: CocoSource, recipe: Recipe) -> ModelFile:
    """On a fresh backbone, or with the weights of a classifier or of a detector."""
    count, kind, provenance = len(source.classes), TASKS[task].detector, {}
    if _is_trained(model):
        trained = load_model(model)
        begun = trained.architecture
        if begun.detector == kind and begun.layout != recipe.layout:
            raise InputError(
                f"{model} is a detector of layout {begun.layout}, and recipe {recipe.name} has {recipe.layout}: give "
                f"--layout {begun.layout} to go on from it"
            )
        architecture = replace(begun, num_classes=count, detector=kind, distilled=False, layout=recipe.layout)
        network = onto_detector(trained.model, architecture, fresh_head=trained.classes != source.classes)
        known, provenance = trained.preprocess, trained.provenance
    elif recipe.frozen_norms != "none":
        raise InputError(
            f"frozen_norms {recipe.frozen_norms} keeps BatchNorms as they are, and those of {model} are fresh: "
            "--model must be a trained file or published weights"
        )
    else:
        network = Architecture(model, count, detector=kind, layout=recipe.layout).build()
        known = default_preprocess(network)
    size, fit = recipe.image_size or known.image_size, "shorter" if recipe.shorter_side else "whole"
    preprocess = replace(known, image_size=size, crop=1.0, interpolation="bilinear", fit=fit)
    check_fit(preprocess)
    cost(network, (COARSEST, COARSEST))  # refuses what timm's model cannot take
    return ModelFile(network, source.classes, preprocess, task, provenance=provenance)


def _starting_point(model: str, source: Dataset, recipe: Recipe) -> ModelFile:
    count, provenance = len(source.classes), {}
    if _is_trained(model):
        trained = load_model(model)
        if trained.task != "classify":
            raise InputError(f"{model} was trained to {trained.task}: to classify, give a classifier's file")
        distilled = recipe.teacher is not None and trained.architecture.config is not None
        architecture = replace(trained.architecture, num_classes=count, distilled=distilled)
        network = transfer(trained.model, architecture, fresh_head=trained.classes != source.classes)
        size = recipe.image_size or trained.preprocess.image_size
        preprocess, provenance = replace(trained.preprocess, image_size=size), trained.provenance
    else:
        network = create_model(model, count, distilled=recipe.teacher is not None and not model.startswith(TIMM_PREFIX))
        preprocess = default_preprocess(network, recipe.image_size)
    preprocess = replace(preprocess, fit=recipe.eval_fit or preprocess.fit)
    cost(network, (preprocess.image_size, preprocess.image_size))  # refuses what timm's model cannot take
    return ModelFile(network, source.classes, preprocess, provenance=provenance)


def _is_trained(model: str) -> bool:
    return is_published(model) or Path(model).suffix == ".safetensors" or Path(model).is_file()


def recorded(out: Path, named: Mapping[str, Any]) -> dict[str, Any]:
    """recipe.json of the run in `out`. Raises InputError where something else is named now."""
    path = out / RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        record.setdefault("task", "classify")
        begun = {
            **Recipe.from_dict(record["recipe"]).to_dict(),
            "model": record["model"],
            "task": record["task"],
        }
        Architecture.from_dict(record["architecture"])
        Preprocess.from_dict(record["preprocess"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be read, so there is no run to resume: {error}") from None
    for key, value in named.items():
        if value is not None and begun.get(key) != value:
            raise InputError(f"{out} was begun with {key} {begun.get(key)}, not {value}; a new run needs another --out")
    return record


def _report_duplicates(source: Dataset | CocoSource, out: Path, reporter: Reporter) -> None:
    """Images that are in both splits make the validation look better than it is."""
    groups = duplicates(source.train, source.val)
    if groups:
        rows = [(train[0], name) for train, val in groups for name in val]
        write_csv(out / "duplicates.csv", ["train", "val"], rows)
        reporter.warn(
            f"{len(rows)} validation images are training images too, such as {rows[0][1]}: "
            f"accuracy will look better than it is; {out / 'duplicates.csv'} lists them"
        )
