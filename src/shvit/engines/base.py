"""What every engine is: a callable from uint8 images to the task's raw outputs; and, for most, a file format."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ..data.transforms import Preprocess
from ..errors import Failure, InputError
from ..header import checked_classes, checked_metrics, checked_provenance, checked_task, parsed
from ..model.detector import Detector
from ..modelfile import ModelFile, check_channels
from ..redact import redacted

STATIC_SHAPES = 6
"""Input shapes for which an engine readies the network alone; all others share one that is slower."""


VERSION = 2
"""Of an export's metadata. Files of version 1 hold no digest of themselves."""
SEAL = re.compile(rb"shvit-sha256:([0-9a-f]{64})")
UNSEALED = b"shvit-sha256:" + b"0" * 64
"""Where a file is to hold its digest, which is that of the file with this in its place."""
PARTS = ("*.json", "*.safetensors", "*.mlmodel", "*.bin")
"""Of an export that is a folder; what a system or a user adds to it does not count."""

OUTPUTS = {"classify": "logits", "detect": "objects", "segment": "objects"}
"""What a task's raw outputs are called in files."""


class EngineError(InputError):
    """An engine, precision or format that does not exist or cannot run here; the message says what can."""


class TooLarge(Exception):
    """A part of the network has no kernel that the device can hold; the message says which."""


class ExportError(Failure):
    """A file could not be written, or does not compute what the network does."""


@dataclass(frozen=True)
class Exported:
    """A model in the format of some runtime: what a `ModelFile` says, but the network lies in the file."""

    path: Path
    engine: str
    """That runs it: a key of `ENGINES`."""
    precision: str
    classes: tuple[str, ...]
    preprocess: Preprocess
    task: str = "classify"
    metrics: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    sealed: bool = True
    """Whether the file must hold its own digest. Required since metadata version 2."""

    def to_dict(self) -> dict[str, Any]:
        """Everything but the path, as plain data: what is written into the format's own metadata."""
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
        }

    @classmethod
    def from_dict(cls, path: Path, data: Mapping[str, Any]) -> "Exported":
        """Inverse of `to_dict`. Raises InputError where an entry is missing, of another version or impossible."""
        try:
            if type(data["version"]) is not int or not 1 <= data["version"] <= VERSION:
                raise InputError(f"{path} has metadata of version {data['version']}, this shvit reads up to {VERSION}")
            classes, preprocess = checked_classes(data["classes"]), Preprocess.from_dict(data["preprocess"])
            check_channels(preprocess, 3)
            return cls(
                path,
                data["engine"],
                data["precision"],
                classes,
                preprocess,
                checked_task(data["task"]),
                checked_metrics(data["metrics"]),
                checked_provenance(data["provenance"], len(classes)),
                sealed=data["version"] > 1,
            )
        except (KeyError, TypeError) as error:
            raise InputError(f"{path} was not written by shvit export: its metadata lacks {error}") from None
        except InputError as error:
            raise error if str(path) in str(error) else InputError(f"{path} is not usable: {error}") from None
        except ValueError as error:
            raise InputError(f"{path} is not usable: {error}") from None

    def to_json(self) -> str:
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, path: Path, text: str | bytes) -> "Exported":
        """Inverse of `to_json`. Raises InputError where shvit did not write the text."""
        try:
            data = parsed(text)
        except (ValueError, TypeError) as error:
            raise InputError(f"{path} was not written by shvit export: its metadata is no JSON ({error})") from None
        return cls.from_dict(path, data)


@dataclass(frozen=True)
class Shapes:
    """Which sizes of input an exported network takes, beside the model's own."""

    batch: int | None = None
    """None: any number of images."""
    dynamic_size: bool = False
    """Any height and width, from the least that the format can express: 65 pixels at most."""


Runnable = ModelFile | Exported


class Engine(Protocol):
    """Runs one network. Preprocessing beyond resize-and-crop is inside: images come as they were decoded.

    Several threads may call an engine at once, while others make, call and delete engines with other numbers of CPU
    threads. Each call uses as many as its engine was made with, and leaves the settings of the process as they were.
    """

    name: ClassVar[str]
    suffix: ClassVar[str]
    """Of the files of its format, such as `.onnx`. An engine without a format has no `exports`."""
    extra: ClassVar[str | None]
    """What `pip install 'shvit[EXTRA]'` must bring; None where the core suffices."""
    concurrent: ClassVar[bool]
    """Whether calls from several threads run at the same time. Otherwise they wait for each other."""
    precision: str

    def __init__(self, model: Runnable, precision: str, device: str, threads: int | None = None) -> None:
        """An engine whose `precisions` name int8 also takes `calibration`, as `export` does."""

    @classmethod
    def absent(cls) -> str | None:
        """Which libraries are missing and how to get them; None where all are there."""
        ...

    @classmethod
    def unavailable(cls, device: str) -> str | None:
        """Why it cannot run on this device, in a few words; None where it can."""
        ...

    @classmethod
    def precisions(cls, device: str) -> tuple[str, ...]:
        """The precisions it has on this device, the first being what `auto` takes."""
        ...

    @classmethod
    def exports(cls) -> tuple[str, ...]:
        """The precisions its format can be written in, the default first."""
        ...

    @classmethod
    def export(
        cls, model_file: ModelFile, path: Path, precision: str, shapes: Shapes, calibration: Sequence[Tensor]
    ) -> None:
        """Write the format's file, metadata inside.

        `calibration` holds batches of uint8 images (b, 3, h, w); empty where the precision needs none.
        """
        ...

    @classmethod
    def read(cls, path: Path) -> Exported:
        """The metadata of such a file. Raises InputError where shvit did not write it."""
        ...

    def __call__(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        """fp32 outputs, on the device where the images are."""
        ...


def files_of(path: Path) -> list[Path]:
    """The files that an export consists of."""
    if path.is_dir():
        found = sorted(part for pattern in PARTS for part in path.rglob(pattern) if not part.name.startswith("."))
        if outside := [part for part in found if not part.resolve().is_relative_to(path.resolve())]:
            raise EngineError(f"{path} is refused: its part {outside[0]} lies elsewhere")
        return [part for part in found if part.is_file()]
    weights = path.with_suffix(".bin")
    return [path, weights] if path.suffix == ".xml" and weights.is_file() else [path]


def seal(path: Path) -> None:
    """Writes the digest of an export into the place that its metadata leaves for it."""
    files = files_of(path)
    for part in files:
        if (place := part.read_bytes().find(UNSEALED)) >= 0:
            with part.open("r+b") as file:
                file.seek(place)
                file.write(b"shvit-sha256:" + _digest(path, files, UNSEALED).encode())
            return
    raise AssertionError(f"{path} leaves no place for its digest")


def check_seal(path: Path) -> bool:
    """Whether an export holds its digest. Raises EngineError where it is not that of the files."""
    files = files_of(path)
    found = {bytes(match[0]) for part in files for match in SEAL.finditer(part.read_bytes())}
    if not found:
        return False
    mark = min(found)
    if len(found) > 1 or _digest(path, files, mark) != mark.rpartition(b":")[2].decode():
        which = " and ".join(part.name for part in files[:2])
        raise EngineError(
            f"{path} is damaged: {which} changed since shvit export wrote it, or belong to another export"
        )
    return True


def _digest(path: Path, files: Sequence[Path], mark: bytes) -> str:
    """Of the files' names and contents, with `UNSEALED` for the mark."""
    digest = hashlib.sha256()
    for part in files:
        content = part.read_bytes().replace(mark, UNSEALED)
        name = part.relative_to(path) if path.is_dir() else part.suffix
        digest.update(f"{name} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def check_ends(exported: Exported, takes: Sequence[int | None], gives: Sequence[int | None]) -> None:
    """Raises EngineError where a file's network takes or gives something else than its metadata says.

    Args:
        exported: What the metadata says.
        takes: Shape of the images (b, 3, h, w); None: any number.
        gives: Shape of the raw outputs.
    """
    side, classes = exported.preprocess.input_size, len(exported.classes)
    if len(takes) != 4 or takes[1] not in (3, None) or any(size not in (side, None) for size in takes[2:]):
        raise EngineError(
            f"{exported.path} is not usable: its network takes {_shape(takes)}, and its metadata names images of "
            f"{side} pixels"
        )
    least = {"classify": classes, "detect": 4 + classes}.get(exported.task)
    if gives and least is not None and gives[-1] not in (least, None):
        raise EngineError(
            f"{exported.path} is not usable: its network gives {_shape(gives)}, which is not for {classes} classes"
        )


def _shape(sizes: Sequence[int | None]) -> str:
    return "×".join("any" if size is None else str(size) for size in sizes)


def need_calibration(batches: Sequence[Tensor]) -> None:
    """Refuses int8 without images to measure the range of each layer on."""
    if not batches:
        raise EngineError("int8 needs calibration images: give --calibrate DATA (in Python: calibration=batches)")


def missing(extra: str, *modules: str) -> str | None:
    """Why these modules' engine cannot run: the extra to install; None where all are there."""
    absent = [module for module in modules if find_spec(module) is None]
    return f"{' and '.join(absent)} not installed: pip install 'shvit[{extra}]'" if absent else None


def check_export(kind: type[Engine], precision: str, *modules: str) -> None:
    """Raises EngineError where the format has no such precision, or these modules, which write it, are not there."""
    if precision not in kind.exports():
        allowed = ", ".join(kind.exports())
        raise EngineError(f"{kind.suffix} files have no precision {precision!r}: allowed are {allowed}")
    if kind.extra and (reason := missing(kind.extra, *modules)):
        raise EngineError(f"{kind.suffix} files cannot be written here: {reason}")


def batch_of(model_file: ModelFile, shapes: Shapes) -> int | None:
    """How many images a trace of the network takes at once; None: any number."""
    one_by_one = isinstance(model_file.model, Detector) and not model_file.model.any_batch
    return shapes.batch or (1 if one_by_one else None)


def described(model_file: ModelFile, path: Path, engine: str, precision: str) -> Exported:
    """What an export of this model says of itself."""
    return Exported(
        path,
        engine,
        precision,
        model_file.classes,
        model_file.preprocess,
        model_file.task,
        model_file.metrics,
        {**model_file.provenance, "architecture": model_file.architecture.to_dict()},
    )


def in_batches(
    run: Callable[[UInt8[Tensor, "size 3 h w"]], Float[Tensor, "size classes"]],
    images: UInt8[Tensor, "b 3 h w"],
    size: int | None,
) -> Float[Tensor, "b classes"]:
    """Any number of images through what takes `size` at once (None: any): the last lot is filled up with black ones."""
    if size is None or size == len(images):
        return run(images)
    outputs = []
    for lot in images.split(size):
        short = size - len(lot)
        whole = torch.cat([lot, lot.new_zeros(short, *lot.shape[1:])]) if short else lot
        outputs.append(run(whole)[: len(lot)])
    return torch.cat(outputs)
