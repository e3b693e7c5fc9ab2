"""The interface of an engine, and code that engines share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ..modelfile import ModelFile
from ..tasks import Described, detector_of
from ..tasks.base import Predict
from .exported import EngineError, ExpectedSample, Exported, described, files_of, overwrite, seal

STATIC_SHAPES = 6
"""An engine compiles a network for each of this many input shapes. Further shapes share one slower, dynamic network."""

Precisions = Mapping[str | None, tuple[str, ...]]
"""The precisions for each kind of network (a key of `DETECTORS`, or None for classifiers), the default first."""


@dataclass(frozen=True)
class Shapes:
    """Input sizes that an exported network takes."""

    batch: int | None = None
    """Images per call. None: any number."""
    dynamic_size: bool = False
    """Whether images of any height and width are accepted. The minimum depends on the format: at most 65 pixels."""


Runnable = ModelFile | Exported


@dataclass(frozen=True)
class Candidate:
    """A quantized network that an engine proposes for export. `ExportJob.accept` checks its accuracy."""

    runs: Predict
    exact: Predict
    """The same network in fp32."""
    layers: int = 0
    """Number of layers whose precision can be chosen individually."""
    given_back: Mapping[str, float] = field(default_factory=dict)
    """Layers in higher precision, each with the share of the quantization error that it causes. Largest share first."""


Accept = Callable[[Candidate], bool]
"""Returns whether a candidate is accurate enough to be written."""


@dataclass(frozen=True)
class ExportJob:
    """What an engine needs to write a file."""

    model_file: ModelFile
    path: Path
    precision: str
    shapes: Shapes = Shapes()
    calibration: Sequence[UInt8[Tensor, "b 3 h w"]] = ()
    """Batches of images for measuring the value ranges for int8."""
    accept: Accept | None = None
    """Called for each candidate by engines that can mix precisions. They write the accepted candidate with the fewest
    layers in higher precision, or nothing if no candidate is accepted. Other engines ignore this function."""
    threads: int | None = None
    """Number of CPU threads for running the candidates."""
    end_to_end: bool = False
    """Whether the file takes one image of any size, and returns the results of the task."""
    sample: ExpectedSample | None = None
    """The sample in the file's metadata."""
    sample_pixels: UInt8[np.ndarray, "h w 3"] | None = None
    """The sample's image, for formats that contain it."""


class Engine:
    """Runs one network on decoded pixels. Normalization is part of the network.

    Several threads may call an engine at once, even while other threads create, call or delete other engines. A call
    uses the number of CPU threads that was set for its engine, and does not change the settings of the process.

    The constructor of an engine that runs model files in int8 also takes `calibration`, as in `ExportJob`.
    """

    name: ClassVar[str]
    suffix: ClassVar[str] = ""
    """Suffix of the engine's exported files, such as `.onnx`. Empty if the engine has no file format."""
    extra: ClassVar[str | None] = None
    """The extra to install with `pip install 'shvit[EXTRA]'`; None if the engine needs no extra."""
    modules: ClassVar[tuple[str, ...]] = ()
    """Modules of this extra that the engine imports."""
    concurrent: ClassVar[bool] = False
    """Whether calls from several threads run at the same time. If not, they run one after another."""
    own_files_only: ClassVar[bool] = False
    """Whether the engine runs exported files of its own format but no model files."""
    every_network: ClassVar[bool] = True
    """Whether the engine runs every network. If not, `refuses` returns why it does not run a given network."""
    many_sizes: ClassVar[bool] = False
    """Whether the engine runs detectors on images that differ in size (`preprocess.fit` is `shorter`)."""
    end_to_end: ClassVar[bool] = False
    """Whether files of the engine's format can be exported end to end."""
    always_end_to_end: ClassVar[bool] = False
    """Whether all files of the engine's format are end to end."""
    profiled: ClassVar[bool] = False
    """Whether PyTorch's profiler records the engine's operations on the CPU."""
    device: str = "cpu"
    """Where the network runs, such as cuda:0."""
    threads: int | None = None
    """CPU threads that were asked for; None for the default."""
    runs: ClassVar[Precisions] = {}
    """Precisions in which the engine runs each kind of network on at least one device."""
    writes: ClassVar[Precisions] = {}
    """Precisions of the engine's exported files, for each kind of network."""
    precision: str

    def __init__(self, model: Runnable, precision: str, device: str, threads: int | None = None) -> None:
        raise NotImplementedError

    def __call__(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        """Return fp32 outputs, on the device of the images."""
        raise NotImplementedError

    def results(self, image: UInt8[np.ndarray, "h w 3"]) -> dict[str, np.ndarray]:
        """Run an end-to-end file on an upright RGB image of any size. Returns the results of the task, by name."""
        raise NotImplementedError

    @classmethod
    def absent(cls) -> str | None:
        """Which libraries are missing and how to install them; None if all are installed."""
        absent = [module for module in cls.modules if find_spec(module) is None]
        packages = f"'shvit[{cls.extra}]'" if cls.extra else " ".join(absent)
        return f"{' and '.join(absent)} not installed: pip install {packages}" if absent else None

    @classmethod
    def unavailable(cls, device: str) -> str | None:
        """Why the engine cannot run on this device, in a few words; None if it can."""
        return cls.absent() if torch.device(device).type == "cpu" else "runs only on the CPU"

    @classmethod
    def precisions(cls, device: str) -> tuple[str, ...]:
        """Precisions in which the engine runs classifiers on this device. The first is the default."""
        return cls.runs[None]

    @classmethod
    def precisions_for(cls, model: Described | str, device: str) -> tuple[str, ...]:
        """Precisions in which the engine runs a model, or models of a task, on this device."""
        return tuple(name for name in cls.precisions(device) if name in cls.runs.get(detector_of(model), ()))

    @classmethod
    def preferred(cls) -> bool:
        """Whether `auto` may choose the engine on this processor."""
        return True

    @classmethod
    def refuses(cls, network: Any) -> str | None:
        """Why the engine cannot run this network; None if it can."""
        return None

    @classmethod
    def export(cls, job: ExportJob) -> None:
        """Write a model in the engine's format. The file contains the model's metadata and a digest.

        Raises:
            EngineError: The precision or shapes are not supported, libraries are missing, or int8 has no calibration
                images.
        """
        if not cls.writes:
            raise EngineError(f"the engine {cls.name} has no file format: it runs model files")
        allowed = cls.writes.get(detector_of(job.model_file), ())
        if job.precision not in allowed:
            raise EngineError(
                f"{cls.suffix} files have no precision {job.precision!r}: allowed are {', '.join(allowed)}"
            )
        if reason := cls.absent():
            raise EngineError(f"{cls.suffix} files cannot be written here: {reason}")
        if job.precision == "int8":
            need_calibration(job.calibration)
        cls.write(job, described(job.model_file, job.path, cls.name, job.precision, job.end_to_end, job.sample))
        if job.path.exists():
            seal(job.path)

    @classmethod
    def fill_sample(cls, path: Path, unknown: ExpectedSample, known: ExpectedSample) -> None:
        """Replace the sample in the file's metadata, whose scores were not known before the file had run."""
        if not any(overwrite(part, unknown.scores_text, known.scores_text) for part in files_of(path)):
            raise AssertionError(f"{path} has no placeholder for the scores of its sample")
        seal(path)

    @classmethod
    def write(cls, job: ExportJob, facts: Exported) -> None:
        """Write the file of this job, with these facts as metadata. `export` has already checked the job."""
        raise NotImplementedError

    @classmethod
    def read(cls, path: Path) -> Exported:
        """Read the metadata of an exported file. Raises InputError for a file that shvit did not write."""
        raise NotImplementedError

    @classmethod
    def specification(cls, path: Path) -> dict[str, Any]:
        """The inputs and outputs that a file declares, for checks on machines that cannot run the file.

        Raises:
            ExportError: The inputs or outputs do not match the file's metadata.
        """
        return {}

    def launches(self, images: UInt8[Tensor, "b 3 h w"]) -> Sequence[Any]:
        """The GPU kernels that a call with these images launches, in order; empty if the kernels are not known."""
        return ()


def need_calibration(batches: Sequence[Tensor]) -> None:
    """Raise EngineError if there are no images for measuring the value range of each layer."""
    if not batches:
        raise EngineError(
            "int8 needs calibration images: give --calibrate DATA (in Python: calibration=batches), or --precision fp32"
        )


def batch_of(model_file: ModelFile, shapes: Shapes) -> int | None:
    """Number of images that the traced network takes per call. None: any number."""
    return shapes.batch or (None if model_file.model.any_batch else 1)


def network_shapes(job: ExportJob) -> Shapes:
    """The input sizes of the network inside the file of a job.

    An end-to-end file runs single images, but its network is quantized with any batch size if possible. Otherwise, the
    ranges would be measured on batches of one image, and its int8 network would differ from that of other files.
    """
    return replace(job.shapes, batch=None) if job.end_to_end and job.model_file.model.any_batch else job.shapes


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
