"""The metadata of an exported file, and the digest that reveals damage."""

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..confidence import UNCALIBRATED, Calibration
from ..data.transforms import Preprocess
from ..errors import Failure, InputError, counted, one_line
from ..header import checked_facts, parsed
from ..model.architecture import DETECTORS
from ..modelfile import ModelFile, check_channels
from ..redact import redacted
from ..tasks import TASKS, detector_of

VERSION = 2
"""Version of the metadata. Files of version 1 have no digest."""
SEAL = re.compile(rb"shvit-sha256:([0-9a-f]{64})")
UNSEALED = b"shvit-sha256:" + b"0" * 64
"""Placeholder for the digest. The digest is computed from the files with this placeholder, and then replaces it."""
IMAGE_INPUT = "image"
"""Name of the input of an end-to-end network: one RGB image, uint8 (height, width, 3)."""
PARTS = {
    ".mlpackage": ("*.json", "*.mlmodel", "*.bin"),
    ".timm": ("*.json", "*.safetensors"),
    ".web": (
        *("index.html", "style.css", "model.json", "model.onnx", "sample.png", "ort/*.mjs", "ort/*.wasm"),
        *("app.js", "camera.js", "check.js", "objects.js", "pixels.js", "sw.js", "worker.js"),
    ),
}
"""Name patterns of the files in an exported folder, by its suffix. Other files are ignored, since they do not belong
to the export."""


class EngineError(InputError):
    """An engine, precision, format or exported file is unknown or cannot be used here."""


class ExportError(Failure):
    """A file could not be written, or its outputs differ from those of the network."""


@contextmanager
def unreadable(path: Path, reason: str, *errors: type[Exception]) -> Iterator[None]:
    """Turn `errors` of the library that reads `path` into a one-line EngineError."""
    try:
        yield
    except EngineError:
        raise
    except errors as error:
        raise EngineError(f"{path} {reason} ({one_line(error, first=True)})") from None


@dataclass(frozen=True)
class ExpectedSample:
    """An image and the expected results, with which any reader of an export can check itself.

    The results are those of the export itself. They are filled in after the export has run: see `Engine.fill_sample`.
    """

    image: str
    """Name of a PNG beside the export. An end-to-end export takes the image as it is; other exports take the pixels as
    the only image of a batch."""
    classes: tuple[int, ...]
    """Indices of the most probable classes, or the class of each object; highest score first."""
    scores: tuple[float, ...] | None = None
    """The score of each of `classes`, from 0 to 1, with six digits. None: not known yet."""
    boxes: tuple[tuple[float, ...], ...] | None = None
    """For each object: left, top, right, bottom in pixels of the image. None for a classifier."""

    def to_dict(self) -> dict[str, Any]:
        """The sample as plain data for JSON. Scores that are not known yet are null."""
        known: dict[str, Any] = json.loads(json.dumps(vars(self)))  # lists, as in files
        return {key: value for key, value in known.items() if key != "boxes" or value is not None}

    @classmethod
    def from_dict(cls, data: Any) -> "ExpectedSample":
        """Inverse of `to_dict`. Raises ValueError if the data is not a sample."""
        try:
            boxes = None if data.get("boxes") is None else tuple(tuple(map(float, box)) for box in data["boxes"])
            scores = None if data["scores"] is None else tuple(map(float, data["scores"]))
            sample = cls(str(data["image"]), tuple(map(int, data["classes"])), scores, boxes)
        except (TypeError, KeyError, ValueError, AttributeError):
            raise ValueError(f"sample must have an image, classes and scores, got {data!r:.60}") from None
        if scores is not None and len(sample.classes) != len(scores):
            raise ValueError("sample must have as many classes as scores")
        return sample

    @property
    def scores_text(self) -> bytes:
        """The scores as JSON of a fixed length; zeros if they are not known yet."""
        return f"[{', '.join(f'{score:.6f}' for score in self.scores or [0.0] * len(self.classes))}]".encode()


@dataclass(frozen=True)
class Exported:
    """A model in a runtime's format. It has the metadata of a `ModelFile`. The network stays in the file."""

    path: Path
    engine: str
    """A key of `FORMATS`."""
    precision: str
    classes: tuple[str, ...]
    preprocess: Preprocess
    task: str = "classify"
    metrics: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    calibration: Calibration = UNCALIBRATED
    """As in `ModelFile`. Its temperature is 1 if the network already divides its logits by the temperature."""
    end_to_end: bool = False
    """Whether the network takes one image of any size, and returns the results of the task (`Task.results_graph`)."""
    sample: ExpectedSample | None = None
    """An image with expected results; None in files of older versions."""
    sealed: bool = True
    """Whether the file must contain its digest: true since version 2 of the metadata."""

    def to_dict(self) -> dict[str, Any]:
        """Everything except the path, as plain data to be written into the file's metadata."""
        return {
            "version": VERSION,
            "digest": UNSEALED.decode(),
            "engine": self.engine,
            "precision": self.precision,
            "classes": list(self.classes),
            "preprocess": self.preprocess.to_dict(),
            "task": self.task,
            "end_to_end": self.end_to_end,
            **({} if self.sample is None else {"sample": self.sample.to_dict()}),
            "metrics": dict(self.metrics),
            "provenance": redacted(dict(self.provenance)),
            **({} if self.calibration == UNCALIBRATED else {"calibration": self.calibration.to_dict()}),
        }

    @classmethod
    def from_dict(cls, path: Path, data: Mapping[str, Any]) -> "Exported":
        """Inverse of `to_dict`. Raises InputError for an unknown version, and for missing or invalid entries."""
        try:
            if type(data["version"]) is not int or not 1 <= data["version"] <= VERSION:
                raise ValueError(f"its metadata has version {data['version']}, but this shvit reads up to {VERSION}")
            facts, preprocess = checked_facts(data), Preprocess.from_dict(data["preprocess"])
            check_channels(preprocess, 3)
            runtime = {"engine": data["engine"], "precision": data["precision"], "sealed": data["version"] > 1}
            if type(whole := data.get("end_to_end", False)) is not bool:
                raise ValueError(f"end_to_end must be true or false, got {whole!r:.60}")
            runtime["sample"] = ExpectedSample.from_dict(data["sample"]) if "sample" in data else None
            return cls(path, preprocess=preprocess, end_to_end=whole, **runtime, **facts)
        except (KeyError, TypeError) as error:
            raise InputError(f"{path} was not written by shvit export: its metadata lacks {error}") from None
        except ValueError as error:
            raise InputError(f"{path} is not usable: {error}") from None

    def to_json(self) -> str:
        """`to_dict` as JSON text."""
        text = json.dumps(self.to_dict())
        if self.sample is not None and self.sample.scores is None:
            return text.replace('"scores": null', f'"scores": {self.sample.scores_text.decode()}')
        return text

    @classmethod
    def from_json(cls, path: Path, text: str | bytes | None) -> "Exported":
        """Inverse of `to_json`. Raises InputError for None (a file without metadata), and for invalid metadata."""
        if text is None:
            raise EngineError(f"{path} was not written by shvit export")
        try:
            data = parsed(text)
        except (ValueError, TypeError) as error:
            raise InputError(f"{path} was not written by shvit export: its metadata is not JSON ({error})") from None
        return cls.from_dict(path, data)


def described(
    model_file: ModelFile,
    path: Path,
    engine: str,
    precision: str,
    end_to_end: bool = False,
    sample: ExpectedSample | None = None,
) -> Exported:
    """The metadata of an export of this model."""
    return Exported(
        path,
        engine,
        precision,
        model_file.classes,
        model_file.preprocess,
        model_file.task,
        model_file.metrics,
        {
            "weights": weights_digest(model_file),
            **model_file.provenance,
            "architecture": model_file.architecture.to_dict(),
        },
        model_file.calibration,
        end_to_end,
        sample,
    )


def weights_digest(model_file: ModelFile) -> str:
    """SHA-256 of the weights of a model, to recognize exports of the same model."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model_file.model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def check_interface(exported: Exported, inputs: Sequence[int | None], outputs: Sequence[int | None]) -> None:
    """Compare a network's image and output shapes with its metadata. In the shapes, None stands for any size.

    Raises:
        EngineError: The shapes do not match the metadata.
    """
    side, classes = exported.preprocess.input_size, len(exported.classes)
    if len(inputs) != 4 or inputs[1] not in (3, None) or any(size not in (side, None) for size in inputs[2:]):
        raise EngineError(
            f"{exported.path} is not usable: its network takes {_shape(inputs)}, but its metadata says images of "
            f"{side} pixels"
        )
    if outputs and exported.task in TASKS:
        detector = detector_of(exported)
        width = classes if detector is None else DETECTORS[detector].output_width(classes)
        if width is not None and outputs[-1] not in (width, None):
            raise EngineError(
                f"{exported.path} is not usable: its network returns {_shape(outputs)}, which does not match "
                f"{counted(classes, 'class', 'classes')}"
            )


def check_end_to_end(exported: Exported, inputs: Mapping[str, Sequence[int | None]], outputs: Collection[str]) -> None:
    """Compare the names and shapes of an end-to-end network's inputs and outputs with its metadata.

    Raises:
        EngineError: They do not match.
    """
    expected, names = (
        {IMAGE_INPUT: [None, None, 3]},
        TASKS[exported.task].result_names if exported.task in TASKS else (),
    )
    if {name: list(shape) for name, shape in inputs.items()} != expected or list(outputs) != list(names):
        raise EngineError(
            f"{exported.path} is not usable: it is marked as end to end, but does not take one image and return "
            f"{', '.join(names)}"
        )


def _shape(sizes: Sequence[int | None]) -> str:
    return "×".join("any" if size is None else str(size) for size in sizes)


def files_of(path: Path) -> list[Path]:
    """The files that an export consists of."""
    if path.is_dir():
        named = [part for pattern in PARTS.get(path.suffix, ()) for part in path.rglob(pattern)]
        found = sorted(part for part in named if not part.name.startswith("."))
        if outside := [part for part in found if not part.resolve().is_relative_to(path.resolve())]:
            raise EngineError(f"{path} is refused: its part {outside[0]} lies outside the folder")
        return [part for part in found if part.is_file()]
    weights = path.with_suffix(".bin")
    return [path, weights] if path.suffix == ".xml" and weights.is_file() else [path]


def seal(path: Path) -> None:
    """Write the digest of an export into each file that holds the digest or its placeholder."""
    files = files_of(path)
    found = {part: match[0] for part in files if (match := SEAL.search(part.read_bytes()))}
    assert found, f"{path} has no placeholder for its digest"
    [mark] = set(found.values())
    sealed = b"shvit-sha256:" + _digest(path, files, mark).encode()
    for part in found:
        overwrite(part, mark, sealed)


def overwrite(path: Path, old: bytes, new: bytes) -> bool:
    """Overwrite the first occurrence of some bytes in a file by as many others. Returns whether they occur."""
    assert len(old) == len(new), (old, new)
    if (index := path.read_bytes().find(old)) < 0:
        return False
    with path.open("r+b") as file:
        file.seek(index)
        file.write(new)
    return True


def check_seal(path: Path) -> bool:
    """Return whether an export contains a digest. Raises EngineError if the digest does not match the files."""
    files = files_of(path)
    found = {bytes(match[0]) for part in files for match in SEAL.finditer(part.read_bytes())}
    if not found:
        return False
    mark = min(found)
    if len(found) > 1 or _digest(path, files, mark) != mark.rpartition(b":")[2].decode():
        which = " and ".join(part.name for part in files[:2])
        raise EngineError(
            f"{path} is damaged: {which} changed since shvit export wrote the file, or came from a different export"
        )
    return True


def _digest(path: Path, files: Sequence[Path], mark: bytes) -> str:
    """SHA-256 of the files' names and contents, with `mark` replaced by `UNSEALED`."""
    digest = hashlib.sha256()
    for part in files:
        content = part.read_bytes().replace(mark, UNSEALED)
        name = part.relative_to(path) if path.is_dir() else part.suffix
        digest.update(f"{name} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()
