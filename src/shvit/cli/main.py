"""The verbs. Heavy imports happen inside them, so that help is instant; what they say is in wording.py."""

import ctypes
import inspect
import re
import signal
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import dataclass, fields, make_dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from cyclopts import App, CycloptsError, Parameter
from rich.console import Console
from rich.markup import escape

from ..console import images_progress, say, takes_all, visible
from ..errors import Failure, InputError, Notice, notice
from ..files import FULL
from ..redact import redacted
from ..train.recipe import RECIPES, Recipe
from . import wording
from .flags import Typed

if TYPE_CHECKING:
    from ..data.coco_ids import CocoIds
    from ..engines import Runnable
    from ..study.accuracy import Training
    from ..study.speeds import SpeedOptions
    from ..study.verbs import Written
    from ..train.loop import Result
    from ..train.report import Reporter

INTERRUPTED = 130
"""Exit code after Ctrl-C, as of any program that a shell stops."""
RESUME_ME = 75
"""Exit code after SIGTERM, which clusters send before they take a machine away: EX_TEMPFAIL, to be tried again."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's `mallopt`."""

app = App(
    name="shvit",
    help="Real-time vision models on the hardware people have. Start with: shvit demo",
    help_format="plaintext",
    version_flags=["--version"],
    default_parameter=Parameter(negative=()),
)

Flags = Annotated[Typed, Parameter(parse=False)]
"""Which flags were typed: `main` gives it to the verbs that ask for it."""
NONE_TYPED = Typed()
Json = Annotated[bool, Parameter("--json", help="Print one JSON document on stdout, and nothing else there.")]
Engine = Annotated[str, Parameter(help="auto, or an engine by name: cuda, onnx, openvino, torch, executorch, coreml.")]
Precision = Annotated[
    str, Parameter(help="auto, fp32, bf16 where the processor has it, fp16 on GPUs; an int8 file is int8.")
]
Device = Annotated[str, Parameter(help="auto, cpu, cuda, cuda:1, mps.")]
T = TypeVar("T")
Many = Annotated[tuple[T, ...], Parameter(consume_multiple=True, negative=(), show_default=False)]
RawCells = Annotated[
    bool,
    Parameter(
        help="Do not escape CSV cells. By default, cells that a spreadsheet would run as a formula begin with a '."
    ),
]
Workers = Annotated[int, Parameter(help="Processes that decode images; 0 decodes in the main one.")]

RecipeSettings = make_dataclass(
    "RecipeSettings",
    [
        (
            entry.name,
            Annotated[entry.type | None, Parameter(help=entry.metadata["help"], show_default=False)],  # pyright: ignore
            None,
        )
        for entry in fields(Recipe)
        if "help" in entry.metadata
    ],
    namespace={"__module__": __name__},
)
"""A flag for each field of a recipe; None where the user did not name it."""


def _flow(*apps: App) -> None:
    """Puts each paragraph of the verbs' docstrings on one line, since help keeps their line ends as they are."""
    paragraph = re.compile(r"^( *)(?! |-+$)\S.*(?:\n\1(?! |-+$)\S.*)+", re.MULTILINE)
    for verb in (each[name].default_command for each in apps for name in each):
        if inspect.isfunction(verb):
            text = inspect.getdoc(verb) or ""
            verb.__doc__ = paragraph.sub(lambda found: found[1] + " ".join(found[0].split()), text)


def _return_large_blocks() -> None:
    """Let glibc return freed blocks of 8 MiB and more to the system. By default each thread keeps ever larger ones."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 8 << 20)
        mallopt(M_TRIM_THRESHOLD, 32 << 20)


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 a failure, 2 the user's input is wrong."""
    _return_large_blocks()
    for stream in (sys.stdout, sys.stderr):
        takes_all(stream)
    errors = Console(stderr=True, soft_wrap=True)
    warnings.showwarning = partial(_show_warning, errors, warnings.showwarning)
    verb = bound = None
    try:
        verb, bound, asked = app.parse_args(sys.argv[1:], exit_on_error=False, print_error=False)
        verb(*bound.args, **bound.kwargs, **dict.fromkeys(asked, Typed.of(sys.argv[1:])))
        sys.stdout.flush()
    except (InputError, CycloptsError) as error:
        errors.print(f"[bold red]error:[/bold red] {escape(_one_line(error))}", highlight=False)
        sys.exit(2)
    except (Failure, OSError) as error:
        errors.print(f"[bold red]failed:[/bold red] {escape(_one_line(error))}", highlight=False)
        sys.exit(1)
    except KeyboardInterrupt as stop:
        kept = str(stop) or (_kept(bound.arguments) if verb is train and bound else "")
        say(errors, f"stopped: {kept}" if kept else "stopped")
        sys.exit(INTERRUPTED)


@app.command
def demo(*, out: Path = Path("runs/demo"), json: Json = False) -> None:
    """The whole journey on 1,797 handwritten digits: train, eval, export, bench, predict. No network needed.

    Parameters
    ----------
    out
        A new folder for the run; a number is added to the name where it exists.
    """
    from .demo import run_demo

    out = _free_folder(out)
    console = _console(json)
    _finish(json, run_demo(out, console))


@app.command
def train(
    data: str,
    *,
    out: Path | None = None,
    model: str | None = None,
    recipe: Annotated[
        str | None, Parameter(help=f"{', '.join(RECIPES)}; default: scratch, or small for objects.")
    ] = None,
    task: Literal["classify", "detect", "segment"] | None = None,
    resume: bool = False,
    device: Device = "auto",
    workers: Workers = 2,
    save_every: int = 500,
    teacher_cache: Path | None = None,
    track: Literal["tensorboard"] | None = None,
    profile: bool = False,
    settings: Annotated[RecipeSettings | None, Parameter(name="*", group="Recipe")] = None,  # pyright: ignore
    json: Json = False,
    typed: Flags = NONE_TYPED,
) -> None:
    """Train a network on your labelled images, or on images with boxes or masks.

    Exit codes: 0 done; 75 stopped by SIGTERM and 130 by Ctrl-C, both to be gone on with by --resume; 1 a failure;
    2 wrong input. Several GPUs, or machines: torchrun --nproc-per-node 8 -m shvit train …

    Parameters
    ----------
    data
        A folder with train/<class>/… and val/<class>/…, a folder with <class>/…, a CSV of path,label, WebDataset shards
        (a folder of them, shards.json or data-{000..127}.tar, each by path or URL), hf://NAME or hf://./FOLDER for a
        data set of the Hugging Face hub, or digits. For detect and segment a COCO folder:
        annotations/instances_train….json and instances_val….json, or train/_annotations.coco.json and valid/ as
        Roboflow writes.
    out
        A new folder for the run: best.safetensors, last.safetensors, metrics.jsonl, curves.png and more. Not needed by
        --profile.
    model
        shvit_s1 to shvit_s4, timm/NAME, published weights such as shvit_s1.in1k, or a model file to go on from;
        default: shvit_s1.
    task
        classify, detect (RetinaNet) or segment (Mask R-CNN); default: classify.
    resume
        Continue the run in --out at the step where it stopped, or was killed, from the last state that was saved.
    save_every
        Steps from one state on disk to the next; one is also saved at the end of each epoch.
    teacher_cache
        A folder for what the teacher of a distillation says, so that it sees each view of an image once: for runs that
        mix no images, best with --views.
    track
        tensorboard: write curves into the run's folder tensorboard, too.
    profile
        Do not train: tell how fast images are read, how fast they are learnt from, and which of the two is the
        bottleneck.
    """
    from ..train.distributed import World
    from ..train.report import Reporter
    from ..train.run import profile as measure
    from ..train.run import train as run

    chosen = {entry.name: getattr(settings, entry.name) for entry in fields(RecipeSettings)} if settings else {}
    console, leads = _console(json), World.from_environment().leads
    if profile:
        idle = "out", "resume", "track", "teacher-cache", "save-every"
        typed.refuse(*idle, because="with --profile, which trains and writes nothing")
        if leads:
            wording.profiling(console)
        found = measure(data, model, recipe, task=task, settings=chosen, device=device, workers=workers)
        if leads:
            wording.profiled(console, found)
            _finish(json, found.to_dict())
        return
    if out is None:
        raise InputError("train needs --out: a new folder for the run or, with --resume, that of the run to continue")
    result = run(
        data,
        model,
        recipe,
        out,
        task=task,
        settings=chosen,
        resume=resume,
        reporter=Reporter(console),
        device=device,
        workers=workers,
        save_every=save_every,
        teacher_cache=teacher_cache,
        track=track,
    )
    if not leads:
        sys.exit(_exit_code(result))
    wording.trained(console, result, data)
    _finish(json, {"out": str(out), "best": str(out / "best.safetensors") if result.best else None, **result.to_dict()})
    if result.interrupted:
        sys.exit(_exit_code(result))


@app.command(name="eval")
def evaluate(
    model: str,
    data: str,
    *,
    engine: Engine = "auto",
    precision: str | None = None,
    device: Device = "auto",
    threads: int | None = None,
    batch_size: int | None = None,
    workers: Workers = 2,
    split: Literal["auto", "train", "val", "all"] = "auto",
    fit: Literal["crop", "squash"] | None = None,
    out: Path | None = None,
    raw_cells: RawCells = False,
    json: Json = False,
) -> None:
    """Measure a model's accuracy on labelled images: top-1, or COCO's numbers for boxes and masks.

    Parameters
    ----------
    model
        A model file, or published weights such as shvit_s1.in1k.
    data
        As for train: folder, CSV, shards, hf://NAME or digits; for detectors a COCO folder. Classes are matched with
        the model's by name: the exact name first, then synonyms in any case. A name that fits two classes is an error.
    precision
        fp32, bf16, fp16, or auto for the fastest that loses nothing to speak of; default: fp32, and of an exported file
        its own.
    threads
        CPU threads of the engine.
    batch_size
        Images that run at once; default: 64, and 8 of a detector.
    split
        auto: the validation images, or all where the data has no splits and is not what the model was trained on.
        auto and val leave out the images that the model was trained on, which are recognised by their content.
    fit
        What a classifier sees of an image. crop: the centre. squash: the whole image, resized to a square, as the
        authors evaluate fine-tuned networks. Default: what the model file says.
    out
        A folder for metrics.json, per_class.csv and, of classifiers, confusion.csv and confusion.png.
    """
    from .. import engines
    from ..evaluate import evaluate as run
    from ..evaluate import open_as_trained, seen_as, write_report
    from ..files import check_folder
    from ..pretrained import load

    console = _console(json)
    if out:
        check_folder(out)
    elif raw_cells:
        raise InputError("--raw-cells has no effect without --out: leave it out")
    model_file = seen_as(load(model), fit)
    source = open_as_trained(data, model_file)
    precision = precision or ("auto" if isinstance(model_file, engines.Exported) else "fp32")
    runner = engines.load(model_file, engine, precision, device, threads)
    at_once = (64 if model_file.task == "classify" else 8) if batch_size is None else batch_size
    report = run(model_file, runner, source, split, at_once, workers)
    files = write_report(report, out, raw_cells) if out else []
    wording.evaluated(console, report, runner, files)
    about = {
        "model": model,
        "data": redacted(data),
        "engine": runner.name,
        "precision": runner.precision,
        "fit": model_file.preprocess.fit,
        "files": [str(path) for path in files],
    }
    _finish(json, {**report.to_dict(), **about})


@app.command
def shard(
    data: str,
    *,
    out: Path,
    size: int = 512,
    per_shard: int = 1000,
    quality: int = 95,
    workers: Workers = 2,
    seed: int = 0,
    val_share: float | None = None,
    max_bad_share: float = 0.2,
    json: Json = False,
) -> None:
    """Pack labelled images, resized once, into WebDataset shards: for data that is large or lies elsewhere.

    Started again after a stop, it goes on where it was; a folder that is complete is only checked.

    Parameters
    ----------
    data
        As for train: folder, CSV, shards, hf://NAME or digits.
    out
        A new folder for train-000000.tar, …, val-000000.tar, … and shards.json; or that of the run to continue.
    size
        Shorter side of the images in pixels. None is enlarged, and JPEGs that are small enough are copied as they are.
    per_shard
        Images a shard, at most.
    quality
        Of the JPEGs that are written anew, 1 to 100.
    seed
        Shuffles the training images, and draws validation images where the data has no splits.
    val_share
        Share of the images that is held out for validation; default: 0.2. For data without a validation split.
    max_bad_share
        Share of the images that may be unusable; bad_images.csv lists them.
    """
    from ..data.shards.writer import write_shards

    console = _console(json)
    options = {"seed": seed, "val_share": val_share, "max_bad_share": max_bad_share}
    try:
        with images_progress(shown=True) as progress:
            bar = progress.add_task("", total=None)
            written = write_shards(
                data,
                out,
                size,
                per_shard,
                quality,
                workers,
                progress=lambda done, total: progress.update(bar, completed=done, total=total),
                **options,
            )
    except KeyboardInterrupt:
        say(console, f"stopped; the same command goes on with the shards that are missing in {out}")
        sys.exit(INTERRUPTED)
    for text in written.warnings:
        notice(text)
    wording.sharded(console, written)
    _finish(json, written.to_dict())


@app.command
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
    from ..data.images import PassedOver
    from ..files import check_folder
    from ..predict.drawing import draw_file, free_name
    from ..predict.journal import check_partial, journal, of_images, of_model
    from ..predict.predictor import Predictor, find_images
    from ..predict.writers import table_writer
    from ..pretrained import load

    console = _console(json)
    passed = PassedOver()
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
                    say(console, wording.prediction(prediction))
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
    _finish(json, summary if out else {**summary, "predictions": rows})
    if bad == len(images):
        raise Failure(f"none of the {bad} images could be read, the first because: {first_error}")


@app.command
def export(
    model: str,
    *,
    format: str,
    precision: str | None = None,
    out: Path | None = None,
    calibrate: str | None = None,
    max_drop: float = 0.5,
    image_size: int | None = None,
    batch_size: int | None = None,
    dynamic_size: bool = False,
    threads: int | None = None,
    json: Json = False,
    typed: Flags = NONE_TYPED,
) -> None:
    """Write a model for another runtime; the file is read back in a new process and compared with PyTorch.

    A file that disagrees is not kept. Otherwise a report of the comparison is written beside it.

    Parameters
    ----------
    model
        A model file, or published weights such as shvit_s1.in1k.
    format
        onnx (.onnx), openvino (.xml and .bin), coreml (.mlpackage), executorch (.pte), torch (.pt2), or timm: a folder
        (.timm) that timm.create_model("local-dir:FOLDER", pretrained=True) loads.
    precision
        fp32, fp16, bf16 or int8, as far as the format has it; default: the format's own.
    out
        The file; default: beside the model file, under its name.
    calibrate
        Labelled images, as for train: int8 is calibrated on them, and any file compared with PyTorch on them.
    max_drop
        Points of top-1, or of AP, that int8 may lose on the validation images; costly layers go back to higher
        precision.
    image_size
        Side of the images in pixels; default: the model's own. A detector's images then fit into that square.
    batch_size
        Images at once; default: any number, where the format can.
    dynamic_size
        Take images of any height and width: onnx and torch from 65 pixels, openvino from 32. Not of detectors.
    threads
        CPU threads for the comparison of speed.
    """
    from dataclasses import replace

    from ..engines import format_of, writable_precisions
    from ..engines.base import Shapes
    from ..evaluate import open_as_trained
    from ..export.export import export as run
    from ..pretrained import load_model

    console = _console(json)
    model_file = load_model(model)
    kind = format_of(format, model_file.task)
    if image_size is not None:
        fit = model_file.preprocess.fit if model_file.task == "classify" else "whole"
        model_file = replace(model_file, preprocess=replace(model_file.preprocess, image_size=image_size, fit=fit))
    source = open_as_trained(calibrate, model_file) if calibrate else None
    usual = writable_precisions(model_file.task, format)[0]
    if (precision or usual) != "int8":
        typed.refuse("max-drop", because=f"in {precision or usual}, only in int8")
    if kind.unavailable("cpu"):
        typed.refuse("threads", because=f"with --format {format}, whose files cannot be run and timed here")
    target = out or _export_path(model, kind.suffix, precision if precision != usual else None)
    report = run(
        model_file,
        format,
        target,
        precision,
        Shapes(batch_size, dynamic_size),
        source,
        max_drop,
        threads,
        lambda text: say(console, text),
    )
    for line in wording.exported(report):
        say(console, line)
    _finish(json, report)


@app.command(name="calibrate-bn")
def calibrate_bn(
    model: str,
    data: str,
    *,
    image_size: int,
    out: Path | None = None,
    images: int = 4096,
    batch_size: int = 64,
    device: Device = "auto",
    workers: Workers = 2,
    json: Json = False,
) -> None:
    """Adapt a model to another image size without training: measure the statistics of its BatchNorms anew.

    Parameters
    ----------
    model
        A model file, or published weights such as shvit_s1.in1k.
    data
        As for train; statistics come from training images, the top-1 before and after from validation images.
    image_size
        Side of the images in pixels.
    out
        The new model file; default: beside the old one, its name with the size.
    images
        Training images used at most.
    """
    from ..calibrate import calibrate_bn as run
    from ..evaluate import open_as_trained
    from ..modelfile import save
    from ..pretrained import load_model

    console = _console(json)
    model_file = load_model(model)
    source = open_as_trained(data, model_file)
    result = run(model_file, source, image_size, images, batch_size, workers, device)
    target = out or _export_path(model, ".safetensors", str(image_size))
    save(result.model_file, target)
    wording.calibrated(console, result, target)
    _finish(json, {"out": str(target), **result.to_dict()})


@app.command
def models(*, json: Json = False) -> None:
    """List the networks and the published weights."""
    import torch

    from ..model.architecture import Architecture, list_models
    from ..model.cost import cost
    from ..pretrained import PUBLISHED_TOP1

    rows = []
    for name in list_models():
        with torch.device("meta"):
            model = Architecture(name).build()
        total = cost(model, (model.image_size, model.image_size))
        published = f"{name}.in1k"
        rows.append(
            {
                "name": name,
                "image_size": model.image_size,
                "params": total.params,
                "macs": total.macs,
                "published_weights": published,
                "published_top1": PUBLISHED_TOP1[published] / 100,
            }
        )
    console = _console(json)
    wording.models(console, rows)
    _finish(json, rows)


@app.command
def bench(
    models: Annotated[tuple[str, ...], Parameter(show_default=False)] = (),
    /,
    *,
    engine: Many[str] = (),
    precision: Many[str] = (),
    batch_size: Many[int] = (),
    image_size: Many[int] = (),
    threads: int | None = None,
    device: Device = "auto",
    protocol: str | None = None,
    rounds: int = 10,
    task: Literal["classify", "detect", "segment"] = "classify",
    profile: bool = False,
    out: Path | None = None,
    plot: Path | None = None,
    json: Json = False,
    typed: Flags = NONE_TYPED,
) -> None:
    """Measure how fast networks run here, side by side, and what share of the machine they use.

    All are timed in turn, round after round, so that what else the machine does slows each of them alike. A flag that
    takes several values takes them after one another or by being repeated; name the models before the flags.

    Parameters
    ----------
    models
        shvit_s1 to shvit_s4 and timm/NAME (random weights), published names, model files, exported files; default:
        SHViT and nine peers. Exported files run as they were written, at their own size.
    engine
        Engines by name; default: all that can run here, or, where no models are named, the fastest of them. By name
        only: torch-eager, torch-compiled (max-autotune, the better of NCHW and channels_last) and torch-traced (as the
        paper measured).
    precision
        fp32, bf16, int8, …; default: all that each engine has here. Bare names are quantised on random images.
    batch_size
        Images a call; default: 16.
    image_size
        Sides of the images in pixels; default: each model's own.
    threads
        CPU threads; default: as many as each engine takes by itself.
    protocol
        How the paper measured: paper-cpu, paper-onnx or paper-gpu; fixes all but the models, and shows its numbers.
    rounds
        How often each is timed.
    task
        detect, segment: time each model as the backbone of a detector and as that detector, from pixels to boxes;
        defaults are then SHViT, two peers and torchvision's detectors on torch, at 512 pixels, batch 16 (GPUs: 32) and
        1. torchvision/NAME is a detector of torchvision; it runs on torch-eager.
    profile
        Also show where the time of each goes: kernels, and for the engine cuda what each must do at least.
    out
        A .json file, or a folder for bench_<hardware>_<date>.json (of detectors, bench-detect_…).
    plot
        A .png file: accuracy against speed, published or of a file its own; or latency against resolution, where
        --image-size has several values.
    """
    from ..bench.case import runs_as_it_is
    from ..bench.figures import draw
    from ..bench.plan import Request
    from ..bench.report import check_paths, show, watching, write_json
    from ..bench.run import bench as run
    from ..engines import is_exported

    console = _console(json)
    check_paths(out, plot)
    if models and all(map(runs_as_it_is, models)):
        typed.refuse(
            "engine", "precision", because=f"on what runs in its own engine and precision ({', '.join(models)})"
        )
    if models and all(map(is_exported, models)):
        typed.refuse("image-size", because=f"on exported files, which have their own size ({', '.join(models)})")
    if plot and task != "classify":
        raise InputError("--plot is for classifiers: leave out --plot or --task")
    request = Request(
        models, engine, precision, batch_size, image_size, threads, device, rounds, protocol, task, profile
    )
    with watching(console) as progress:
        result = run(request, progress)
    show(console, result)
    if out:
        say(console, f"wrote {write_json(result, out)}")
    if plot:
        say(console, f"wrote {plot}" if draw(result, plot) else "nothing to plot: no accuracy of these is known")
    _finish(json, result.to_dict())


study = App(
    name="study",
    help="The paper's analyses, on its networks or on yours. Each writes a folder: report.html, JSON, CSV, PNG.",
)
app.command(study)


@study.command(name="redundancy")
def study_redundancy(
    model: str,
    data: str,
    /,
    *,
    out: Path,
    images: int = 1000,
    similarity_images: int = 128,
    split: Literal["auto", "train", "val", "all"] = "auto",
    pictures: Many[str] = (),
    queries: Many[str] = (),
    tolerance: float = 0.5,
    device: Device = "auto",
    threads: int | None = None,
    batch_size: int = 32,
    workers: Workers = 2,
    json: Json = False,
    typed: Flags = NONE_TYPED,
) -> None:
    """Are a network's attention heads redundant? Where they look, how alike they are, what is lost without them.

    For timm's ViT and Swin, SHViT with any mixer, and your own network. Every head of every layer is switched off, and
    left alone, in turn: 1 + twice as many passes over the images as there are heads.

    Parameters
    ----------
    model
        A model file, published weights such as timm/deit_tiny_patch16_224.fb_in1k, or FILE.py:FUNCTION of yours that
        returns (network, layers, classes, preprocess); docs/studies.md has an example.
    data
        Labelled images, as for eval.
    out
        A folder for the report.
    images
        Drawn by seed; accuracy is judged on these.
    similarity_images
        So many of them have their attention maps compared.
    split
        Of the data, as for eval.
    pictures
        Photographs to draw attention maps over; default: some of the data.
    queries
        Places X,Y whose attention is drawn, as shares of the image; default: 0.5,0.5. Pictures and places go together
        in turn.
    tolerance
        Points of top-1 that a layer may lose with a single head and still be said to do with it.
    threads
        CPU threads.
    batch_size
        Images that run at once.
    """
    from ..study.verbs import redundancy

    if similarity_images > images:
        typed.refuse("similarity-images", because=f"above --images {images}")
    _run_study(
        redundancy,
        json,
        out,
        model,
        data,
        images=images,
        similarity_images=similarity_images,
        split=split,
        pictures=pictures,
        queries=queries,
        tolerance=tolerance,
        device=device,
        threads=threads,
        batch_size=batch_size,
        workers=workers,
    )


@dataclass(frozen=True)
class _Measure:
    """How a study measures speed, as `shvit bench` does."""

    engine: Annotated[Many[str], Parameter(help="Engines by name; default: all that can run here.")] = ()
    precision: Annotated[Many[str], Parameter(help="Default: fp32, on GPUs fp16.")] = ()
    batch_size: Annotated[Many[int], Parameter(help="Images a call; default: 16.")] = ()
    threads: Annotated[int | None, Parameter(help="CPU threads; default: as many as each engine takes.")] = None
    device: Device = "auto"
    rounds: Annotated[int, Parameter(help="How often each network is timed.")] = 10

    def how(self, image_size: int | None = None) -> "SpeedOptions":
        from ..study.speeds import SpeedOptions

        batches = self.batch_size or (16,)
        return SpeedOptions(image_size, self.engine, self.precision, batches, self.threads, self.device, self.rounds)


@dataclass(frozen=True)
class _Learn:
    """How a study measures accuracy."""

    train: Annotated[str | None, Parameter(help="Data to train each network on, as for train; default: none is.")] = (
        None
    )
    epochs: Annotated[int, Parameter(help="Of each run, from fresh weights.")] = 10
    train_size: Annotated[
        int | None,
        Parameter(help="Side of the images in training; default: the networks' own, or --image-size where it is one."),
    ] = None
    workers: Workers = 2

    def training(self, device: str, seeds: int = 1) -> "Training | None":
        from ..study.accuracy import Training

        if self.train is None:
            return None
        return Training(self.train, self.epochs, seeds, self.train_size, {}, device, self.workers)


Measure = Annotated[_Measure | None, Parameter(name="*", group="Speed")]
Learn = Annotated[_Learn | None, Parameter(name="*", group="Accuracy")]
Size = Annotated[Literal["s1", "s2", "s3", "s4"] | None, Parameter(help="Of SHViT; default: the paper's.")]


def _measured(
    measure: _Measure | None,
    learn: _Learn | None,
    typed: Typed,
    json: bool,
    image_size: int | None = None,
    seeds: int = 1,
) -> dict[str, Any]:
    """What the verbs that measure speed and accuracy take of these."""
    measure, learn = measure or _Measure(), learn or _Learn()
    if learn.train is None:
        typed.refuse("epochs", "train-size", "seeds", because="without --train DATA")
        if "data" not in typed.flags:
            typed.refuse("workers", because="without data to decode")
    training = learn.training(measure.device, seeds)
    return {"how": measure.how(image_size), "training": training, "reporter": _plain_reporter(json)}


def _comparison(name: str, about: str) -> None:
    """Adds one of the comparisons, which take the same."""

    @study.command(name=name, help=f"{about}\n\nStarted again after a stop, training goes on where it was.")
    def command(
        *,
        out: Path,
        size: Size = None,
        image_size: int | None = None,
        seeds: int = 1,
        measure: Measure = None,
        learn: Learn = None,
        json: Json = False,
        typed: Flags = NONE_TYPED,
    ) -> None:
        """Compare networks.

        Parameters
        ----------
        out
            A folder for the report and the runs.
        image_size
            Side of the images in pixels; default: the network's own.
        seeds
            Runs of each network that is trained.
        """
        from ..study.verbs import comparison

        options = _measured(measure, learn, typed, json, image_size, seeds)
        _run_study(comparison, json, out, name, size=size, **options)


_comparison(
    "macro",
    "A 16x16 stem and three stages against a 4x4 stem and four; larger images; attention in the first stage: "
    "parameters, operations, activations, speed on every engine and time by stage; accuracy with --train.",
)
_comparison(
    "ablation",
    "No attention, many heads, or one over 1/8, 1/4.67 or 1/2 of the channels: speed, and accuracy with --train.",
)
_comparison(
    "designs",
    "Three designs of single-head attention, (a) in a bottleneck, (b) over all channels, (c) over a part of them: "
    "speed, and accuracy with --train.",
)


@study.command(name="breakdown")
def study_breakdown(
    models: Annotated[tuple[str, ...], Parameter(negative=())],
    /,
    *,
    out: Path,
    engine: Many[str] = (),
    batch_size: int = 16,
    image_size: int | None = None,
    threads: int | None = None,
    json: Json = False,
) -> None:
    """What a network's time goes to: matrix products, depthwise convolution, normalisation, copies, softmax and so on.

    Parameters
    ----------
    models
        Networks' names, model files or published weights; one of shvit_s1 to shvit_s4 alone is shown beside its
        multi-head sister.
    out
        A folder for the report.
    engine
        onnx, openvino, torch; default: all that are installed.
    batch_size
        Images a call.
    image_size
        Side of the images in pixels; default: each model's own.
    threads
        CPU threads.
    """
    from ..study.verbs import breakdown

    options: dict[str, Any] = {"batch_size": batch_size, "image_size": image_size, "threads": threads}
    _run_study(breakdown, json, out, models, engines=engine, **options)


@study.command(name="resolution")
def study_resolution(
    models: Annotated[tuple[str, ...], Parameter(show_default=False, negative=())] = (),
    /,
    *,
    out: Path,
    image_size: Many[int] = (),
    data: str | None = None,
    measure: Measure = None,
    learn: Learn = None,
    json: Json = False,
    typed: Flags = NONE_TYPED,
) -> None:
    """Latency and accuracy against the size of the images, SHViT beside its peers.

    Parameters
    ----------
    models
        As for bench; default: SHViT S3 and S4 and three peers.
    out
        A folder for the report and the runs.
    image_size
        Sides in pixels; default: 224, 256, 384, 512.
    data
        Labelled images to judge models with weights on, at each size.
    """
    from ..study.verbs import resolution

    options = {"data": data, "workers": (learn or _Learn()).workers, **_measured(measure, learn, typed, json)}
    _run_study(resolution, json, out, models, sizes=image_size, **options)


def _run_study(verb: "Callable[..., Written]", json: bool, out: Path, *subjects: Any, **options: Any) -> None:
    """Runs the verb with a bar on the screen, and shows what it found."""
    from ..bench.report import watching
    from ..files import check_folder
    from ..study.report import show

    console = _console(json)
    check_folder(out)
    with watching(console) as told:
        report, files = verb(*subjects, out=out, told=told, **options)
    show(console, report, files)
    _finish(json, {**report.data, "findings": list(report.findings), "files": [str(path) for path in files]})


def _plain_reporter(json: bool) -> "Reporter":
    """Tells of training in lines: the study's own bar is on the screen."""
    from ..train.report import Reporter

    console = _console(json)
    return Reporter(Console(file=console.file, stderr=console.stderr, force_terminal=False))


@app.command
def info(name: str, /, *, image_size: int | None = None, json: Json = False, typed: Flags = NONE_TYPED) -> None:
    """Describe a network, a model file or a data set: its costs, its classes, its problems. At most ten lines of a
    model; --json has everything.

    Parameters
    ----------
    name
        shvit_s1 to shvit_s4, timm/NAME, a model file, an exported file, or published weights such as shvit_s1.in1k; or
        data, as for train, or a COCO folder.
    image_size
        Count a network's costs at this size instead of its own.
    """
    from ..data.sources import is_data
    from ..engines import is_exported
    from ..model.architecture import list_models

    console = _console(json)
    if name not in list_models() and not is_exported(name) and is_data(name):
        from .survey import survey

        typed.refuse("image-size", because=f"on data, which {name} is")
        facts = survey(name)
        wording.surveyed(console, facts)
    else:
        from .describe import describe

        facts = describe(name, image_size)
        wording.described(console, facts)
    _finish(json, facts)


_flow(app, study)


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


def _export_path(model: str, suffix: str, precision: str | None) -> Path:
    """Beside the model file; for a published name, in the current folder."""
    path = Path(model)
    stem = path.with_suffix("") if path.suffix == ".safetensors" else Path(path.name)
    return stem.with_name("".join([stem.name, f"_{precision}" if precision else "", suffix]))


def _free_folder(path: Path) -> Path:
    """The path itself, or with the first number that makes it new."""
    free, number = path, 1
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free


def _show_warning(console: Console, others: Callable[..., None], message: Warning | str, *about: Any) -> None:
    """Notices as one line; other warnings as Python shows them."""
    if isinstance(message, Notice):
        console.print(f"[bold yellow]note:[/bold yellow] {escape(_one_line(message))}", highlight=False)
    else:
        others(message, *about)


def _kept(arguments: dict[str, Any]) -> str:
    """What a training run leaves that Ctrl-C ended before its first step; arguments are those of `train`."""
    out: Path | None = arguments.get("out")
    if out is None or not (out / "recipe.json").exists():
        return "nothing was written"
    return f"the run is kept in {out}; {wording.going_on(arguments['data'], out)}"


def _exit_code(result: "Result") -> int:
    """Of a training run."""
    return {None: 0, signal.SIGINT: INTERRUPTED, signal.SIGTERM: RESUME_ME}[result.stopped_by]


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno in FULL:
        return f"no space left on {error.filename or 'the disk or the device that was written to'} ({error.strerror})"
    return visible(" ".join(str(error).split()))


def _console(as_json: bool) -> Console:
    """For people: stdout, or stderr where stdout is for JSON."""
    return Console(stderr=as_json)


def _finish(as_json: bool, document: Any) -> None:
    if as_json:
        sys.stdout.write(wording.as_json(document, sys.stdout.encoding) + "\n")
