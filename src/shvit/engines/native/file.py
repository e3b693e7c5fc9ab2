"""The file of an int8 network: a `.native` file is a safetensors file with the numbers of each layer.

It does not describe the layers. They follow from the architecture in the file, and all numbers must fit them.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ...errors import InputError
from ...files import in_utf8
from ...header import parsed
from ...model.architecture import Architecture
from ...model.fuse import fold
from ...modelfile import HEADER_KEY, empty
from ..exported import Exported, unreadable
from .layers import FloatLayers, kernels_refuse
from .quantization import ARRAYS, IntegerLayer, IntegerNetwork, empty_network

_ARCHITECTURE = "architecture"
_BORDER = "border"
_NUMBERS = "zero", "in_step", "out_scale", "residual_scale", "epsilon"


def write_native(network: IntegerNetwork, architecture: Architecture, facts: Exported, path: Path) -> None:
    """Write the file."""
    tensors: dict[str, np.ndarray] = {_BORDER: np.array(network.border, np.uint8)}
    for index, layer in enumerate(network.layers):
        tensors |= {f"{index}.{name}": getattr(layer, name) for name in ARRAYS}
        tensors[f"{index}.numbers"] = np.array([getattr(layer, name) for name in _NUMBERS], np.float64)
    metadata = {HEADER_KEY: facts.to_json(), _ARCHITECTURE: json.dumps(architecture.to_dict())}
    path.write_bytes(save(tensors, metadata))


def native_facts(path: Path) -> Exported:
    """The metadata of a file. Raises EngineError if it is not a `.native` file of shvit."""
    return Exported.from_json(path, _open(path)[0].get(HEADER_KEY))


def read_native(path: Path) -> IntegerNetwork:
    """The network of a file. Raises EngineError if its numbers do not fit its architecture."""
    metadata, tensors = _open(path)
    with unreadable(path, "is not a usable native file", InputError, ValueError, KeyError, TypeError):
        architecture = Architecture.from_dict(parsed(metadata[_ARCHITECTURE]))
        network = empty(architecture)
        if reason := kernels_refuse(network):
            raise ValueError(reason)
        with torch.device("meta"):
            expected = empty_network(FloatLayers(fold(network.eval()), torch.zeros(3)))
        layers = tuple(_filled(layer, index, tensors) for index, layer in enumerate(expected.layers))
        border = _checked(tensors, _BORDER, np.zeros(3, np.uint8))
        unknown = (
            set(tensors) - {_BORDER} - {f"{i}.{name}" for i in range(len(layers)) for name in (*ARRAYS, "numbers")}
        )
        if unknown:
            raise ValueError(f"it has unknown tensors: {', '.join(sorted(unknown)[:3])}")
        return replace(expected, layers=layers, border=tuple(map(int, border)))


def _open(path: Path) -> tuple[Mapping[str, str], dict[str, np.ndarray]]:
    problem = unreadable(path, "is not a usable native file", SafetensorError, OSError, ValueError)
    with problem, in_utf8(path) as name, safe_open(name, "np") as file:
        return file.metadata() or {}, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def _filled(layer: IntegerLayer, index: int, tensors: Mapping[str, np.ndarray]) -> IntegerLayer:
    """The layer with the numbers of a file."""
    arrays = {name: _checked(tensors, f"{index}.{name}", getattr(layer, name)) for name in ARRAYS}
    numbers = _checked(tensors, f"{index}.numbers", np.zeros(len(_NUMBERS)))
    zero, *others = numbers.tolist()
    if zero != int(zero) or not 0 <= zero <= 255:
        raise ValueError(f"layer {index} has a zero point of {zero}")
    return replace(layer, **arrays, zero=int(zero), **dict(zip(_NUMBERS[1:], others, strict=True)))


def _checked(tensors: Mapping[str, np.ndarray], name: str, like: np.ndarray) -> Any:
    """A tensor that must have this type and shape, and no infinite values."""
    found = tensors[name]
    if found.dtype != like.dtype or found.shape != like.shape:
        raise ValueError(f"{name} is {found.dtype} {found.shape}, expected {like.dtype} {like.shape}")
    if not np.isfinite(found).all():
        raise ValueError(f"{name} has values that are not finite")
    return np.ascontiguousarray(found)
