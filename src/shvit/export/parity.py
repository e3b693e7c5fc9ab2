"""Check that an exported file gives the same outputs as PyTorch. The file runs in a new process."""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from .. import engines
from ..data.letterbox import Letterbox
from ..engines.base import Engine
from ..engines.exported import Exported, ExportError
from ..modelfile import ModelFile
from ..tasks.base import Results, Task
from .isolated import latency, pack, run_all, unpack
from .sample import SampleImage

Photo = UInt8[np.ndarray, "h w 3"]


def prove(
    model_file: ModelFile,
    task: Task,
    file: Path,
    images: UInt8[Tensor, "n 3 h w"],
    photos: Sequence[Photo],
    sample: SampleImage,
    precision: str,
    batch: int,
    threads: int | None,
    reference: Engine,
) -> tuple[dict[str, Any], Results]:
    """Compare an exported file with PyTorch on real images, or check its specification if its runtime is not available.

    The logits of the file must be those of PyTorch, divided by the temperature of `model_file`. An end-to-end file is
    compared by its results on `photos`, other files by their outputs for `images`.

    `batch` is the number of images per call. `threads` is the number of CPU threads; None lets the engines choose.
    `reference` is PyTorch's engine for the model.

    Returns:
        `{"ran": True, "parity": …}` or `{"ran": False, "specification": …}`, and the file's results for its sample:
        PyTorch's results if the file did not run.

    Raises:
        ExportError: The file differs from PyTorch, fails in its runtime, or has the wrong specification.
    """
    exported = engines.read(file)
    kind = engines.FORMATS[exported.engine]
    if kind.unavailable("cpu"):
        return {"ran": False, "specification": kind.specification(file)}, sample.expected
    if exported.end_to_end:
        return _results_of_photos(model_file, task, exported, photos, sample, precision, threads, reference)
    pixels = torch.from_numpy(sample.pixels).permute(2, 0, 1)[None]
    outputs = _run(exported, {"images": torch.cat([images, pixels]).numpy()}, batch, threads)
    found, milliseconds = torch.from_numpy(outputs["outputs"]), float(outputs["latency"])
    expected = run_all(reference, images, task.eval_batch(16, 1)) / model_file.calibration.temperature
    numbers, fault = task.compare(found[:-1], expected, precision, images.shape[-1])
    if fault:
        raise ExportError(f"{file.name} is not kept: {fault}")
    measured = {
        "images": len(images),
        **numbers,
        "batch": batch,
        "threads": threads,
        "latency_ms": milliseconds,
        "torch_latency_ms": latency(reference, images[:batch].contiguous()),
    }
    height, width, _ = sample.pixels.shape
    return {"ran": True, "parity": measured}, task.to_results(found[-1:], Letterbox(height, width, 1.0, 1.0))


def _results_of_photos(
    model_file: ModelFile,
    task: Task,
    exported: Exported,
    photos: Sequence[Photo],
    sample: SampleImage,
    precision: str,
    threads: int | None,
    reference: Engine,
) -> tuple[dict[str, Any], Results]:
    """`prove` for an end-to-end file. The latency is that of the first photograph, including preprocessing."""
    given = pack([{"image": photo} for photo in (*photos, sample.pixels)])
    outputs = _run(exported, given, 1, threads)
    milliseconds = float(outputs.pop("latency"))
    *found, of_sample = unpack(outputs)
    read = task.fast_reader(model_file.preprocess)
    inputs, letterboxes = zip(*map(read, photos), strict=True)
    expected = run_all(reference, torch.stack(inputs), task.eval_batch(16, 1)) / model_file.calibration.temperature
    numbers, fault = task.compare_results(found, expected, letterboxes, precision)
    if fault:
        raise ExportError(f"{exported.path.name} is not kept: {fault}")

    def whole(photo: Photo) -> Tensor:
        return reference(read(photo)[0][None].contiguous())

    measured = {
        "images": len(photos),
        **numbers,
        "batch": 1,
        "threads": threads,
        "latency_ms": milliseconds,
        "torch_latency_ms": latency(whole, photos[0]),
    }
    return {"ran": True, "parity": measured}, of_sample


def _run(exported: Exported, arrays: dict[str, np.ndarray], batch: int, threads: int | None) -> dict[str, np.ndarray]:
    """Run the file in a new process; see `isolated`. Raises ExportError if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        given, result = Path(folder) / "images.npz", Path(folder) / "result.npz"
        np.savez(given, allow_pickle=False, **arrays)
        command = [sys.executable, "-m", "shvit.export.isolated", exported.path, given, result, batch, threads or 0]
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, errors="replace")
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise ExportError(f"{exported.path.name} does not run in {exported.engine}: {last}")
        with np.load(result) as found:
            return dict(found)
