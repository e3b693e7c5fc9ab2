"""The runtimes that run networks. An engine is one file here, added with `register`. `load` creates an engine."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..data.letterbox import check_fit
from ..errors import check_at_least, notice
from ..modelfile import ModelFile
from ..tasks import Described, detector_of, kind_of
from .base import Engine, Runnable, Shapes, batch_of
from .base import ExportJob as ExportJob
from .coreml import CoreMLEngine
from .cuda.engine import CudaEngine
from .executorch import ExecuTorchEngine
from .exported import EngineError, Exported, check_seal
from .exported import ExportError as ExportError
from .litert import LiteRTEngine
from .native.engine import NativeEngine
from .onnx import OnnxEngine
from .openvino import OpenVINOEngine
from .timm import TimmFormat
from .torch import TorchEngine
from .web.format import WebFormat

ENGINES: dict[str, type[Engine]] = {}
"""Engines that run model files, fastest first. `auto` selects the first one that is available and has the precision.
With precision `auto`, engines whose default is fp16 or bf16 come before engines whose default is fp32."""
FORMATS: dict[str, type[Engine]] = {}
"""Engines that have a file format. `timm` is among them: it writes files for users of timm, but runs no model files."""


def register(kind: type[Engine]) -> None:
    """Add an engine, and its file format if it has one."""
    if not kind.own_files_only:
        ENGINES[kind.name] = kind
    if kind.writes:
        FORMATS[kind.name] = kind


register(CudaEngine)
register(NativeEngine)
register(OnnxEngine)
register(OpenVINOEngine)
register(TorchEngine)
register(ExecuTorchEngine)
register(LiteRTEngine)
register(CoreMLEngine)
register(TimmFormat)
register(WebFormat)


def load(
    model: Runnable,
    engine: str = "auto",
    precision: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    calibration: Sequence[Tensor] = (),
) -> Engine:
    """Create an engine that runs this model.

    Args:
        model: A model file, or an exported file from `read`.
        engine: A key of `ENGINES`, or `auto` for the fastest engine that is available.
        precision: `fp32`, `fp16`, `bf16`, `int8`, or `auto`: the engine's default on this device.
        device: `cpu`, `cuda`, `cuda:1`, `mps`, or `auto`: a GPU if there is one, otherwise the CPU.
        threads: CPU threads; None leaves the choice to the engine.
        calibration: Batches of uint8 images (b, 3, h, w), needed to run a model file in int8. Exported files need none.

    Raises:
        EngineError: The engine, precision or device is unknown or not available. The message lists the alternatives.
    """
    name, precision, device = choose(model, engine, precision, device)
    check_threads(threads, device)
    kind: Any = kinds_for(model)[name]
    extra = {"calibration": calibration} if precision == "int8" and not isinstance(model, Exported) else {}
    return kind(model, precision, device, threads, **extra)


def choose(
    model: Runnable, engine: str = "auto", precision: str = "auto", device: str = "auto"
) -> tuple[str, str, str]:
    """Return the engine, precision and device that `load` uses for these arguments. Raises the same EngineErrors."""
    if isinstance(model, Exported):
        engine, precision = _as_exported(model, engine, precision)
    kinds = kinds_for(model)
    if engine not in ("auto", *kinds):
        raise EngineError(f"unknown engine {engine!r}: allowed are auto, {', '.join(kinds)}")
    wanted = _fitting(model, kinds if engine == "auto" else {engine: kinds[engine]})
    picked = pick_device(device)
    reasons = {name: kind.unavailable(picked) for name, kind in wanted.items()}
    if device == "auto" and all(reasons.values()):
        picked = "cpu"
        reasons = {name: kind.unavailable(picked) for name, kind in wanted.items()}
    if all(reasons.values()):
        raise EngineError(f"cannot run on {picked}: {'; '.join(f'{name}: {why}' for name, why in reasons.items())}")
    able = {
        name: (precision,) if isinstance(model, Exported) else kind.precisions_for(model, picked)
        for name, kind in wanted.items()
        if not reasons[name]
    }
    fit = [name for name, has in able.items() if precision in ("auto", *has)]
    if not fit:
        allowed = "; ".join(f"{name} has {', '.join(has)}" for name, has in able.items())
        raise EngineError(f"precision {precision!r} is not available on {picked}: {allowed}")
    if precision == "auto":
        fit = [name for name in fit if able[name][0] != "int8"] or fit  # int8 loses accuracy, and needs images
        fit.sort(key=lambda name: able[name][0] == "fp32")
        precision = able[fit[0]][0]
    if engine == "auto" and picked.startswith("cuda") and (reason := reasons.get(CudaEngine.name)):
        notice(f"engine cuda is not available on {picked} ({reason}): using engine {fit[0]}")
    return fit[0], precision, picked


def kinds_for(model: Runnable) -> Mapping[str, type[Engine]]:
    """Engines that may run this model, by name: `ENGINES` for a model file, `FORMATS` for an exported file."""
    return FORMATS if isinstance(model, Exported) else ENGINES


def runners(model: Described | str) -> dict[str, type[Engine]]:
    """Engines that run a model, or models of a task, by name."""
    return {name: kind for name, kind in ENGINES.items() if detector_of(model) in kind.runs}


def writers(model: Described | str) -> dict[str, type[Engine]]:
    """Formats that a model, or models of a task, can be written in, by name."""
    return {name: kind for name, kind in FORMATS.items() if detector_of(model) in kind.writes}


def _fitting(model: Runnable, wanted: Mapping[str, type[Engine]]) -> Mapping[str, type[Engine]]:
    """The engines in `wanted` that run the model's task and `preprocess.fit`. Raises EngineError if there are none."""
    many_sizes = model.preprocess.fit == "shorter"
    detector = detector_of(model)
    if len(wanted) > 1:  # auto
        wanted = {name: kind for name, kind in wanted.items() if kind.preferred() and not _refuses(kind, model)}

    def takes(kind: type[Engine]) -> bool:
        return detector in kind.runs and (kind.many_sizes or not many_sizes)

    if taking := {name: kind for name, kind in wanted.items() if takes(kind)}:
        return taking
    names = ", ".join(name for name, kind in ENGINES.items() if takes(kind))
    raise EngineError(f"{_in_words(model)} (fit {model.preprocess.fit}) run on {names}, not on {', '.join(wanted)}")


def _refuses(kind: type[Engine], model: Runnable) -> str | None:
    """Why the engine cannot run the network of this model; None if it can."""
    return kind.refuses(model.model) if isinstance(model, ModelFile) else None


def writable_precisions(model: Described | str, name: str) -> tuple[str, ...]:
    """Precisions that a format has for a model, or for models of a task, the default first."""
    return FORMATS[name].writes[detector_of(model)]


def format_of(name: str, model: Described | str = "classify") -> type[Engine]:
    """The engine that writes a format, given the model or its task.

    Raises:
        EngineError: The format is unknown or not available for such models, or libraries are missing.
    """
    formats = writers(model)
    if name not in FORMATS:
        raise EngineError(f"unknown format {name!r}: allowed are {', '.join(formats)}")
    if name not in formats:
        raise EngineError(f"{_in_words(model)} can be written as {', '.join(formats)}, not as {name}")
    if reason := FORMATS[name].absent():
        raise EngineError(f"cannot write the format {name}: {reason}")
    return FORMATS[name]


def _in_words(model: Described | str) -> str:
    """The kind of a model for messages, given the model or its task."""
    if isinstance(model, str):
        return f"models of task {model}"
    detector = detector_of(model)
    return f"models of task {model.task}" + (f" with detector {detector}" if detector else "")


def checked_shapes(model_file: ModelFile, shapes: Shapes, kind: type[Engine], end_to_end: bool = False) -> Shapes:
    """The input sizes that an export of this model takes. Raises EngineError for sizes that the model cannot take, and
    for end-to-end files in a format that does not have them.
    """
    if end_to_end:
        if not kind.end_to_end:
            able = ", ".join(name for name, one in writers(model_file).items() if one.end_to_end)
            raise EngineError(
                f"--end-to-end is not available with --format {kind.name}, whose runtime cannot resize images of any "
                f"size as in training: leave it out, or choose from: {able}"
            )
        if shapes != Shapes():
            raise EngineError("end-to-end files take one image of any size: leave out --batch-size and --dynamic-size")
        shapes = Shapes(batch=1)
    if kind_of(model_file).any_size:
        return shapes
    if shapes.dynamic_size:
        raise EngineError("exported detectors take images of one size: leave out --dynamic-size")
    if model_file.preprocess.fit == "shorter":
        raise EngineError(
            "the model takes many image sizes, but its file can take only one: set --image-size to the longer side"
        )
    check_fit(model_file.preprocess)
    return replace(shapes, batch=batch_of(model_file, shapes))


def is_exported(path: str | Path) -> bool:
    """Whether the file name has the suffix of an export format."""
    return Path(path).suffix in {kind.suffix for kind in FORMATS.values()}


def read(path: str | Path) -> Exported:
    """Read the metadata of an exported file.

    Raises:
        EngineError: The suffix is unknown, the engine is not installed, or shvit did not write the file.
    """
    path = Path(path)
    kind = next((kind for kind in FORMATS.values() if kind.suffix == path.suffix), None)
    if kind is None:
        allowed = ", ".join(kind.suffix for kind in FORMATS.values())
        raise EngineError(f"{path} has an unknown suffix: allowed are {allowed}")
    if not path.exists():
        raise EngineError(f"{path}: no such file")
    if reason := kind.absent():
        raise EngineError(f"{path} needs the engine {kind.name}: {reason}")
    try:
        sealed = check_seal(path)
    except OSError as error:
        raise EngineError(f"{path} cannot be read: {error.strerror or error}") from None
    exported = kind.read(path)
    if exported.engine != kind.name:
        raise EngineError(
            f"{path} is refused: its metadata names engine {exported.engine!r}, but {kind.suffix} means {kind.name}"
        )
    if exported.precision not in kind.writes[None]:
        allowed = ", ".join(kind.writes[None])
        raise EngineError(f"{path} has an unknown precision {exported.precision!r}: allowed are {allowed}")
    if exported.sealed and not sealed:
        raise EngineError(f"{path} is damaged: its digest is missing")
    if not sealed:
        notice(f"{path} has no digest to detect damage, because an older version of shvit wrote it: export it again")
    return exported


def need_raw_outputs(model: Runnable, verb: str) -> None:
    """Raise EngineError for an end-to-end file, which has no raw outputs. `verb` needs them."""
    if isinstance(model, Exported) and model.end_to_end:
        raise EngineError(
            f"{model.path} is an end-to-end file, which {verb} cannot use: give an export without --end-to-end, or use "
            "shvit predict"
        )


def _as_exported(model: Exported, engine: str, precision: str) -> tuple[str, str]:
    """The engine and precision of the file. Raises EngineError if the arguments name different ones."""
    if engine not in ("auto", model.engine):
        raise EngineError(f"{model.path} runs on the engine {model.engine} only, not on {engine!r}")
    if precision not in ("auto", model.precision):
        raise EngineError(f"{model.path} was exported in {model.precision}, not in {precision!r}")
    return model.engine, model.precision


def check_threads(threads: int | None, device: str) -> None:
    """Raise InputError for a number below 1, and for any number on a GPU, since `threads` counts CPU threads."""
    check_at_least(1, threads=threads)
    if threads is not None and device != "cpu":
        raise EngineError(f"--threads has no effect on {device}: leave it out, or give --device cpu")


def pick_device(device: str) -> str:
    """The name of the device, with `auto` resolved. Raises EngineError if the device is not available."""
    import torch  # imported here, since this package has a module of the same name

    present = ["cpu"]
    if torch.cuda.is_available():
        present = ["cuda", *(f"cuda:{index}" for index in range(torch.cuda.device_count())), *present]
    elif torch.backends.mps.is_available():
        present = ["mps", *present]
    if device == "auto":
        return present[0]
    if device not in present:
        raise EngineError(f"device {device!r} is not available: allowed are auto, {', '.join(present)}")
    return device
