"""Where a network runs. `load` is the way in; a new engine is one file and one row of `ENGINES`."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..data.letterbox import check_fit
from ..errors import check_at_least, notice
from ..modelfile import ModelFile
from .base import Engine, EngineError, Exported, Runnable, Shapes, batch_of, check_seal
from .coreml import CoreMLEngine
from .cuda.engine import CudaEngine
from .executorch import ExecuTorchEngine
from .onnx import OnnxEngine
from .openvino import OpenVINOEngine
from .timm import TimmFormat
from .torch import TorchEngine

ENGINES: dict[str, type[Engine]] = {
    "cuda": CudaEngine,
    "onnx": OnnxEngine,
    "openvino": OpenVINOEngine,
    "torch": TorchEngine,
    "executorch": ExecuTorchEngine,
    "coreml": CoreMLEngine,
}
"""The fastest first: `auto` takes the first that can run and has the precision; of those, fp16 and bf16 before fp32."""

RUN_DETECTORS: dict[str, dict[str, tuple[str, ...]]] = {
    "detect": {
        "onnx": ("fp32",),
        "openvino": ("fp32", "int8"),
        "torch": ("bf16", "fp32", "fp16"),
        "executorch": ("fp32",),
        "coreml": ("fp16", "fp32"),
    },
    "segment": {"onnx": ("fp32",), "openvino": ("fp32", "int8"), "torch": ("fp32",)},
}
"""The engines that run these tasks' networks, and the precisions: bf16 only where boxes are computed in fp32 all the
same, and which regions there are must not hang on rounding."""
WRITE_DETECTORS: dict[str, dict[str, tuple[str, ...]]] = {
    "detect": {
        "onnx": ("fp32",),
        "openvino": ("fp32", "fp16", "int8"),
        "torch": ("fp32", "bf16"),
        "executorch": ("fp32",),
        "coreml": ("fp16", "fp32"),
    },
    "segment": {"onnx": ("fp32",), "openvino": ("fp32", "fp16", "int8")},
}
"""The formats that these tasks' networks are written in, the default precision first: torch.export, and so the other
formats, cannot follow a number of regions that hangs on what is seen."""

FORMATS: dict[str, type[Engine]] = {
    **{name: kind for name, kind in ENGINES.items() if kind.exports()},
    "timm": TimmFormat,
}
"""What can be written: the formats of engines, and those that other software reads."""

__all__ = [
    "ENGINES",
    "Engine",
    "EngineError",
    "Exported",
    "Runnable",
    "choose",
    "is_exported",
    "kinds_for",
    "load",
    "read",
]


def load(
    model: Runnable,
    engine: str = "auto",
    precision: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    calibration: Sequence[Tensor] = (),
) -> Engine:
    """An engine that runs this model.

    Args:
        model: What to run: a model file, or what `read` found in an exported one.
        engine: A key of `ENGINES`, or `auto` for the fastest that can run here.
        precision: `fp32`, `fp16`, `bf16`, `int8`, or `auto` for the engine's fastest that loses nothing to speak of.
        device: `cpu`, `cuda`, `cuda:1`, `mps`, or `auto` for a GPU where there is one.
        threads: CPU threads; None leaves the choice to the engine.
        calibration: Batches of uint8 images (b, 3, h, w), for int8 of a model file; an exported int8 file needs none.

    Raises:
        EngineError: No such engine, precision or device, or it cannot run here; the message says what can.
    """
    name, precision, device = choose(model, engine, precision, device)
    check_threads(threads, device)
    kind: Any = kinds_for(model)[name]
    extra = {"calibration": calibration} if precision == "int8" and not isinstance(model, Exported) else {}
    return kind(model, precision, device, threads, **extra)


def choose(
    model: Runnable, engine: str = "auto", precision: str = "auto", device: str = "auto"
) -> tuple[str, str, str]:
    """The names of the engine, the precision and the device that `load` takes for these. Raises EngineError."""
    if isinstance(model, Exported):
        engine, precision = _as_exported(model, engine, precision)
    kinds = kinds_for(model)
    if engine not in ("auto", *kinds):
        raise EngineError(f"unknown engine {engine!r}: allowed are auto, {', '.join(kinds)}")
    wanted = _that_take(model, kinds if engine == "auto" else {engine: kinds[engine]})
    picked = pick_device(device)
    reasons = {name: kind.unavailable(picked) for name, kind in wanted.items()}
    if device == "auto" and all(reasons.values()):
        picked = "cpu"
        reasons = {name: kind.unavailable(picked) for name, kind in wanted.items()}
    if all(reasons.values()):
        raise EngineError(f"cannot run on {picked}: {'; '.join(f'{name}: {why}' for name, why in reasons.items())}")
    able = {name: kind.precisions(picked) for name, kind in wanted.items() if not reasons[name]}
    able = {name: allowed_precisions(model.task, name, has) for name, has in able.items()}
    if isinstance(model, Exported):
        able = {engine: (precision,)}
    fit = [name for name, has in able.items() if precision in ("auto", *has)]
    if not fit:
        allowed = "; ".join(f"{name} has {', '.join(has)}" for name, has in able.items())
        raise EngineError(f"no precision {precision!r} on {picked}: {allowed}")
    if precision == "auto":
        fit.sort(key=lambda name: able[name][0] == "fp32")
        precision = able[fit[0]][0]
    if engine == "auto" and picked.startswith("cuda") and (reason := reasons.get("cuda")):
        notice(f"engine cuda on {picked}: {reason}; {fit[0]} runs instead")
    return fit[0], precision, picked


def kinds_for(model: Runnable) -> Mapping[str, type[Engine]]:
    """What may run this model, by name: for an exported file, the formats; for a model file, the engines."""
    return FORMATS if isinstance(model, Exported) else ENGINES


def _that_take(model: Runnable, wanted: Mapping[str, type[Engine]]) -> Mapping[str, type[Engine]]:
    """Those of the engines that run networks of this kind. Raises EngineError where none does."""
    if model.task not in RUN_DETECTORS:
        return wanted
    names = list(RUN_DETECTORS[model.task])
    if model.preprocess.fit == "shorter":  # images of many sizes
        names = ["torch"]
    if taking := {name: kind for name, kind in wanted.items() if name in names}:
        return taking
    raise EngineError(
        f"models of task {model.task} and fit {model.preprocess.fit} run on {', '.join(names)}, not on "
        f"{', '.join(wanted)}"
    )


def allowed_precisions(task: str, engine: str, precisions: tuple[str, ...]) -> tuple[str, ...]:
    """Those of an engine's precisions that a task's networks run in."""
    if task not in RUN_DETECTORS:
        return precisions
    return tuple(precision for precision in precisions if precision in RUN_DETECTORS[task].get(engine, ()))


def writable_precisions(task: str, name: str) -> tuple[str, ...]:
    """The precisions that a format has for a task's networks, the default first."""
    return WRITE_DETECTORS[task][name] if task in WRITE_DETECTORS else FORMATS[name].exports()


def format_of(name: str, task: str = "classify") -> type[Engine]:
    """The engine whose format is meant. Raises EngineError where the task has none, or libraries are missing."""
    allowed = ", ".join(WRITE_DETECTORS.get(task, FORMATS))
    if name not in FORMATS:
        raise EngineError(f"unknown format {name!r}: allowed are {allowed}")
    if name not in WRITE_DETECTORS.get(task, FORMATS):
        raise EngineError(f"models of task {task} are written as {allowed}, not as {name}")
    if reason := FORMATS[name].absent():
        raise EngineError(f"the format {name} cannot be written: {reason}")
    return FORMATS[name]


def checked_shapes(model_file: ModelFile, shapes: Shapes) -> Shapes:
    """The sizes of input that a file of this model takes.

    Raises:
        EngineError: It cannot take these.
    """
    if model_file.task == "classify":
        return shapes
    if shapes.dynamic_size:
        raise EngineError("files of detectors take images of one size")
    if model_file.preprocess.fit == "shorter":
        raise EngineError(
            "the model takes images of many sizes, a file of one: give --image-size, which the longer side becomes"
        )
    check_fit(model_file.preprocess)
    return replace(shapes, batch=batch_of(model_file, shapes))


def is_exported(path: str | Path) -> bool:
    """Whether the name is that of a file in some engine's format."""
    return Path(path).suffix in {kind.suffix for kind in FORMATS.values()}


def read(path: str | Path) -> Exported:
    """What an exported file says of itself.

    Raises:
        EngineError: Its suffix is no engine's, the engine is not installed, or shvit did not write it.
    """
    path = Path(path)
    for name, kind in FORMATS.items():
        if kind.suffix == path.suffix:
            if not path.exists():
                raise EngineError(f"{path}: no such file")
            if reason := kind.absent():
                raise EngineError(f"{path} needs the engine {name}: {reason}")
            return _checked(path, name, kind)
    allowed = ", ".join(kind.suffix for kind in FORMATS.values())
    raise EngineError(f"{path} is in no format of an engine: allowed are {allowed}")


def _checked(path: Path, name: str, kind: type[Engine]) -> Exported:
    """What the file says, where that is true of it. Raises EngineError."""
    try:
        sealed = check_seal(path)
    except OSError as error:
        raise EngineError(f"{path} cannot be read: {error.strerror or error}") from None
    exported = kind.read(path)
    if exported.engine != name:
        raise EngineError(
            f"{path} is refused: it says that it is for {exported.engine!r}, and {kind.suffix} is {name}'s"
        )
    if exported.precision not in kind.exports():
        allowed = ", ".join(kind.exports())
        raise EngineError(f"{path} has no possible precision {exported.precision!r}: allowed are {allowed}")
    if exported.sealed and not sealed:
        raise EngineError(f"{path} is damaged: the digest that it held is not there")
    if not sealed:
        notice(f"{path} holds no digest, as an earlier shvit wrote it, so damage goes unnoticed: export it again")
    return exported


def _as_exported(model: Exported, engine: str, precision: str) -> tuple[str, str]:
    """The file's own engine and precision, where nothing else was asked for."""
    if engine not in ("auto", model.engine):
        raise EngineError(f"{model.path} runs on the engine {model.engine} only, not on {engine!r}")
    if precision not in ("auto", model.precision):
        raise EngineError(f"{model.path} was exported in {model.precision}, not in {precision!r}")
    return model.engine, model.precision


def check_threads(threads: int | None, device: str) -> None:
    """Raises EngineError for a number below 1, and for any on a GPU: these threads are the CPU's."""
    check_at_least(1, threads=threads)
    if threads is not None and device != "cpu":
        raise EngineError(f"--threads has no effect on {device}: leave it out, or give --device cpu")


def pick_device(device: str) -> str:
    """The device meant by `auto`; any other name checked. Raises EngineError naming those that are there."""
    import torch

    present = ["cpu"]
    if torch.cuda.is_available():
        present = ["cuda", *(f"cuda:{index}" for index in range(torch.cuda.device_count())), *present]
    elif torch.backends.mps.is_available():
        present = ["mps", *present]
    if device == "auto":
        return present[0]
    if device not in present:
        raise EngineError(f"no device {device!r} here: allowed are auto, {', '.join(present)}")
    return device
