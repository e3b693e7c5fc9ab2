"""Write a model in another runtime's format, and prove that the file computes what the model does."""

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from .. import engines, provenance
from ..data.coco import CocoSplit
from ..data.loader import Batch, Loader, worker_death_as_failure
from ..data.sources import Dataset, Split
from ..engines import openvino
from ..engines.base import Shapes, need_calibration
from ..engines.exported import EngineError, ExportError, described
from ..engines.quantize import CALIBRATION_IMAGES
from ..errors import Failure, InputError
from ..evaluate import choose_split, relabel_for
from ..files import place, write_json, writing
from ..modelfile import ModelFile
from ..tasks import task_of
from . import accuracy_floor as floor
from . import parity
from .isolated import latency, run_all

PARITY_IMAGES = {"classify": 64, "detect": 16, "segment": 16}
"""A detector says far more of each."""
KEPT_BYTES = 2 << 30
"""Of decoded validation images; where there are more, they are decoded anew for each evaluation."""


def export(
    model_file: ModelFile,
    engine: str,
    out: Path,
    precision: str | None = None,
    shapes: Shapes | None = None,
    source: Dataset | None = None,
    max_drop: float = 0.5,
    threads: int | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Write `out` and, beside it, a report of its parity with PyTorch. Whole or not at all: a bad file never appears.

    Args:
        model_file: What to export.
        engine: Which format: a key of `FORMATS`.
        out: The file; a report `OUT.parity.json` goes beside it.
        precision: One of the format's own; None for its default.
        shapes: Sizes of input that the file takes.
        source: Labelled images. int8 is calibrated on its training images and held to the floor on the others, which
            are also what the file is compared with PyTorch on. Without it, two photographs are cut up for that.
        max_drop: Points of top-1, or of AP, that int8 may lose on the labelled images.
        threads: CPU threads of both sides; None leaves the choice to the engines.
        tell: Called with each step, for people.

    Returns:
        The report: file, bytes, parity, floor (int8), specification (formats that cannot run here), and provenance.

    Raises:
        EngineError: No such format or precision, an extra is missing, or int8 without images.
        FloorError: int8 cannot hold `max_drop`.
        ExportError: The file does not compute what the model does.
    """
    kind = engines.format_of(engine, model_file.task)
    allowed = engines.writable_precisions(model_file.task, engine)
    precision = precision or allowed[0]
    if precision not in allowed:
        raise EngineError(f"{engine} has no precision {precision!r}: allowed are {', '.join(allowed)}")
    if out.suffix != kind.suffix:
        raise InputError(f"the format {engine} is a file *{kind.suffix}, got {out}")
    shapes = engines.checked_shapes(model_file, shapes or Shapes())
    calibration = calibration_batches(model_file, source) if source and precision == "int8" else []
    if precision == "int8":
        need_calibration(calibration)
    judged = choose_split(model_file, source).images if source else None
    validation = validation_batches(model_file, source, judged) if source and judged and precision == "int8" else []
    images = parity_images(model_file, judged) if judged else sample_images(model_file)

    out.parent.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"file": str(out), "engine": engine, "precision": precision, "shapes": vars(shapes)}
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".shvit-export-") as folder, writing(out):
        file = Path(folder) / out.name
        tell(f"writing {out.name}")
        if kind is openvino.OpenVINOEngine and precision == "int8":
            network = openvino.convert(model_file, shapes)
            network, held = floor.quantize_within(model_file, network, calibration, validation, max_drop, threads, tell)
            openvino.write(network, described(model_file, file, engine, precision))
            report["floor"] = held.to_dict()
        else:
            kind.export(model_file, file, precision, shapes, calibration)
            if precision == "int8":
                quantized = engines.load(engines.read(file), threads=threads)
                exact = engines.load(model_file, "torch", "fp32", "cpu", threads)
                report["floor"] = floor.check_within(model_file, quantized, exact, validation, max_drop).to_dict()
        report["bytes"] = sum(part.stat().st_size for part in Path(folder).rglob("*") if part.is_file())
        tell(
            "checking its specification"
            if kind.unavailable("cpu")
            else "comparing it with PyTorch, in a process of its own"
        )
        report |= prove(model_file, file, images, precision, shapes.batch or 1, threads)
        place(file, out)
    report["provenance"] = provenance.facts()
    parity_file = out.with_name(f"{out.name}.parity.json")
    write_json(parity_file, report)
    return report


def prove(
    model_file: ModelFile,
    file: Path,
    images: UInt8[Tensor, "n 3 h w"],
    precision: str,
    batch: int,
    threads: int | None,
) -> dict[str, Any]:
    """`{"parity": …}` of an exported file, or `{"specification": …}` where its runtime does not run here.

    Raises:
        ExportError: The file disagrees with PyTorch, fails in its runtime, or its specification is not the model's.
    """
    exported = engines.read(file)
    kind = engines.FORMATS[exported.engine]
    if kind.unavailable("cpu"):  # Core ML, away from a Mac
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
    expected = run_all(torch_engine, images, task_of(model_file).eval_batch(16, 1))
    numbers, fault = parity.compare(model_file, outputs, expected, precision, images.shape[-1])
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


def calibration_batches(model_file: ModelFile, source: Dataset) -> list[Tensor]:
    """Up to 300 training images, drawn evenly, as the network sees them; bad ones are left out."""
    split = _spread(source.train if len(source.train) else source.val, CALIBRATION_IMAGES)
    return [images for images in _images(model_file, split).split(10) if len(images) == min(10, len(split))]


def parity_images(model_file: ModelFile, split: Split | CocoSplit) -> UInt8[Tensor, "n 3 h w"]:
    """Some of the images that accuracy is judged on, drawn evenly."""
    return _images(model_file, _spread(split, PARITY_IMAGES[model_file.task]))


def validation_batches(model_file: ModelFile, source: Dataset, split: Split | CocoSplit) -> Iterable[Batch]:
    """The labelled images that accuracy is judged on: decoded once, where they fit into memory."""
    split = relabel_for(model_file, source, split)
    task = task_of(model_file)
    loader = Loader(split, task.eval_reader(model_file.preprocess), task.eval_batch(25, 1), workers=2)
    kept = 3 * model_file.preprocess.input_size**2 * len(split) <= KEPT_BYTES
    with worker_death_as_failure():
        return list(loader) if kept else loader


def _images(model_file: ModelFile, split: Split | CocoSplit) -> UInt8[Tensor, "n 3 h w"]:
    reader = task_of(model_file).eval_reader(model_file.preprocess)
    batches = [batch.images for batch in Loader(split, reader, 50) if len(batch)]
    if not batches:
        raise Failure(f"none of the {len(split)} images could be used")
    return torch.cat(batches)


def _spread(split: Split | CocoSplit, count: int) -> Split | CocoSplit:
    order = np.random.default_rng(0).permutation(len(split))[:count]
    return split.subset(sorted(int(index) for index in order))


def sample_images(model_file: ModelFile) -> UInt8[Tensor, "n 3 h w"]:
    """Parts of the two photographs that scikit-learn brings, at several scales: real images where none are given."""
    from sklearn.datasets import load_sample_images

    read = task_of(model_file).fast_reader(model_file.preprocess)
    parts = [
        np.ascontiguousarray(photograph[y : y + side, x : x + side])
        for photograph in load_sample_images().images
        for side in (160, 240, 320)
        for x in range(0, 320, 80)
        for y in (0, 60, 100)
    ]
    count = PARITY_IMAGES[model_file.task]
    return torch.stack([read(parts[place * len(parts) // count])[0] for place in range(count)])
