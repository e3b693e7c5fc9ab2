"""`shvit predict`."""

import time
from contextlib import closing, nullcontext
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from ..console import images_progress, say
from ..errors import Failure, InputError, notice
from ..requests import Device, Engine, Precision, RawCells
from .app import NONE_TYPED, Flags, Json, console_for, finish

if TYPE_CHECKING:
    from ..data.coco_ids import CocoIds
    from ..engines import Runnable
    from ..predict.predictor import Prediction


def predict(
    model: str,
    paths: Annotated[tuple[str, ...], Parameter(negative=())],
    /,
    *,
    out: Path | None = None,
    annotations: Path | None = None,
    top_k: int = 5,
    threshold: float = 0.3,
    draw: Path | None = None,
    resume: bool = False,
    raw_cells: RawCells = False,
    engine: Engine = "auto",
    precision: Precision = "auto",
    device: Device = "auto",
    threads: int | None = None,
    batch_size: int | None = None,
    workers: Annotated[int | None, Parameter(help="Threads that decode images; default: one a core.")] = None,
    json: Json = False,
    typed: Flags = NONE_TYPED,
) -> None:
    """Label images, or find objects in them. An image that cannot be read becomes a row with the reason, and stops
    nothing.

    Parameters
    ----------
    model
        A model file, or published weights such as shvit_s1.in1k.
    paths
        Files, folders (searched to any depth) and globs.
    out
        A .csv, .jsonl or .parquet file for what was found, of detectors also .json in COCO's format of results;
        default: the screen. Rows are collected in FILE.partial; an existing file is replaced only at the end.
    annotations
        A COCO JSON file, or the dataset's folder, with the ids of images and categories for --out FILE.json. Images
        that it does not list are left out. Default: image ids are guessed from file names.
    top_k
        Labels that a classifier gives each image.
    threshold
        Least score of the objects that a detector gives.
    draw
        A new folder for pictures with boxes, masks, classes and scores.
    resume
        Continue an interrupted run from FILE.partial. Requires the same model, images and flags.
    threads
        CPU threads that one batch runs on; default: several batches at once, on few threads each.
    batch_size
        Images that run at once; default: 16, and 4 of a detector.
    """
    from ..data.images import Skipped
    from ..files import check_folder
    from ..predict.drawing import draw_file, free_name
    from ..predict.journal import check_partial, journal, of_images, of_model
    from ..predict.predictor import Predictor, find_images
    from ..predict.writers import table_writer
    from ..pretrained import load

    console = console_for(json)
    passed = Skipped()
    images = find_images(paths, passed)
    if not images:
        raise InputError(". ".join([f"no images in {', '.join(paths)}", *passed.lines()]))
    for text in passed.lines():
        notice(text)
    runnable = load(model)
    categories = _categories(runnable)
    idle = ("threshold", "draw", "annotations") if categories is None else ("top-k",)
    typed.refuse(*idle, because=f"with {model}, a model to {runnable.task}")
    ids = None
    if categories is not None and out and out.suffix.lower() == ".json":
        ids, categories = _coco_ids(annotations, images, categories)
        images = list(ids.images) if ids else images
    else:
        typed.refuse("annotations", because="without --out FILE.json")
    if not out:
        typed.refuse("resume", because="without --out FILE")
    if not out or out.suffix.lower() != ".csv":
        typed.refuse("raw-cells", because="without --out FILE.csv")
    if draw:
        check_folder(draw, "--draw", new=not resume)
    if out:
        check_partial(out, resume)
    write_table = table_writer(out, top_k, categories, ids, raw_cells) if out else None
    at_once = (16 if categories is None else 4) if batch_size is None else batch_size
    options = {"batch_size": at_once, "top_k": top_k, "threshold": threshold}
    predictor = Predictor(runnable, engine, precision, device, **options, threads=threads, workers=workers)
    if draw:
        draw.mkdir(parents=True, exist_ok=True)
    begun_with = {
        "model": of_model(runnable),
        "list of images": of_images(images),
        "engine": f"{predictor.engine.name} {predictor.engine.precision} {predictor.device} {threads}",
        "batch size": at_once,
        **({"--top-k": top_k} if categories is None else {"--threshold": threshold, "--draw": draw and str(draw)}),
    }
    rows: list[dict[str, Any]] = []
    bad, first_error, pictures = 0, None, set()
    writes = out and write_table and journal(out, begun_with, len(images), at_once, resume, write_table)
    with writes or nullcontext() as kept:
        done, started = kept.done if kept else 0, time.perf_counter()
        with (
            closing(predictor.stream(images[done:], min(at_once, len(images)))) as stream,
            images_progress(shown=bool(out) or not console.is_terminal) as progress,
        ):
            predictions = chain(kept, stream) if kept else stream
            for place, prediction in enumerate(progress.track(predictions, len(images))):
                if prediction.error is not None:
                    bad += 1
                    first_error = first_error or prediction.error
                elif draw:
                    picture = draw / free_name(prediction.path, pictures)
                    if place >= done:
                        draw_file(prediction, runnable.classes, picture)
                if not kept:
                    say(console, line(prediction))
                elif place >= done:
                    kept.write(prediction)
                if json and not out:
                    rows.append(prediction.to_dict())
        speed = (len(images) - done) / (time.perf_counter() - started)
    done = "labelled" if categories is None else "searched"
    say(
        console,
        f"{len(images) - bad} images {done}, {bad} could not be read · {predictor.engine.name} "
        f"{predictor.engine.precision} · {speed:.0f} images/s"
        + "".join(f" · wrote {path}" for path in (out, draw) if path),
    )
    summary = {"images": len(images), "bad_images": bad, "out": str(out) if out else None, "images_per_second": speed}
    finish(json, summary if out else {**summary, "predictions": rows})
    if bad == len(images):
        raise Failure(f"none of the {bad} images could be read, the first because: {first_error}")


def _categories(model: "Runnable") -> dict[str, int] | None:
    """The ids that a detector's classes had in the data it was trained on; None of a classifier."""
    if model.task == "classify":
        return None
    ids = model.provenance.get("categories") or range(1, 1 + len(model.classes))
    return dict(zip(model.classes, ids, strict=True))


def _coco_ids(
    annotations: Path | None, images: list[Path], trained: dict[str, int]
) -> tuple["CocoIds | None", dict[str, int]]:
    """The ids of images, and of the model's classes; without annotations, of the latter as in training."""
    from ..classnames import match_classes
    from ..data.coco_ids import read_ids

    if annotations is None:
        notice("image ids are guessed from file names: --annotations FILE gives those of a COCO dataset")
        return None, trained
    ids, classes = read_ids(annotations, images), list(trained)
    if not ids.images:
        raise InputError(f"none of the {len(images):,} images is listed in {annotations}, the first is {images[0]}")
    if ids.missing:
        notice(
            f"{len(ids.missing):,} of {len(images):,} images are not listed in {annotations} and left out, such as "
            f"{ids.missing[0]}"
        )
    matched = match_classes(tuple(ids.categories), tuple(classes))
    known = {classes[index]: id_ for index, id_ in zip(matched, ids.categories.values(), strict=True)}
    if other := [name for name in classes if name not in known]:
        notice(f"{annotations} has no category for {len(other)} of the model's classes, such as {other[0]}: left out")
    return ids, known


def line(prediction: "Prediction") -> str:
    """One image's line."""
    if prediction.error is not None:
        return f"{prediction.path}  {prediction.error}"
    if prediction.boxes is not None:
        found = zip(prediction.labels, prediction.scores, prediction.boxes, strict=True)
        objects = [f"{name} {score:.0%} ({', '.join(f'{side:.0f}' for side in box)})" for name, score, box in found]
        return f"{prediction.path}  {'  '.join(objects) or 'nothing found'}"
    labels = "  ".join(f"{name} {score:.1%}" for name, score in zip(prediction.labels, prediction.scores, strict=True))
    return f"{prediction.path}  {labels}"
