"""Where a network runs. `load` is the way in; a new engine is one file and one row of `ENGINES`."""

from pathlib import Path

from .base import Engine, EngineError, Exported, Runnable
from .coreml import CoreMLEngine
from .executorch import ExecuTorchEngine
from .torch import TorchEngine

ENGINES: dict[str, type[Engine]] = {"torch": TorchEngine, "executorch": ExecuTorchEngine, "coreml": CoreMLEngine}
"""The fastest first: `auto` takes the first that can run."""

__all__ = ["ENGINES", "Engine", "EngineError", "Exported", "Runnable", "is_exported", "load", "read"]


def load(
    model: Runnable,
    engine: str = "auto",
    precision: str = "auto",
    device: str = "auto",
    threads: int | None = None,
) -> Engine:
    """An engine that runs this model.

    Args:
        model: What to run: a model file, or what `read` found in an exported one.
        engine: A key of `ENGINES`, or `auto` for the fastest that can run here.
        precision: `fp32`, `bf16`, …, or `auto` for the engine's fastest that loses nothing to speak of.
        device: `cpu`, `cuda`, `cuda:1`, `mps`, or `auto` for a GPU where there is one.
        threads: CPU threads; None leaves the choice to the engine.

    Raises:
        EngineError: No such engine, precision or device, or it cannot run here; the message says what can.
    """
    if threads is not None and threads < 1:
        raise EngineError(f"threads must be at least 1, got {threads}")
    device = pick_device(device)
    if isinstance(model, Exported):
        engine, precision = _as_exported(model, engine, precision)
    candidates = ENGINES if engine == "auto" else {engine: ENGINES.get(engine)}
    reasons = []
    for name, kind in candidates.items():
        if kind is None:
            raise EngineError(f"unknown engine {name!r}: allowed are auto, {', '.join(ENGINES)}")
        if reason := kind.unavailable(device):
            reasons.append(f"{name}: {reason}")
            continue
        allowed = (precision,) if isinstance(model, Exported) else kind.precisions(device)
        if precision not in ("auto", *allowed):
            raise EngineError(
                f"{name} on {device} has no precision {precision!r}: allowed are auto, {', '.join(allowed)}"
            )
        return kind(model, allowed[0] if precision == "auto" else precision, device, threads)
    raise EngineError(f"no engine can run on {device} ({'; '.join(reasons)})")


def is_exported(path: str | Path) -> bool:
    """Whether the name is that of a file in some engine's format."""
    return Path(path).suffix in {kind.suffix for kind in ENGINES.values()}


def read(path: str | Path) -> Exported:
    """What an exported file says of itself.

    Raises:
        EngineError: Its suffix is no engine's, the engine is not installed, or shvit did not write it.
    """
    path = Path(path)
    for name, kind in ENGINES.items():
        if kind.suffix == path.suffix:
            if not path.exists():
                raise EngineError(f"{path}: no such file")
            if reason := kind.unavailable("cpu"):
                raise EngineError(f"{path} needs the engine {name}: {reason}")
            return kind.read(path)
    allowed = ", ".join(kind.suffix for kind in ENGINES.values())
    raise EngineError(f"{path} is in no format of an engine: allowed are {allowed}")


def _as_exported(model: Exported, engine: str, precision: str) -> tuple[str, str]:
    """The file's own engine and precision, where nothing else was asked for."""
    if engine not in ("auto", model.engine):
        raise EngineError(f"{model.path} runs on the engine {model.engine} only, not on {engine!r}")
    if precision not in ("auto", model.precision):
        raise EngineError(f"{model.path} was exported in {model.precision}, not in {precision!r}")
    return model.engine, model.precision


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
