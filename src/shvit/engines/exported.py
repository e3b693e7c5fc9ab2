"""The metadata of an exported file, and the digest that reveals damage."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..confidence import UNCALIBRATED, Calibration
from ..data.transforms import Preprocess
from ..errors import Failure, InputError, counted, one_line
from ..header import checked_facts, parsed
from ..model.architecture import DETECTORS
from ..modelfile import ModelFile, check_channels
from ..redact import redacted
from ..tasks import TASKS

VERSION = 2
"""Version of the metadata. Files of version 1 have no digest."""
SEAL = re.compile(rb"shvit-sha256:([0-9a-f]{64})")
UNSEALED = b"shvit-sha256:" + b"0" * 64
"""Placeholder for the digest. The digest is computed from the files with this placeholder, and then replaces it."""
PARTS = ("*.json", "*.safetensors", "*.mlmodel", "*.bin")
"""Name patterns of the files in an exported folder. Other files are ignored, since they do not belong to the export."""


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
            return cls(path, preprocess=preprocess, **runtime, **facts)
        except (KeyError, TypeError) as error:
            raise InputError(f"{path} was not written by shvit export: its metadata lacks {error}") from None
        except ValueError as error:
            raise InputError(f"{path} is not usable: {error}") from None

    def to_json(self) -> str:
        """`to_dict` as JSON text."""
        return json.dumps(self.to_dict())

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


def described(model_file: ModelFile, path: Path, engine: str, precision: str) -> Exported:
    """The metadata of an export of this model."""
    return Exported(
        path,
        engine,
        precision,
        model_file.classes,
        model_file.preprocess,
        model_file.task,
        model_file.metrics,
        {**model_file.provenance, "architecture": model_file.architecture.to_dict()},
        model_file.calibration,
    )


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
        detector = TASKS[exported.task].detector
        width = classes if detector is None else DETECTORS[detector].output_width(classes)
        if width is not None and outputs[-1] not in (width, None):
            raise EngineError(
                f"{exported.path} is not usable: its network returns {_shape(outputs)}, which does not match "
                f"{counted(classes, 'class', 'classes')}"
            )


def _shape(sizes: Sequence[int | None]) -> str:
    return "×".join("any" if size is None else str(size) for size in sizes)


def files_of(path: Path) -> list[Path]:
    """The files that an export consists of."""
    if path.is_dir():
        found = sorted(part for pattern in PARTS for part in path.rglob(pattern) if not part.name.startswith("."))
        if outside := [part for part in found if not part.resolve().is_relative_to(path.resolve())]:
            raise EngineError(f"{path} is refused: its part {outside[0]} lies outside the folder")
        return [part for part in found if part.is_file()]
    weights = path.with_suffix(".bin")
    return [path, weights] if path.suffix == ".xml" and weights.is_file() else [path]


def seal(path: Path) -> None:
    """Replace the placeholder in an export by the digest of the export."""
    files = files_of(path)
    for part in files:
        if (index := part.read_bytes().find(UNSEALED)) >= 0:
            with part.open("r+b") as file:
                file.seek(index)
                file.write(b"shvit-sha256:" + _digest(path, files, UNSEALED).encode())
            return
    raise AssertionError(f"{path} has no placeholder for its digest")


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
