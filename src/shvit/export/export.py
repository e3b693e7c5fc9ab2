"""Write a model in the format of another runtime, and check that its outputs match PyTorch's."""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from .. import engines, provenance
from ..data.coco import CocoDataset
from ..data.dataset import Dataset
from ..engines import EngineError, Shapes
from ..engines.base import Candidate, Engine, ExportJob
from ..engines.exported import weights_digest
from ..errors import InputError
from ..files import place, replacing, write_json, writing
from ..modelfile import ModelFile, beside_model
from ..pretrained import load_model
from ..requests.export import ExportRequest
from ..tasks import kind_of, task_of
from ..tasks.labelled_data import open_as_trained
from .accuracy_floor import Judge
from .images import ExportImages, export_images
from .parity import Reference, prove
from .sample import choose_sample, with_scores
from .snippets import check_snippet, snippet
from .temperature import with_folded_temperature

MAX_DROP = 0.5
"""Points of top-1 or AP that int8 may lose by default."""


def export(request: ExportRequest, log: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Export the model of a request. Raises the same errors as `export_model`.

    Returns:
        The report of `export_model`, and `snippet` if the request names a language: a program that reads the file.

    Raises:
        InputError: A field of the request is wrong, or has no effect with this format and precision.
    """
    model_file = load_model(request.model)
    kind = engines.format_of(request.format, model_file)
    default = engines.writable_precisions(model_file, request.format)[0]
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
    shapes = Shapes(request.batch_size, request.dynamic_size)
    if request.snippet is not None:
        check_snippet(request.snippet, request.format, model_file.task, request.end_to_end, shapes)
    source = open_as_trained(request.calibrate, model_file) if request.calibrate else None
    out = request.out or beside_model(request.model, kind.suffix, precision if precision != default else None)
    max_drop = MAX_DROP if request.max_drop is None else request.max_drop
    report = export_model(
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
    return report if request.snippet is None else {**report, "snippet": snippet(request.snippet, engines.read(out))}


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

    A file that fails a check is not kept. Its logits are divided by the temperature of the model, so softmax gives
    calibrated probabilities.

    Args:
        model_file: The model to export.
        engine: The format: a key of `FORMATS`.
        out: The file to write.
        precision: A precision of the format. None: the default of the format.
        shapes: Input sizes that the file takes.
        source: Labelled images: training images calibrate int8, validation images are for its accuracy and for the
            comparison with PyTorch. None: crops of two photographs are compared.
        max_drop: Points of top-1 or AP that int8 may lose on the validation images.
        threads: CPU threads that the file and PyTorch run on. None: the engines choose.
        log: Called with a description of each step.
        end_to_end: Whether the file takes one image of any size, and returns the results of the task.
        overwrite: Whether to replace `out` even if it is not an export of this model.

    Returns:
        The content of the report.

    Raises:
        EngineError: Unknown format or precision, a missing extra, or int8 without images.
        FloorError: int8 loses more than `max_drop`.
        ExportError: The outputs of the file differ from the model's.
        InputError: `out` exists, and is not an export of this model.
    """
    kind, task = engines.format_of(engine, model_file), task_of(model_file)
    precision = _precision(model_file, engine, precision)
    end_to_end = end_to_end or kind.always_end_to_end
    check_target(out, kind, None if overwrite else model_file)
    shapes = engines.checked_shapes(model_file, shapes or Shapes(), kind, end_to_end)
    images = export_images(model_file, task, source, quantized=precision == "int8")
    judge = Judge(task, images.validation, max_drop, log)
    written = _written(model_file)
    job = ExportJob(written, out, precision, shapes, images.calibration, judge, threads, end_to_end)
    return _checked(model_file, kind, job, images, log)


def _checked(
    model_file: ModelFile, kind: type[Engine], job: ExportJob, images: ExportImages, log: Callable[[str], None]
) -> dict[str, Any]:
    """Write the file of a job, its sample and its report, if the file passes all checks. Returns the report."""
    out, task, threads = job.path, task_of(model_file), job.threads
    engine = engines.load(model_file, "torch", "fp32", "cpu", threads)
    chosen = choose_sample(model_file, task, images.photos, f"{out.name}.sample.png", job.end_to_end, engine)
    reference = Reference(model_file, task, engine, images.parity, images.photos, chosen, threads)
    out.parent.mkdir(parents=True, exist_ok=True)
    asked = {"engine": kind.name, "task": model_file.task, "precision": job.precision, "shapes": vars(job.shapes)}
    report: dict[str, Any] = {"file": str(out), **asked, "end_to_end": job.end_to_end}
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".shvit-export-") as folder, writing(out):
        file = Path(folder) / out.name
        log(f"writing {out.name}")
        kind.export(replace(job, path=file, sample=chosen.sample, sample_pixels=chosen.pixels))
        if job.precision == "int8":
            report["floor"] = _judged(job.accept, model_file, file, threads)
        report["bytes"] = sum(part.stat().st_size for part in Path(folder).rglob("*") if part.is_file())
        log("checking the file's specification" if kind.unavailable("cpu") else "comparing the file with PyTorch")
        checked, found = prove(reference, file, job.precision, job.shapes.batch or 1)
        sample = with_scores(chosen.sample, task, found)
        if sample.classes:
            kind.fill_sample(file, chosen.sample, sample)
        with replacing(out.with_name(sample.image)) as temporary:
            Image.fromarray(chosen.pixels).save(temporary, "PNG")
        place(file, out)
    report |= {**checked, "sample": sample.to_dict(), "classes": list(model_file.classes)}
    report["provenance"] = provenance.facts()
    write_json(out.with_name(f"{out.name}.parity.json"), report)
    return report


def _written(model_file: ModelFile) -> ModelFile:
    """The model as it is written: its temperature is part of the weights, and its origin names the original weights."""
    known = {**model_file.provenance, "weights": weights_digest(model_file)}
    return replace(with_folded_temperature(model_file), provenance=known)


def _judged(judge: Any, model_file: ModelFile, file: Path, threads: int | None) -> dict[str, Any]:
    """The accuracy of an int8 file. Evaluates the file unless the engine evaluated candidates during the export."""
    if not judge.floors:
        quantized = engines.load(engines.read(file), threads=threads)
        judge(Candidate(quantized, engines.load(model_file, "torch", "fp32", "cpu", threads)))
    return judge.result().to_dict()


def _precision(model_file: ModelFile, engine: str, precision: str | None) -> str:
    """Return `precision`, or the format's default for None. Raises EngineError if the format lacks this precision."""
    allowed = engines.writable_precisions(model_file, engine)
    if precision is not None and precision not in allowed:
        raise EngineError(f"{engine} has no precision {precision!r}: allowed are {', '.join(allowed)}")
    return precision or allowed[0]


def check_target(out: Path, kind: type[Engine], model_file: ModelFile | None) -> None:
    """Check the path of an export.

    Raises:
        InputError: Its suffix is not that of the format. Or a model is given, and `out` exists and is not an export of
            this model's weights.
    """
    if out.suffix != kind.suffix:
        raise InputError(f"the name of a file in format {kind.name} must end in {kind.suffix}, got {out}")
    if model_file is None or not out.exists():
        return
    try:
        same = engines.read(out).provenance.get("weights") == weights_digest(model_file)
    except InputError:
        same = False
    if not same:
        raise InputError(f"{out} exists and is not an export of this model: give another --out, or --overwrite")
