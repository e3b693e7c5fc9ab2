"""What a network costs and what a model file, or an exported one, holds, as plain data."""

from typing import Any

from ..data.identity import in_short
from ..engines import Exported, Runnable
from ..errors import InputError
from ..model.architecture import Architecture, Model, is_network
from ..model.cost import cost, stage_costs
from ..model.shvit import SHViT
from ..modelfile import empty
from ..pretrained import load


def describe(name: str, image_size: int | None = None) -> dict[str, Any]:
    """Costs of a variant, of one of timm's models, or of a file's network; of a file also what its header says.

    Args:
        name: `shvit_s1` to `shvit_s4`, `timm/NAME`, `study/NAME`, published weights, or the path of a model file or an
            exported one.
        image_size: Side of the square images to count for, in pixels; default: the model's own.

    Returns:
        name, image_size, params, macs and activations (of one image through the network as it was trained), stages
        (rows of the same; empty for timm's models and detectors), and for a file: file, with task, classes, preprocess,
        metrics, provenance and, for an exported one, engine and precision. Costs are None for an exported file that
        does not name its network.

    Raises:
        InputError: No such model, or a file that is not usable.
    """
    if image_size is not None and image_size < 32:
        raise InputError(f"image_size must be at least 32 pixels, got {image_size}")
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
    total = cost(model, (size, size))
    rows = stage_costs(model, (size, size)) if isinstance(model, SHViT) else []
    return {
        "name": model.architecture.name,
        "image_size": size,
        "params": total.params,
        "macs": total.macs,
        "activations": total.activations,
        "stages": [row.to_dict() for row in rows],
        **header,
    }


def _network(runnable: Runnable) -> Model | None:
    """A model file's network; one of the same build for an exported file, whose own is in another format."""
    if not isinstance(runnable, Exported):
        return runnable.model
    described = runnable.provenance.get("architecture")
    if not described:
        return None
    try:
        architecture = Architecture.from_dict(described)
        if architecture.num_classes != len(runnable.classes):
            raise InputError(f"it is of {architecture.num_classes} classes, and {len(runnable.classes)} are named")
        return empty(architecture)
    except (InputError, RuntimeError) as error:
        raise InputError(f"{runnable.path} names no possible network: {error}") from None


def _header(runnable: Runnable) -> dict[str, Any]:
    exported = {"engine": runnable.engine, "precision": runnable.precision} if isinstance(runnable, Exported) else {}
    return {
        **exported,
        "task": runnable.task,
        "classes": list(runnable.classes),
        "preprocess": runnable.preprocess.to_dict(),
        "metrics": dict(runnable.metrics),
        "provenance": in_short(runnable.provenance),
    }
