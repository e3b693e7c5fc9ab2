"""The starting point of training: the network with its weights and head, and the task."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from ..data.coco import CocoDataset
from ..data.dataset import Dataset, DrawnBy
from ..data.letterbox import check_fit
from ..data.loader import seeded
from ..data.transforms import COARSEST
from ..engines.torch import DTYPES
from ..errors import InputError
from ..model.architecture import TIMM_PREFIX, Architecture
from ..model.cost import cost
from ..modelfile import ModelFile, digest_of
from ..pretrained import (
    PUBLISHED_TOP1,
    create_model,
    default_preprocess,
    load_model,
    onto_detector,
    transfer,
    zero_head,
)
from ..tasks import kind_of, need_classifier, with_head
from ..tasks.base import Task
from .distill import Distill, LogitsCache, Teacher
from .precision import pick_precision
from .recipe import Recipe


def is_trained(model: str) -> bool:
    """Whether `model` names trained weights: a model file or published weights."""
    return model in PUBLISHED_TOP1 or Path(model).suffix == ".safetensors" or Path(model).is_file()


def variant_of(model: str) -> str:
    """The name of the model's architecture, without the prefix timm/ and without the tag of published weights."""
    name = load_model(model).architecture.name if Path(model).is_file() else model
    return name.removeprefix(TIMM_PREFIX).partition(".")[0]


def starting_point(model: str, source: Dataset | CocoDataset, recipe: Recipe, task: str = "classify") -> ModelFile:
    """The network to train: random weights, or trained weights with a head for the dataset's classes.

    With a teacher, SHViT networks get a second head.
    """
    with seeded(recipe.seed):
        if kind_of(task).detector is None:
            return _classifier(task, model, source, recipe)
        return _detector(task, model, source, recipe)


def _detector(task: str, model: str, source: Dataset | CocoDataset, recipe: Recipe) -> ModelFile:
    """A detector with random weights, or with the weights of a classifier or a detector."""
    count, kind, provenance = len(source.classes), with_head(task, recipe.head).detector, {}
    if is_trained(model):
        trained = load_model(model)
        before = trained.architecture
        if before.detector == kind and before.layout != recipe.layout:
            raise InputError(
                f"{model} is a detector of layout {before.layout}, but recipe {recipe.name} has {recipe.layout}: add "
                f"--layout {before.layout}"
            )
        architecture = replace(before, num_classes=count, detector=kind, distilled=False, layout=recipe.layout)
        network = onto_detector(trained.model, architecture, fresh_head=trained.classes != source.classes)
        known, provenance = trained.preprocess, trained.provenance
    elif recipe.frozen_norms != "none":
        raise InputError(
            f"frozen_norms {recipe.frozen_norms} needs trained BatchNorms, but {model} has none: --model must be a "
            "model file or published weights"
        )
    else:
        network = Architecture(model, count, detector=kind, layout=recipe.layout).build()
        known = default_preprocess(network)
    size, fit = recipe.image_size or known.image_size, "shorter" if recipe.shorter_side else "whole"
    preprocess = replace(known, image_size=size, crop=1.0, interpolation="bilinear", fit=fit)
    check_fit(preprocess)
    cost(network, (COARSEST, COARSEST))  # raises InputError if the size is unsupported
    return ModelFile(network, source.classes, preprocess, task, provenance=provenance)


def _classifier(task: str, model: str, source: Dataset | CocoDataset, recipe: Recipe) -> ModelFile:
    count, provenance = len(source.classes), {}
    if is_trained(model):
        trained = load_model(model)
        if not kind_of(trained).labels_images:
            raise InputError(f"{model} is a model for task {trained.task}: classifiers must start from a classifier")
        distilled = recipe.teacher is not None and trained.architecture.config is not None
        architecture = replace(trained.architecture, num_classes=count, distilled=distilled)
        network = transfer(trained.model, architecture, fresh_head=trained.classes != source.classes)
        if trained.classes != source.classes:
            zero_head(network)
        size = recipe.image_size or trained.preprocess.image_size
        preprocess, provenance = replace(trained.preprocess, image_size=size), trained.provenance
    else:
        network = create_model(model, count, distilled=recipe.teacher is not None and not model.startswith(TIMM_PREFIX))
        preprocess = default_preprocess(network, recipe.image_size)
    preprocess = replace(preprocess, fit=recipe.fit or preprocess.fit)
    cost(network, (preprocess.image_size, preprocess.image_size))  # raises InputError if the size is unsupported
    return ModelFile(network, source.classes, preprocess, task, provenance=provenance)


def make_task(
    start: ModelFile,
    source: Dataset | CocoDataset,
    recipe: Recipe,
    device: str,
    drawn_by: DrawnBy = "hash",
    teacher_cache: Path | None = None,
) -> Task:
    """The task to train. If the recipe has a teacher, the task distills from it.

    Raises:
        InputError: The teacher cannot teach the student.
    """
    task: Any = kind_of(start).from_recipe(source.classes, recipe, device)
    if recipe.teacher is None:
        return task
    trained, dtype = load_model(recipe.teacher), DTYPES[pick_precision(recipe, device)]
    need_classifier(trained, "distillation")
    cache = None
    if teacher_cache is not None:
        about = {
            "teacher": digest_of(trained),
            "precision": str(dtype),
            "data": source.fingerprint,
            "classes": source.classes,
            **({"drawn_by": "content"} if source.drawn and drawn_by != "position" else {}),
        }
        cache = LogitsCache(teacher_cache, recipe, start.preprocess, about, len(source.train))
    teacher = Teacher(trained, source.classes, start.preprocess, device, dtype, cache)
    return Distill(task, teacher, recipe.distillation, recipe.distillation_share, recipe.temperature)
