"""The interface of an engine, and what engines share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ..modelfile import ModelFile
from ..tasks import TASKS
from ..tasks.base import Predict
from .exported import EngineError, Exported, described, seal

STATIC_SHAPES = 6
"""Input shapes for which an engine compiles the network separately. Others share one slower, dynamic network."""

Precisions = Mapping[str | None, tuple[str, ...]]
"""Precisions by the kind of network: a key of `DETECTORS`, or None for classifiers. The first is the default."""


@dataclass(frozen=True)
class Shapes:
    """Input sizes that an exported network takes."""

    batch: int | None = None
    """None: any number of images."""
    dynamic_size: bool = False
    """Any height and width, down to the smallest that the format can express: 65 pixels at most."""


Runnable = ModelFile | Exported


@dataclass(frozen=True)
class Candidate:
    """A quantized network that an engine proposes during its search for one that is accurate enough."""

    runs: Predict
    exact: Predict
    """The same network in fp32."""
    layers: int = 0
    """Number of layers whose precision can be chosen individually."""
    given_back: Mapping[str, float] = field(default_factory=dict)
    """Layers in higher precision, and the share of the quantization error that each causes. Largest first."""


Accept = Callable[[Candidate], bool]
"""Whether a candidate is accurate enough to be written."""


@dataclass(frozen=True)
class ExportJob:
    """A file that an engine is to write."""

    model_file: ModelFile
    path: Path
    precision: str
    shapes: Shapes = Shapes()
    calibration: Sequence[UInt8[Tensor, "b 3 h w"]] = ()
    """Images that the ranges of int8 are measured on, in batches."""
    accept: Accept | None = None
    """Engines that can mix precisions propose candidates until this accepts one, and write that one. If it accepts
    none, they write nothing. Other engines ignore it."""
    threads: int | None = None
    """CPU threads of the candidates."""


class Engine:
    """Runs one network. It takes decoded pixels; normalization is part of the network.

    Several threads may call an engine at once, while others create, call and delete engines with other numbers of CPU
    threads. A call uses the number of its engine and leaves the settings of the process unchanged.

    The constructor of an engine that runs int8 has a further argument, `calibration`, as in `ExportJob`.
    """

    name: ClassVar[str]
    suffix: ClassVar[str] = ""
    """Of the files of its format, such as `.onnx`. Empty: the engine has no format."""
    extra: ClassVar[str | None] = None
    """What `pip install 'shvit[EXTRA]'` installs; None if the engine needs no extra."""
    modules: ClassVar[tuple[str, ...]] = ()
    """Modules of the extra that it imports."""
    concurrent: ClassVar[bool] = False
    """Whether calls from several threads run at the same time. Otherwise they wait for each other."""
    own_files_only: ClassVar[bool] = False
    """Whether it runs only files of its format, no model files."""
    every_network: ClassVar[bool] = True
    """Whether it computes every network; `refuses` names the reason for one that it does not."""
    many_sizes: ClassVar[bool] = False
    """Whether it runs detectors whose images differ in size (fit `shorter`)."""
    profiled: ClassVar[bool] = False
    """Whether PyTorch's profiler sees its operations on the CPU."""
    runs: ClassVar[Precisions] = {}
    """Precisions that it runs each kind of network in, on some device."""
    writes: ClassVar[Precisions] = {}
    """Precisions that its format is written in."""
    precision: str

    def __init__(self, model: Runnable, precision: str, device: str, threads: int | None = None) -> None:
        raise NotImplementedError

    def __call__(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        """Return fp32 outputs, on the device of the images."""
        raise NotImplementedError

    @classmethod
    def absent(cls) -> str | None:
        """Which libraries are missing and how to install them; None if none is."""
        absent = [module for module in cls.modules if find_spec(module) is None]
        packages = f"'shvit[{cls.extra}]'" if cls.extra else " ".join(absent)
        return f"{' and '.join(absent)} not installed: pip install {packages}" if absent else None

    @classmethod
    def unavailable(cls, device: str) -> str | None:
        """Why it cannot run on this device, in a few words; None if it can."""
        return cls.absent() if torch.device(device).type == "cpu" else "runs on the CPU"

    @classmethod
    def precisions(cls, device: str) -> tuple[str, ...]:
        """Precisions that it has for classifiers on this device; `auto` takes the first."""
        return cls.runs[None]

    @classmethod
    def precisions_for(cls, task: str, device: str) -> tuple[str, ...]:
        """Precisions that it runs models of this task in, on this device."""
        return tuple(name for name in cls.precisions(device) if name in cls.runs.get(detector_of(task), ()))

    @classmethod
    def refuses(cls, network: Any) -> str | None:
        """Why it does not compute this network; None if it does."""
        return None

    @classmethod
    def export(cls, job: ExportJob) -> None:
        """Write a file of the format. Its metadata and its digest are inside.

        Raises:
            EngineError: The format does not have this precision or these shapes, libraries are missing, or int8 has no
                calibration images.
        """
        allowed = cls.writes.get(detector_of(job.model_file.task), ())
        if job.precision not in allowed:
            raise EngineError(
                f"{cls.suffix} files have no precision {job.precision!r}: allowed are {', '.join(allowed)}"
            )
        if reason := cls.absent():
            raise EngineError(f"{cls.suffix} files cannot be written here: {reason}")
        if job.precision == "int8":
            need_calibration(job.calibration)
        cls.write(job, described(job.model_file, job.path, cls.name, job.precision))
        if job.path.exists():
            seal(job.path)

    @classmethod
    def write(cls, job: ExportJob, facts: Exported) -> None:
        """Write the file that `export` has checked, with these facts as its metadata."""
        raise NotImplementedError

    @classmethod
    def read(cls, path: Path) -> Exported:
        """Read the metadata of such a file. Raises InputError for a file that shvit did not write."""
        raise NotImplementedError

    @classmethod
    def specification(cls, path: Path) -> dict[str, Any]:
        """What a file declares, for machines that cannot run it. Raises ExportError if it does not fit its metadata."""
        return {}

    def launches(self, images: UInt8[Tensor, "b 3 h w"]) -> Sequence[Any]:
        """The GPU kernels that a call with these images launches, in order; empty if not known."""
        return ()


def detector_of(task: str) -> str | None:
    """The kind of network that the task needs: a key of `Precisions`."""
    return TASKS[task].detector if task in TASKS else None


def need_calibration(batches: Sequence[Tensor]) -> None:
    """Raises EngineError if there are no images to measure the range of each layer on."""
    if not batches:
        raise EngineError("int8 needs calibration images: give --calibrate DATA (in Python: calibration=batches)")


def batch_of(model_file: ModelFile, shapes: Shapes) -> int | None:
    """How many images a trace of the network takes at once; None: any number."""
    return shapes.batch or (None if model_file.model.any_batch else 1)


def in_batches(
    run: Callable[[UInt8[Tensor, "size 3 h w"]], Float[Tensor, "size classes"]],
    images: UInt8[Tensor, "b 3 h w"],
    size: int | None,
) -> Float[Tensor, "b classes"]:
    """Run any number of images in batches of exactly `size` (None: all at once). Black images fill the last batch."""
    if size is None or size == len(images):
        return run(images)
    outputs = []
    for chunk in images.split(size):
        short = size - len(chunk)
        whole = torch.cat([chunk, chunk.new_zeros(short, *chunk.shape[1:])]) if short else chunk
        outputs.append(run(whole)[: len(chunk)])
    return torch.cat(outputs)
