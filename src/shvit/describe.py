"""What a network costs and what a model file holds, as plain data."""

from typing import Any

import torch

from .errors import InputError
from .model.architecture import Architecture, is_network
from .model.cost import cost, stage_costs
from .model.shvit import SHViT
from .pretrained import load_model


def describe(name: str, image_size: int | None = None) -> dict[str, Any]:
    """Costs of a variant, of one of timm's models, or of a model file; of a file also what its header says.

    Args:
        name: `shvit_s1` to `shvit_s4`, `timm/NAME`, `study/NAME`, published weights, or a path.
        image_size: Side of the square images to count for, in pixels; default: the model's own.

    Returns:
        name, image_size, params, macs and activations (of one image), stages (rows of the same; empty for timm's
        models), and for a file: file, with task, classes, preprocess, metrics, provenance.

    Raises:
        InputError: No such model, or a file that is not usable.
    """
    if image_size is not None and image_size < 32:
        raise InputError(f"image_size must be at least 32 pixels, got {image_size}")
    header: dict[str, Any] = {}
    if is_network(name):
        with torch.device("meta"):
            model = Architecture(name).build()
        own_size = model.image_size
    else:
        model_file = load_model(name)
        model, own_size = model_file.model, model_file.preprocess.input_size
        header = {
            "file": {
                "task": model_file.task,
                "classes": list(model_file.classes),
                "preprocess": model_file.preprocess.to_dict(),
                "metrics": dict(model_file.metrics),
                "provenance": dict(model_file.provenance),
            }
        }
    size = image_size or own_size
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
