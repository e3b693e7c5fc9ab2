"""The model file: weights in safetensors, and a header with everything needed to use them. Never uses pickle."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor

from .confidence import UNCALIBRATED, Calibration
from .data.transforms import Preprocess
from .errors import InputError, counted, one_line
from .files import in_utf8, replacing
from .header import checked_facts, parsed
from .model.architecture import Architecture, Model
from .redact import redacted

FORMAT_VERSION = 1
HEADER_KEY = "shvit"


class ModelFileError(InputError):
    """The file is not a usable model file. The message gives the file and the reason in one line."""


@dataclass(frozen=True)
class ModelFile:
    """A network and everything needed to use it.

    Raises:
        InputError: The network was not built by `create_model` or has no classes. Or `classes` has a wrong length.
    """

    model: Model
    classes: tuple[str, ...]
    """Class names, in the order of the outputs."""
    preprocess: Preprocess = field(default_factory=Preprocess)
    task: str = "classify"
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """Metrics of these weights, such as {"top1": 0.93}."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """How the weights were made: recipe, data fingerprint, versions, commit."""
    calibration: Calibration = UNCALIBRATED
    """Turns the logits of a classifier into probabilities: softmax(logits / calibration.temperature)."""

    def __post_init__(self) -> None:
        if self.model.architecture is None:
            raise InputError("the network was built by hand or pruned: build it with shvit.create_model")
        count = self.model.architecture.num_classes
        if not count:
            raise InputError("the network has no classifier (num_classes=0), but a model file needs at least one class")
        if len(self.classes) != count:
            raise InputError(
                f"{counted(len(self.classes), 'class name')} for a network with {counted(count, 'class', 'classes')}"
            )
        if self.model.architecture.detector and self.calibration != UNCALIBRATED:
            raise InputError("only classifiers can have a calibration, but the network is a detector")

    @property
    def architecture(self) -> Architecture:
        """The description of the network."""
        return self.model.architecture


def save(model_file: ModelFile, path: str | Path) -> None:
    """Write a model file. An existing file is replaced only after the new file is complete.

    Raises:
        InputError: The network's weights do not fit its architecture, for example after `fuse`.
    """
    path = Path(path)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model_file.model.state_dict().items()}
    if set(weights) != set(empty(model_file.architecture).state_dict()):
        raise InputError("the network was changed after it was built (for example fused): save the original")
    header = {
        "version": FORMAT_VERSION,
        "task": model_file.task,
        "architecture": model_file.architecture.to_dict(),
        "classes": list(model_file.classes),
        "preprocess": model_file.preprocess.to_dict(),
        "metrics": dict(model_file.metrics),
        "provenance": redacted(dict(model_file.provenance)),
    }
    if model_file.calibration != UNCALIBRATED:
        header["calibration"] = model_file.calibration.to_dict()
    header["digest"] = _digest(header, weights)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_bytes(to_safetensors(weights, {HEADER_KEY: json.dumps(header)}))


def load(path: str | Path) -> ModelFile:
    """Read a model file. The network is on the CPU, in evaluation mode.

    Raises:
        ModelFileError: The file is missing, truncated, inconsistent, or changed after it was written. Or its format or
            version is not supported.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelFileError(f"{path}: no such file")
    try:
        with in_utf8(path) as name, safe_open(name, "pt") as file:
            metadata = file.metadata() or {}
            # cloned to be aligned: on some processors, the last bits of outputs depend on the alignment
            weights = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelFileError(f"{path} is truncated or not a safetensors file ({error})") from None
    if HEADER_KEY not in metadata:
        raise ModelFileError(
            f"{path} has no shvit header, so shvit did not write it: convert weights from timm or the authors with "
            "shvit.pretrained.from_timm or from_official"
        )
    try:
        return _read(parsed(metadata[HEADER_KEY]), weights)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, ArithmeticError, MemoryError) as error:
        reason = one_line(error)
        raise ModelFileError(f"{path} is not usable: {reason}") from None


def _read(header: dict[str, Any], weights: dict[str, Tensor]) -> ModelFile:
    version = header.get("version") if isinstance(header, dict) else None
    if type(version) is not int or version != FORMAT_VERSION:
        raise ValueError(f"its format version is {version}, but this shvit reads only version {FORMAT_VERSION}")
    missing = {"task", "architecture", "classes", "preprocess", "metrics", "provenance", "digest"} - set(header)
    if missing:
        raise ValueError(f"its header lacks {', '.join(sorted(missing))}")
    architecture = Architecture.from_dict(header["architecture"])
    facts, preprocess = checked_facts(header), Preprocess.from_dict(header["preprocess"])
    check_channels(preprocess, architecture.in_channels)
    model = empty(architecture)
    _check_weights(model, weights)
    if architecture.config is None:  # timm's models have buffers that are not in the file
        model = architecture.build()
    model_file = ModelFile(model, preprocess=preprocess, **facts)
    if _digest({key: value for key, value in header.items() if key != "digest"}, weights) != header["digest"]:
        raise ValueError("its header or weights were changed after it was written (the digest differs)")
    model.load_state_dict(weights, assign=True)
    model.eval()
    return model_file


def check_channels(preprocess: Preprocess, channels: int) -> None:
    """Raises ValueError if the preprocessing is not for this number of channels."""
    if len(preprocess.mean) not in (1, 3, channels):
        given = f"got {preprocess.mean} and {preprocess.std}"
        raise ValueError(f"mean and std must be for {counted(channels, 'channel')}, {given}")


def _check_weights(model: Model, weights: dict[str, Tensor]) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    for name in sorted(set(expected) | set(found)):
        if expected.get(name) != found.get(name):
            raise ValueError(
                f"its weights do not fit {model.architecture.name}, num_classes={model.architecture.num_classes}: "
                f"{name} is {found.get(name, 'absent')}, expected {expected.get(name, 'absent')}"
            )


def empty(architecture: Architecture) -> Model:
    """The network on the meta device, without memory for its weights."""
    with torch.device("meta"):
        return architecture.build()


def digest_of(model_file: ModelFile) -> str:
    """A digest of the weights."""
    return _digest({}, {name: tensor.detach().cpu() for name, tensor in model_file.model.state_dict().items()})


def _digest(header: dict[str, Any], weights: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(weights):
        tensor = weights[name]
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def beside_model(model: str, suffix: str, precision: str | None) -> Path:
    """A path next to the model file, or in the current folder for published weights."""
    path = Path(model)
    stem = path.with_suffix("") if path.suffix == ".safetensors" else Path(path.name)
    return stem.with_name("".join([stem.name, f"_{precision}" if precision else "", suffix]))
