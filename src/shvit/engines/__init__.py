"""Where a network runs. `load` is the way in; a new engine is one file and one row of `ENGINES`."""

from ..modelfile import ModelFile
from .base import Engine, EngineError
from .torch import TorchEngine

ENGINES: dict[str, type[Engine]] = {"torch": TorchEngine}
"""The fastest first: `auto` takes the first that can run."""

__all__ = ["ENGINES", "Engine", "EngineError", "load"]


def load(
    model_file: ModelFile,
    engine: str = "auto",
    precision: str = "auto",
    device: str = "auto",
    threads: int | None = None,
) -> Engine:
    """An engine that runs this model.

    Args:
        model_file: What to run.
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
    candidates = ENGINES if engine == "auto" else {engine: ENGINES.get(engine)}
    reasons = []
    for name, kind in candidates.items():
        if kind is None:
            raise EngineError(f"unknown engine {name!r}: allowed are auto, {', '.join(ENGINES)}")
        if reason := kind.unavailable(device):
            reasons.append(f"{name}: {reason}")
            continue
        allowed = kind.precisions(device)
        if precision not in ("auto", *allowed):
            raise EngineError(
                f"{name} on {device} has no precision {precision!r}: allowed are auto, {', '.join(allowed)}"
            )
        return kind(model_file, allowed[0] if precision == "auto" else precision, device, threads)
    raise EngineError(f"no engine can run on {device} ({'; '.join(reasons)})")


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
