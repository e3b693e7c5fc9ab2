"""Write a model in the format of another runtime, and check that its outputs match PyTorch's."""

import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from .. import engines, provenance
from ..data.coco import CocoDataset, CocoSplit
from ..data.dataset import Dataset, Split
from ..data.decode import BadImage, decode
from ..data.loader import Batch, Loader, worker_death_as_failure
from ..data.transforms import Preprocess
from ..engines import EngineError, Shapes
from ..engines.base import Candidate, ExportJob, need_calibration
from ..engines.exported import weights_digest
from ..engines.quantize import CALIBRATION_IMAGES
from ..errors import Failure, InputError
from ..files import place, replacing, write_json, writing
from ..modelfile import ModelFile, beside_model
from ..pretrained import load_model
from ..requests.export import ExportRequest
from ..tasks import kind_of, task_of
from ..tasks.base import Task
from ..tasks.labelled_data import choose_split, open_as_trained, relabel_for
from .accuracy_floor import Judge
from .parity import prove
from .sample import choose_sample
from .temperature import with_folded_temperature

MAX_DROP = 0.5
"""Points of top-1 or AP that int8 may lose by default."""
KEPT_BYTES = 2 << 30
"""Maximum size of decoded validation images to keep in memory. Larger splits are decoded again for each evaluation."""


def export(request: ExportRequest, log: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Export the model of a request. Returns the same report and raises the same errors as `export_model`.

    Raises:
        InputError: A field of the request is wrong, or has no effect with this format and precision.
    """
    model_file = load_model(request.model)
    kind = engines.format_of(request.format, model_file.task)
    default = engines.writable_precisions(model_file.task, request.format)[0]
    precision = request.precision or default
    if precision != "int8" and request.max_drop is not None:
        raise InputError(f"--max-drop has no effect in {precision}, only in int8: leave it out")
    if kind.unavailable("cpu") and request.threads is not None:
        raise InputError(
            f"--threads has no effect with --format {request.format}, whose files cannot run here: leave it out"
        )
    if request.image_size is not None:
        fit = kind_of(model_file).new_fit(model_file.preprocess.fit)
        preprocess = replace(model_file.preprocess, image_size=request.image_size, fit=fit)
        model_file = replace(model_file, preprocess=preprocess)
    source = open_as_trained(request.calibrate, model_file) if request.calibrate else None
    out = request.out or beside_model(request.model, kind.suffix, precision if precision != default else None)
    shapes = Shapes(request.batch_size, request.dynamic_size)
    max_drop = MAX_DROP if request.max_drop is None else request.max_drop
    return export_model(
        model_file,
        request.format,
        out,
        precision,
        shapes,
        source,
        max_drop,
        request.threads,
        log,
        end_to_end=request.end_to_end,
        overwrite=request.overwrite,
    )


def export_model(
    model_file: ModelFile,
    engine: str,
    out: Path,
    precision: str | None = None,
    shapes: Shapes | None = None,
    source: Dataset | CocoDataset | None = None,
    max_drop: float = MAX_DROP,
    threads: int | None = None,
    log: Callable[[str], None] = lambda _: None,
    *,
    end_to_end: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write `out`, and beside it the report `OUT.parity.json` and the image `OUT.sample.png` with known scores.

    A file that fails a check is not kept.

    The logits in the file are divided by the temperature of the model, so softmax gives calibrated probabilities.

    Args:
        model_file: The model to export.
        engine: The format: a key of `FORMATS`.
        out: The file to write.
        precision: A precision of the format. None: the default of the format.
        shapes: Input sizes that the file takes.
        source: Labelled images. int8 is calibrated on training images and evaluated on validation images. Every file is
            compared with PyTorch on validation images. None: crops of two photographs are used.
        max_drop: Points of top-1 or AP that int8 may lose on the validation images.
        threads: CPU threads that the file and PyTorch run on. None leaves the choice to the engines.
        log: Called with a description of each step.
        end_to_end: Whether the file takes one image of any size, and returns the results of the task.
        overwrite: Whether to replace `out` even if it is not an export of this model.

    Returns:
        The content of the report: file, bytes, parity or specification, floor (only for int8), sample, provenance and
        options.

    Raises:
        EngineError: Unknown format or precision, a missing extra, or int8 without images.
        FloorError: int8 loses more than `max_drop`.
        ExportError: The outputs of the file differ from the model's.
        InputError: `out` exists, and is not an export of this model.
    """
    kind, task = engines.format_of(engine, model_file.task), task_of(model_file)
    precision = _precision(model_file.task, engine, precision)
    if out.suffix != kind.suffix:
        raise InputError(f"the name of a file in format {engine} must end in {kind.suffix}, got {out}")
    if not overwrite:
        check_free(out, model_file)
    shapes = engines.checked_shapes(model_file, shapes or Shapes(), kind, end_to_end)
    samples = _export_images(model_file, task, source, quantized=precision == "int8")
    judge = Judge(task, samples.validation, max_drop, log)

    out.parent.mkdir(parents=True, exist_ok=True)
    chosen = {"engine": engine, "task": model_file.task, "precision": precision, "shapes": vars(shapes)}
    report: dict[str, Any] = {"file": str(out), **chosen, "end_to_end": end_to_end}
    reference = engines.load(model_file, "torch", "fp32", "cpu", threads)
    chosen_sample = choose_sample(model_file, task, samples.photos, f"{out.name}.sample.png", end_to_end, reference)
    sample = chosen_sample.sample
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".shvit-export-") as folder, writing(out):
        file = Path(folder) / out.name
        log(f"writing {out.name}")
        written = with_folded_temperature(model_file)
        kind.export(
            ExportJob(written, file, precision, shapes, samples.calibration, judge, threads, end_to_end, sample)
        )
        if precision == "int8":
            report["floor"] = _judged(judge, model_file, file, threads)
        report["bytes"] = sum(part.stat().st_size for part in Path(folder).rglob("*") if part.is_file())
        log("checking the file's specification" if kind.unavailable("cpu") else "comparing the file with PyTorch")
        checked, found = prove(
            model_file,
            task,
            file,
            samples.parity,
            samples.photos,
            chosen_sample,
            precision,
            shapes.batch or 1,
            threads,
            reference,
        )
        scores = tuple(round(score, 6) for score in task.scores_of(found, sample.classes, sample.boxes))
        known = replace(sample, scores=scores)
        if scores:
            kind.fill_sample(file, sample, known)
        report |= {**checked, "sample": known.to_dict()}
        with replacing(out.with_name(sample.image)) as temporary:
            Image.fromarray(chosen_sample.pixels).save(temporary, "PNG")
        place(file, out)
    report["provenance"] = provenance.facts()
    write_json(out.with_name(f"{out.name}.parity.json"), report)
    return report


def _judged(judge: Judge, model_file: ModelFile, file: Path, threads: int | None) -> dict[str, Any]:
    """The accuracy of an int8 file. Evaluates the file unless the engine evaluated candidates during the export."""
    if not judge.floors:
        quantized = engines.load(engines.read(file), threads=threads)
        judge(Candidate(quantized, engines.load(model_file, "torch", "fp32", "cpu", threads)))
    return judge.result().to_dict()


def _precision(task: str, engine: str, precision: str | None) -> str:
    """Return `precision`, or the format's default for None. Raises EngineError if the format lacks this precision."""
    allowed = engines.writable_precisions(task, engine)
    if precision is not None and precision not in allowed:
        raise EngineError(f"{engine} has no precision {precision!r}: allowed are {', '.join(allowed)}")
    return precision or allowed[0]


@dataclass(frozen=True)
class ExportImages:
    """The images that an export needs."""

    parity: UInt8[Tensor, "n 3 h w"]
    """Images for comparing the file with PyTorch."""
    calibration: Sequence[UInt8[Tensor, "b 3 h w"]] = ()
    """Images for measuring the value ranges for int8."""
    validation: Iterable[Batch] = ()
    """Batches of labelled images for evaluating int8."""
    photos: Sequence[UInt8[np.ndarray, "h w 3"]] = ()
    """Upright images of different sizes."""


def _export_images(
    model_file: ModelFile, task: Task, source: Dataset | CocoDataset | None, quantized: bool
) -> ExportImages:
    preprocess = model_file.preprocess
    calibration = _calibration(task, preprocess, source) if quantized and source else ()
    if quantized:
        need_calibration(calibration)
    if source is None:
        photos = sample_photos(task.parity_images)
        read = task.fast_reader(preprocess)
        return ExportImages(torch.stack([read(photo)[0] for photo in photos]), photos=photos)
    split = choose_split(model_file, source).images
    validation = _validation(task, preprocess, relabel_for(model_file, source, split)) if quantized else ()
    compared = _spread(split, task.parity_images)
    return ExportImages(_images(task, preprocess, compared), calibration, validation, _photos(compared))


def _calibration(task: Task, preprocess: Preprocess, source: Dataset | CocoDataset) -> list[Tensor]:
    """Up to 300 randomly chosen training images, in batches of 10. Bad images are left out."""
    split = _spread(source.train if len(source.train) else source.val, CALIBRATION_IMAGES)
    return [images for images in _images(task, preprocess, split).split(10) if len(images) == min(10, len(split))]


def _validation(task: Task, preprocess: Preprocess, split: Split | CocoSplit) -> Iterable[Batch]:
    """Batches of the labelled images. If all images take at most `KEPT_BYTES`, they are kept in memory."""
    loader = Loader(split, task.eval_reader(preprocess), task.eval_batch(25, 1), workers=2)
    kept = 3 * preprocess.input_size**2 * len(split) <= KEPT_BYTES
    with worker_death_as_failure():
        return list(loader) if kept else loader


def _images(task: Task, preprocess: Preprocess, split: Split | CocoSplit) -> UInt8[Tensor, "n 3 h w"]:
    batches = [batch.images for batch in Loader(split, task.eval_reader(preprocess), 50) if len(batch)]
    if not batches:
        raise Failure(f"none of the {len(split)} images could be used")
    return torch.cat(batches)


def _spread(split: Split | CocoSplit, count: int) -> Split | CocoSplit:
    """Up to `count` images in their original order, chosen at random with a fixed seed."""
    order = np.random.default_rng(0).permutation(len(split))[:count]
    return split.subset(sorted(int(index) for index in order))


def _photos(split: Split | CocoSplit) -> list[UInt8[np.ndarray, "h w 3"]]:
    """The images of a split that can be decoded, upright and at full size."""
    photos = []
    for index in range(len(split)):
        with suppress(BadImage):
            photos.append(np.asarray(decode(split.source(index))))
    return photos


def sample_photos(count: int) -> list[UInt8[np.ndarray, "h w 3"]]:
    """Crops of scikit-learn's two sample photographs, at several scales and shapes."""
    from sklearn.datasets import load_sample_images

    crops = [
        np.ascontiguousarray(photograph[y : y + height, x : x + width])
        for photograph in load_sample_images().images
        for height, width in ((160, 160), (240, 320), (320, 240))
        for x in range(0, 320, 80)
        for y in (0, 60, 100)
    ]
    return [crops[index * len(crops) // count] for index in range(count)]


def check_free(out: Path, model_file: ModelFile) -> None:
    """Raise InputError if `out` exists, and is not an export of the same weights."""
    if not out.exists():
        return
    try:
        same = engines.read(out).provenance.get("weights") == weights_digest(model_file)
    except InputError:
        same = False
    if not same:
        raise InputError(f"{out} exists and is not an export of this model: give another --out, or --overwrite")
