"""Check that an exported file gives the same outputs as PyTorch. The file runs in a new process."""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Reference:
    """The model in PyTorch, and the images on which its exports are compared with it."""

    model_file: ModelFile
    task: Task
    engine: Engine
    """PyTorch's engine for the model."""
    images: UInt8[Tensor, "n 3 h w"]
    """For exports that take the network's input."""
    photos: Sequence[Photo]
    """For end-to-end exports."""
    sample: SampleImage
    threads: int | None
    """CPU threads of the export. None lets the engine choose."""

    def outputs(self, images: UInt8[Tensor, "n 3 h w"]) -> Tensor:
        """The outputs for these images at temperature 1, as exports return them."""
        return run_all(self.engine, images, self.task.eval_batch(16, 1)) / self.model_file.calibration.temperature


def prove(reference: Reference, file: Path, precision: str, batch: int) -> tuple[dict[str, Any], Results]:
    """Compare an exported file with PyTorch on real images, or check its specification if its runtime is not available.

    The logits of the file must be those of PyTorch, divided by the temperature of the model. An end-to-end file is
    compared by its results on `photos`, other files by their outputs for `images`. `batch` is the number of images per
    call.

    Returns:
        `{"ran": True, "parity": …}` or `{"ran": False, "specification": …}`, and the file's results for its sample:
        PyTorch's results if the file did not run.

    Raises:
        ExportError: The file differs from PyTorch, fails in its runtime, or has the wrong specification.
    """
    exported = engines.read(file)
    kind = engines.FORMATS[exported.engine]
    if kind.unavailable("cpu"):
        return {"ran": False, "specification": kind.specification(file)}, reference.sample.expected
    compare = _compare_results if exported.end_to_end else _compare_outputs
    numbers, fault, latencies, results = compare(reference, exported, precision, batch)
    if fault:
        raise ExportError(f"{file.name} is not kept: {fault}")
    count = len(reference.photos if exported.end_to_end else reference.images)
    settings = {"batch": batch, "threads": reference.threads}
    return {"ran": True, "parity": {"images": count, **numbers, **settings, **latencies}}, results


_Compared = tuple[dict[str, Any], str | None, dict[str, float], Results]
"""The numbers and the fault from the task, the latencies in milliseconds, and the results for the sample."""


def _compare_outputs(reference: Reference, exported: Exported, precision: str, batch: int) -> _Compared:
    task, images = reference.task, reference.images
    pixels = torch.from_numpy(reference.sample.pixels).permute(2, 0, 1)[None]
    given = {"images": torch.cat([images, pixels]).numpy()}
    outputs = _run(exported, given, batch, reference.threads)
    found = torch.from_numpy(outputs["outputs"])
    numbers, fault = task.compare(found[:-1], reference.outputs(images), precision, images.shape[-1])
    latencies = {
        "latency_ms": float(outputs["latency"]),
        "torch_latency_ms": latency(reference.engine, images[:batch].contiguous()),
    }
    height, width, _ = reference.sample.pixels.shape
    return numbers, fault, latencies, task.to_results(found[-1:], Letterbox(height, width, 1.0, 1.0))


def _compare_results(reference: Reference, exported: Exported, precision: str, batch: int) -> _Compared:
    """The latencies are those of the first photograph, including preprocessing."""
    task, photos = reference.task, reference.photos
    given = pack([{"image": photo} for photo in (*photos, reference.sample.pixels)])
    outputs = _run(exported, given, batch, reference.threads)
    milliseconds = float(outputs.pop("latency"))
    *found, of_sample = unpack(outputs)
    read = task.fast_reader(reference.model_file.preprocess)
    inputs, letterboxes = zip(*map(read, photos), strict=True)
    expected = reference.outputs(torch.stack(inputs))
    numbers, fault = task.compare_results(found, expected, letterboxes, precision)
    latencies = {
        "latency_ms": milliseconds,
        "torch_latency_ms": latency(lambda photo: reference.engine(read(photo)[0][None].contiguous()), photos[0]),
    }
    return numbers, fault, latencies, of_sample


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
