"""The costs of a model and the contents of a model file or exported file, as plain data."""

from dataclasses import asdict
from typing import Any

from ..data.identity import in_short
from ..engines import Exported, Runnable
from ..errors import InputError, check_at_least, counted
from ..model.architecture import Architecture, Model, is_network
from ..model.cost import cost, stage_costs
from ..model.shvit import SHViT
from ..modelfile import empty
from ..pretrained import load


def describe(name: str, image_size: int | None = None) -> dict[str, Any]:
    """The costs of a model and, for a file, the contents of its header.

    Args:
        name: `shvit_s1` to `shvit_s4`, `timm/NAME`, `study/NAME`, published weights, or the path of a model file or
            exported file.
        image_size: Height and width of the images in pixels. Default: the model's own size.

    Returns:
        A dictionary with name, image_size, params, macs and activations (of the model before `fuse`, for one image) and
        stages (the costs of each stage; empty for timm models and detectors). For a file, the dictionary also has
        `file`: task, classes, preprocess, metrics, provenance, calibration and, if exported, engine,
        precision, end_to_end and sample.
        Costs are None if an exported file does not name its architecture. For an exported Mask R-CNN, macs and
        activations are None, because they depend on the image.

    Raises:
        InputError: The model does not exist, or its file is not usable.
    """
    check_at_least(32, image_size=image_size)
    if is_network(name):
        model, header = empty(Architecture(name)), {}
        size = image_size or model.image_size
    else:
        runnable = load(name)
        model, header = _network(runnable), {"file": _header(runnable)}
        size = image_size or runnable.preprocess.input_size
    if model is None:
        costs: dict[str, Any] = {"name": name, "image_size": size, "params": None, "macs": None, "activations": None}
        return {**costs, "stages": [], **header}
    countable = "file" not in header or "engine" not in header["file"] or model.any_batch
    total = cost(model, (size, size)) if countable else None
    rows = stage_costs(model, (size, size)) if isinstance(model, SHViT) else []
    return {
        "name": model.architecture.name,
        "image_size": size,
        "params": sum(parameter.numel() for parameter in model.parameters()),
        "macs": total and total.macs,
        "activations": total and total.activations,
        "stages": [asdict(row) for row in rows],
        **header,
    }


def _network(runnable: Runnable) -> Model | None:
    """The network of a model file or, without weights, of an exported file. None if its architecture is unknown."""
    if not isinstance(runnable, Exported):
        return runnable.model
    described = runnable.provenance.get("architecture")
    if not described:
        return None
    try:
        architecture = Architecture.from_dict(described)
        if architecture.num_classes != len(runnable.classes):
            classes = counted(architecture.num_classes, "class", "classes")
            raise InputError(f"it has {classes}, but the file has {len(runnable.classes)} class names")
        return empty(architecture)
    except (InputError, RuntimeError) as error:
        raise InputError(f"{runnable.path} has an invalid architecture: {error}") from None


def _header(runnable: Runnable) -> dict[str, Any]:
    exported: dict[str, Any] = {}
    if isinstance(runnable, Exported):
        sample = None if runnable.sample is None else runnable.sample.to_dict()
        exported = {"engine": runnable.engine, "precision": runnable.precision}
        exported |= {"end_to_end": runnable.end_to_end, "sample": sample}
    return {
        **exported,
        "task": runnable.task,
        "classes": list(runnable.classes),
        "preprocess": runnable.preprocess.to_dict(),
        "metrics": dict(runnable.metrics),
        "provenance": in_short(runnable.provenance),
        "calibration": runnable.calibration.to_dict(),
    }
