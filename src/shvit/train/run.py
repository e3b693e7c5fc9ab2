"""Runs a training request and writes the files in the run's folder."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..data.coco import CocoDataset
from ..data.dataset import Dataset, DrawnBy, drawn_before, shared_files
from ..data.identity import TrainedOn
from ..data.sources import is_listed
from ..data.splits import SPLIT_ADJECTIVES
from ..data.transforms import Preprocess
from ..data.walk import exists
from ..engines import pick_device
from ..errors import InputError, check_at_least, counted
from ..files import check_folder, locked, read_json, write_csv, write_json
from ..model.architecture import Architecture
from ..model.config import VARIANTS
from ..modelfile import ModelFile
from ..pretrained import WeightsMissing, load_model
from ..provenance import facts
from ..redact import redacted
from ..requests.train import TrainRequest
from ..tasks import kind_of
from .budget import Choice, choices, fit
from .checkpoint import NAMES as CHECKPOINTS
from .distributed import ProcessGroup
from .finish import finish_run
from .idle import refuse_idle
from .loop import Trainer
from .profile import Profile, time_steps
from .progress import Reporter, TrainResult
from .recipe import OLD_NAMES, Recipe
from .recipes import DEFAULT_MODEL, FROM_TRAINED, NEEDS_TRAINED_WEIGHTS, TASK_RECIPES, make_recipe
from .start import is_trained, make_task, starting_point, variant_of

RECORD = "recipe.json"
"""File in a run's folder that records the settings with which the run began."""
OR_RESUME = ", or --resume to continue the run in it"


@dataclass(frozen=True)
class TrainPlan:
    """A checked request: the starting point, the dataset and the final recipe."""

    model: str
    recipe: Recipe
    source: Dataset | CocoDataset
    start: ModelFile
    choices: tuple[Choice, ...] = ()
    """Settings that differ from the published recipe."""
    drawn_by: DrawnBy = "hash"
    """How validation images are drawn, if the dataset has no validation split."""
    known: Mapping[str, Any] | None = None
    """The recorded `trained_on` of a resumed run. None for a new run."""
    advice: str | None = None
    """A setting that the dataset may need."""

    def warnings(self) -> list[str]:
        """The advice, and warnings if the starting weights may have been trained on validation or test images."""
        return [*([self.advice] if self.advice else []), *self._seen_before()]

    def _seen_before(self) -> list[str]:
        provenance = self.start.provenance
        known = TrainedOn.recorded(provenance)
        if known is None:
            unknown = self.source.drawn and "data_fingerprint" in provenance
            text = "was written by an earlier version of shvit and does not list its training images: they may include"
            return [f"{self.model} {text} validation images"] if unknown else []
        lines = []
        for name, split in self.source.splits().items():
            if name != "train" and (count := int(known.among(split.images).sum())):
                text = f"{SPLIT_ADJECTIVES[name]} images: the measured accuracy will be too high"
                lines.append(f"{self.model} was trained on {count:,} of the {len(split):,} {text}")
        return lines

    def trained_on(self) -> Mapping[str, Any]:
        """Identities of the training images of this run and of its starting weights."""
        if self.known:
            return self.known
        return (TrainedOn.of(self.source.train.images) | TrainedOn.recorded(self.start.provenance)).to_dict()


def train(request: TrainRequest, reporter: Reporter | None = None) -> TrainResult:
    """Train a network, and write best.safetensors and the other files of the run to `request.out`.

    Processes started by torchrun train one network together. If torchrun restarts the processes because one was
    lost, the run resumes from the last checkpoint. Without a reporter, nothing is printed.

    Raises:
        InputError: The request is wrong. Nothing was trained.
        Failure: Training cannot continue.
    """
    if request.out is None:
        raise InputError("train needs --out: a new folder, or with --resume the folder of the run to resume")
    check_at_least(1, save_every=request.save_every)
    check_at_least(0, workers=request.workers)
    _check_tracker(request.track)
    out, group = Path(request.out), ProcessGroup.from_environment()
    device = group.device(pick_device(request.device))
    with group.connected(device):
        run = str(out.resolve())
        resume = group.on_main(lambda: request.resume or (group.has_begun(run) and (out / RECORD).exists()))
        check_folder(out, new=not resume, otherwise=OR_RESUME)
        plan = _resumed(request, out, group) if resume else _planned(request, group)
        reporter = reporter if reporter and group.is_main else Reporter()
        reporter.curves = out / "tensorboard" if request.track and group.is_main else None
        for warning in group.on_main(lambda: (*plan.source.warnings, *plan.warnings())):
            reporter.warn(warning)
        trainer = _trainer(plan, request, out, device, reporter, group)
        reporter.fitted(plan.choices, len(plan.source.train), plan.recipe.epochs)
        if group.is_main:
            trainer.facts["trained_on"] = plan.trained_on()
        with ExitStack() as stack:
            group.on_main(lambda: _claim(out, new=not resume, until=stack))
            if not resume:
                if group.is_main:
                    group.mark_begun(run)
                group.on_main(lambda: _prepare(plan, request.data, out, trainer.facts, reporter))
            return replace(finish_run(trainer, trainer.run(resume), request.workers), choices=plan.choices)


def profile(request: TrainRequest) -> Profile:
    """Measure what would limit the speed of `train` on this machine. Writes nothing.

    Raises:
        InputError: As for `train`.
    """
    group = ProcessGroup.from_environment()
    device = group.device(pick_device(request.device))
    with group.connected(device):
        plan = _planned(request, group)
        return time_steps(_trainer(plan, request, Path(), device, Reporter(), group), request.workers)


def _check_tracker(name: str | None) -> None:
    if name not in (None, "tensorboard"):
        raise InputError(f"track must be tensorboard, got {name!r}")
    if name and not find_spec(name):
        raise InputError(f"--track {name} needs the package {name}: pip install 'shvit[{name}]'")


def _claim(out: Path, new: bool, until: ExitStack) -> None:
    """Lock the run's folder. Raises InputError if another process is training or has just trained there."""
    out.mkdir(parents=True, exist_ok=True)
    taken = f"another training run is writing to {out}: wait until it ends, or choose another --out"
    until.enter_context(locked(out / ".lock", taken))
    check_folder(out, new=new, otherwise=OR_RESUME)


def _planned(request: TrainRequest, group: ProcessGroup) -> TrainPlan:
    task = request.task or "classify"
    family = kind_of(task).recipe_family
    named = {key: value for key, value in request.settings.items() if value is not None}
    model, name = _model_and_recipe(request, family)
    variant = variant_of(model)
    draft = make_recipe(name, variant, {**_head_of(model, task, name), **named}, family)
    if draft.name in NEEDS_TRAINED_WEIGHTS and not is_trained(model):
        published = f"{model if model in VARIANTS else 'shvit_s1'}.in1k"
        raise InputError(
            f"recipe {draft.name} needs trained weights, but {model} has none: --model must be a model file or "
            f"published weights such as {published}"
        )
    source = _opened(request.data, task, draft, group)
    if request.teacher_cache is not None and draft.teacher is None:
        raise InputError(f"--teacher-cache needs a teacher, but recipe {draft.name} has none: add --teacher")
    images = len(source.train)
    try:
        start = starting_point(model, source, draft, task)
    except WeightsMissing as error:
        # what is wrong comes before what is missing
        refuse_idle(fit(draft, images, frozenset(named)), named, source.drawn)
        if request.model is not None or request.recipe in NEEDS_TRAINED_WEIGHTS:
            raise
        raise WeightsMissing(f"{error}; or train from random weights with --model {DEFAULT_MODEL}") from None
    if not is_trained(model) and "backbone_lr" not in named:
        draft = replace(draft, backbone_lr=1.0)
    recipe = fit(draft, images, frozenset(named), start.preprocess.image_size)
    refuse_idle(recipe, named, source.drawn)
    published = make_recipe(recipe.name, variant, {"head": recipe.head} if recipe.head else {}, family)
    changed = choices(published, recipe, images, named)
    advice = None if "balance" in named else kind_of(task).advice(source)
    return TrainPlan(model, recipe, source, start, changed, advice=advice)


def _model_and_recipe(request: TrainRequest, family: str) -> tuple[str, str]:
    """The names of the model and of the recipe. Without either, trained weights are fine-tuned if the task can."""
    tuned = FROM_TRAINED.get(family)
    if request.model:
        default = tuned if tuned and is_trained(request.model) else TASK_RECIPES[family][0]
        return request.model, request.recipe or default
    recipe = request.recipe or tuned or TASK_RECIPES[family][0]
    published = recipe in NEEDS_TRAINED_WEIGHTS
    return f"{DEFAULT_MODEL}.in1k" if published else DEFAULT_MODEL, recipe


def _head_of(model: str, task: str, recipe: str) -> dict[str, str | None]:
    """The head of a detector's model file, with which recipe `small` trains it further; empty for other models."""
    if recipe != "small" or not Path(model).is_file():
        return {}
    start = load_model(model)
    return {"head": kind_of(start).head} if start.task == task else {}


def _resumed(request: TrainRequest, out: Path, group: ProcessGroup) -> TrainPlan:
    """The plan of the run in `out`. Raises InputError if the request contradicts it."""
    named = {**request.settings, "task": request.task, "model": request.model, "recipe": request.recipe}
    record = recorded(out, named)
    recipe, task = Recipe.from_dict(record["recipe"]), str(record["task"])
    drawn_by = record.get("drawn_by", drawn_before(record))
    source = _opened(request.data, task, recipe, group, drawn_by)
    if any((out / name).exists() for name in CHECKPOINTS):
        network = Architecture.from_dict(record["architecture"]).build()
        start = ModelFile(network, source.classes, Preprocess.from_dict(record["preprocess"]), task)
    else:  # killed before its first checkpoint
        start = starting_point(record["model"], source, recipe, task)
    kept = record.get("choices", ())
    changed = tuple(Choice(**{**each, "field": OLD_NAMES.get(each["field"], each["field"])}) for each in kept)
    return TrainPlan(record["model"], recipe, source, start, changed, drawn_by, record.get("trained_on"))


def _opened(
    data: str, task: str, recipe: Recipe, group: ProcessGroup, drawn_by: DrawnBy = "hash"
) -> Dataset | CocoDataset:
    """The dataset. The main process finds the files for all processes, because that may take minutes."""
    kind = kind_of(task)

    def open_source() -> Dataset | CocoDataset:
        return kind.open(data, recipe.seed, recipe.val_share, drawn_by)

    once = group.on_main(lambda: is_listed(data))
    source = group.on_main(open_source) if once else open_source()
    if once and len(source.train):
        first = Path(source.train.names[0])
        found = group.gather(exists(first))
        if found[0] and not all(found):
            raise InputError(
                f"process {found.index(False)} has no {first}: each machine needs the data, at the same path"
            )
    source.check_trainable(**({"masks": True} if kind.has_masks else {}))
    return source


def _trainer(
    plan: TrainPlan, request: TrainRequest, out: Path, device: str, reporter: Reporter, group: ProcessGroup
) -> Trainer:
    images, batch = len(plan.source.train) - len(plan.source.train.bad), plan.recipe.batch_size
    if batch > images:
        raise InputError(f"batch_size must be at most {images}, the number of training images, got {batch}")
    plan.recipe.check_divisible(group.size)
    cache = Path(request.teacher_cache) if request.teacher_cache else None
    task = make_task(plan.start, plan.source, plan.recipe, device, plan.drawn_by, cache)
    about = {**facts(), "drawn_by": plan.drawn_by}
    if isinstance(plan.source, CocoDataset):
        about["categories"] = plan.source.categories
    where = out, device, request.workers
    return Trainer(task, plan.start, plan.source, plan.recipe, *where, reporter, about, group, request.save_every)


def _prepare(plan: TrainPlan, data: str, out: Path, about: dict[str, Any], reporter: Reporter) -> None:
    """Write recipe.json, and warn about images that are in several splits."""
    record = {
        "recipe": plan.recipe.to_dict(),
        "choices": [asdict(choice) for choice in plan.choices],
        "task": plan.start.task,
        "model": plan.model,
        "architecture": plan.start.architecture.to_dict(),
        "preprocess": plan.start.preprocess.to_dict(),
        "data": redacted(str(data)),
        "classes": plan.source.classes,
        **about,
    }
    write_json(out / RECORD, record)
    if shared := shared_files(plan.source):
        rows = [{one: name, other: copy} for (one, other), files in shared.items() for name, copy in files]
        columns = [name for name in SPLIT_ADJECTIVES if any(name in row for row in rows)]
        write_csv(out / "duplicates.csv", columns, [[row.get(name, "") for name in columns] for row in rows])
    for (one, other), files in shared.items():
        reporter.warn(
            f"{counted(len(files), 'duplicate')} of {SPLIT_ADJECTIVES[one]} images in the {SPLIT_ADJECTIVES[other]} "
            f"split, such as {files[0][1]}: the measured accuracy will be too high; {out / 'duplicates.csv'} lists them"
        )


def recorded(out: Path, named: Mapping[str, Any]) -> dict[str, Any]:
    """Read recipe.json of the run in `out`. Raises InputError if it contradicts a setting in `named`."""
    path = out / RECORD
    try:
        record = {"task": "classify", **read_json(path)}
        recipe = Recipe.from_dict(record["recipe"])
        before = {**recipe.to_dict(), "recipe": recipe.name, "model": record["model"], "task": record["task"]}
        Architecture.from_dict(record["architecture"])
        Preprocess.from_dict(record["preprocess"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"no run to resume: {path} cannot be read ({error})") from None
    for key, value in named.items():
        if value is not None and before.get(key) != value:
            raise InputError(
                f"the run in {out} began with {key} {before.get(key)}, not {value}: choose another --out for a new run"
            )
    return record
