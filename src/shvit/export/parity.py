"""Check that an exported file gives the same outputs as PyTorch. The file runs in a new process."""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from .. import engines
from ..engines.exported import ExportError
from ..modelfile import ModelFile
from ..tasks.base import Task
from .isolated import latency, run_all


def prove(
    model_file: ModelFile,
    task: Task,
    file: Path,
    images: UInt8[Tensor, "n 3 h w"],
    precision: str,
    batch: int,
    threads: int | None,
) -> dict[str, Any]:
    """Compare an exported file with PyTorch on real images, or check its specification if its runtime is not available.

    The logits of the file must be those of PyTorch, divided by the temperature of `model_file`.

    `batch` is the number of images per call. `threads` is the number of CPU threads; None lets the engines choose.

    Returns:
        `{"ran": True, "parity": …}` or `{"ran": False, "specification": …}`.

    Raises:
        ExportError: The file differs from PyTorch, fails in its runtime, or has the wrong specification.
    """
    exported = engines.read(file)
    kind = engines.FORMATS[exported.engine]
    if kind.unavailable("cpu"):
        return {"ran": False, "specification": kind.specification(file)}
    with tempfile.TemporaryDirectory() as folder:
        pixels, result = Path(folder) / "images.npy", Path(folder) / "result.npz"
        np.save(pixels, images.numpy())
        command = [sys.executable, "-m", "shvit.export.isolated", file, pixels, result, batch, threads or 0]
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, errors="replace")
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise ExportError(f"{file.name} does not run in {exported.engine}: {last}")
        with np.load(result) as found:
            outputs, milliseconds = torch.from_numpy(found["outputs"]), float(found["latency"])
    torch_engine = engines.load(model_file, "torch", "fp32", "cpu", threads)
    expected = run_all(torch_engine, images, task.eval_batch(16, 1)) / model_file.calibration.temperature
    numbers, fault = task.compare(outputs, expected, precision, images.shape[-1])
    if fault:
        raise ExportError(f"{file.name} is not kept: {fault}")
    measured = {
        "images": len(images),
        **numbers,
        "batch": batch,
        "threads": threads,
        "latency_ms": milliseconds,
        "torch_latency_ms": latency(torch_engine, images[:batch].contiguous()),
    }
    return {"ran": True, "parity": measured}
