"""`shvit predict`."""

import time
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..console import images_progress, say
from ..errors import Failure, InputError, counted, notice
from ..requests.predict import PredictRequest
from .app import NONE_TYPED, Flags, Json, console_for, finish
from .flags import Typed

if TYPE_CHECKING:
    from ..engines import Runnable
    from ..predict.journal import Journal
    from ..predict.predictor import Predictor
    from ..tasks.base import Prediction, Task


def predict(request: PredictRequest, *, json: Json = False, typed: Flags = NONE_TYPED) -> None:
    """Predict the labels of images, or the objects in them. An image that cannot be read gets a row with the reason."""
    from ..files import check_folder
    from ..predict.journal import check_partial, journal
    from ..predict.predictor import Predictor, min_score_of
    from ..predict.writers import result_ids, table_writer
    from ..pretrained import load
    from ..tasks import kind_of

    console, out, draw = console_for(json), request.out, request.draw
    images: Sequence[Path] = find_inputs(request.paths)
    model = load(request.model)
    task = kind_of(model)
    refuse_flags(request, task, typed)
    if getattr(model, "end_to_end", False):
        typed.refuse("batch-size", because=f"with {request.model}, an end-to-end file, which takes one image at a time")
    ids, judged = None, min_score_of(model, request.min_score) is not None
    if "annotations" in task.predict_flags and out and out.suffix.lower() == ".json":
        images, ids = result_ids(request.annotations, images, model)
    if draw:
        check_folder(draw, "--draw", new=not request.resume)
    if out:
        check_partial(out, request.resume)
    write_table = table_writer(out, task, request.top_k, ids, request.raw_cells, judged) if out else None
    size = task.predict_batch_size if request.batch_size is None else request.batch_size
    where = request.engine, request.precision, request.device
    options = {"batch_size": size, "top_k": request.top_k, "threads": request.threads, "workers": request.workers}
    predictor = Predictor(model, *where, **options, threshold=request.threshold, min_score=request.min_score)
    if draw:
        draw.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []

    def show(prediction: "Prediction") -> None:
        say(console, f"{prediction.path}  {prediction.error or task.line(prediction)}")
        if json:
            rows.append(prediction.to_dict())

    begun_with = arguments_of(request, task, model, images, predictor)
    writes = out and write_table and journal(out, begun_with, len(images), size, request.resume, write_table)
    with writes or nullcontext() as kept, images_progress(shown=bool(out) or not console.is_terminal) as progress:
        errors, uncertain, speed = run(request, predictor, model.classes, images, kept, show, progress.track)
    bad, engine = len(errors), predictor.engine
    say(
        console,
        f"predicted {counted(len(images) - bad, 'image')}, "
        + (f"{uncertain} uncertain (score below {predictor.min_score:g}), " if judged else "")
        + f"{bad} could not be read · {engine.name} {engine.precision} · {speed:.0f} images/s"
        + "".join(f" · wrote {path}" for path in (out, draw) if path),
    )
    summary = {"images": len(images), "bad_images": bad, "out": str(out) if out else None, "images_per_second": speed}
    if judged:
        summary |= {"min_score": predictor.min_score, "uncertain": uncertain}
    finish(json, summary if out else {**summary, "predictions": rows})
    if bad == len(images):
        raise Failure(f"no image could be read: {errors[0]}")


def find_inputs(paths: Sequence[str]) -> list[Path]:
    """Find the images in `paths`, and print a notice about skipped files. Raises InputError if there are no images."""
    from ..data.images import Skipped
    from ..predict.predictor import find_images

    passed = Skipped()
    images = find_images(paths, passed)
    if not images:
        raise InputError(". ".join([f"no images in {', '.join(paths)}", *passed.lines()]))
    for text in passed.lines():
        notice(text)
    return images


def refuse_flags(request: PredictRequest, task: "type[Task]", typed: Typed) -> None:
    """Raises InputError for flags that have no effect for this task, or with this --out."""
    from ..tasks import TASKS

    flags = dict.fromkeys(flag for kind in TASKS.values() for flag in kind.predict_flags)
    idle = [flag for flag in flags if flag not in task.predict_flags]
    typed.refuse(*idle, because=f"with {request.model}, whose task is {task.name}")
    suffix = request.out.suffix.lower() if request.out else None
    if suffix != ".json":
        typed.refuse("annotations", because="without --out FILE.json")
    if suffix is None:
        typed.refuse("resume", because="without --out FILE")
    if suffix != ".csv":
        typed.refuse("raw-cells", because="without --out FILE.csv")


def arguments_of(
    request: PredictRequest, task: "type[Task]", model: "Runnable", images: Sequence[Path], predictor: "Predictor"
) -> dict[str, Any]:
    """All arguments that affect the rows. If an argument has changed, the error of --resume shows its name."""
    from ..predict.journal import of_images, of_model

    values = {"top-k": request.top_k, "threshold": predictor.threshold, "draw": request.draw and str(request.draw)}
    values["min-score"] = predictor.min_score
    engine = predictor.engine
    return {
        "model": of_model(model),
        "list of images": of_images(images),
        "engine": f"{engine.name} {engine.precision} {predictor.device} {request.threads}",
        "batch size": predictor.batch_size,
        **{f"--{flag}": values[flag] for flag in task.predict_flags if flag in values},
    }


def run(
    request: PredictRequest,
    predictor: "Predictor",
    classes: Sequence[str],
    images: Sequence[Path],
    kept: "Journal | None",
    show: "Callable[[Prediction], None]",
    track: Callable[..., Any],
) -> tuple[list[str], int, float]:
    """Predict all images except those already in the journal `kept`, and add the predictions to the journal.

    Without a journal, `show` is called with each prediction. `track` wraps the predictions to show progress.

    Returns:
        The errors of the images that could not be read, the number of uncertain images, and the speed in images per
        second.
    """
    from ..predict.drawing import draw_file, free_name

    errors: list[str] = []
    names: set[str] = set()
    done, uncertain, started = kept.done if kept else 0, 0, time.perf_counter()
    with closing(predictor.stream(images[done:], min(predictor.batch_size, len(images)))) as stream:
        for index, prediction in enumerate(track(chain(kept or (), stream), len(images))):
            uncertain += prediction.uncertain
            if prediction.error is not None:
                errors.append(prediction.error)
            elif request.draw:
                picture = request.draw / free_name(prediction.path, names)
                if index >= done:
                    draw_file(prediction, classes, picture)
            if kept is None:
                show(prediction)
            elif index >= done:
                kept.write(prediction)
    return errors, uncertain, (len(images) - done) / (time.perf_counter() - started)
