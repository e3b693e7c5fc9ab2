"""`shvit train`."""

import signal
import sys
from dataclasses import fields, make_dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from rich.console import Console

from ..console import BESIDE, METRICS, say, show_table
from ..errors import InputError
from ..redact import redacted
from ..requests import Device, Workers
from ..train.recipe import RECIPES, Recipe
from .app import INTERRUPTED, NONE_TYPED, RESUME_ME, Flags, Json, console_for, finish

if TYPE_CHECKING:
    from ..train.loop import Result
    from ..train.profile import Profile


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
    console, leads = console_for(json), World.from_environment().leads
    if profile:
        idle = "out", "resume", "track", "teacher-cache", "save-every"
        typed.refuse(*idle, because="with --profile, which trains and writes nothing")
        if leads:
            profiling(console)
        found = measure(data, model, recipe, task=task, settings=chosen, device=device, workers=workers)
        if leads:
            profiled(console, found)
            finish(json, found.to_dict())
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
        sys.exit(exit_code(result))
    trained(console, result, data)
    finish(json, {"out": str(out), "best": str(out / "best.safetensors") if result.best else None, **result.to_dict()})
    if result.interrupted:
        sys.exit(exit_code(result))


def exit_code(result: "Result") -> int:
    """Of a training run."""
    return {None: 0, signal.SIGINT: INTERRUPTED, signal.SIGTERM: RESUME_ME}[result.stopped_by]


def trained(console: Console, result: "Result", data: str) -> None:
    """Where the run's best is, or how to go on with it."""
    best = quote(str(result.out / "best.safetensors"))
    if result.interrupted:
        say(console, f"stopped in epoch {result.epochs + 1}; {going_on(data, result.out)}")
    if result.best:
        key = next(key for key in METRICS if key in result.best)
        beside = "".join(f", {name} {result.best[name]:.2%}" for name in BESIDE.get(key, ()) if name in result.best)
        say(console, f"best {METRICS[key]} {result.best[key]:.2%}{beside} in epoch {result.best['epoch']}: {best}")
        say(console, f"try it: shvit predict {best} IMAGES…")


def going_on(data: str, out: Path) -> str:
    """How a run that was stopped is resumed."""
    return f"go on with: shvit train {quote(redacted(data))} --out {quote(str(out))} --resume"


def profiling(console: Console) -> None:
    """Said before the first slow step of `train --profile`."""
    from ..train.profile import STEPS

    say(
        console,
        f"profiling: {STEPS} steps each of reading alone, learning alone and both together; nothing is saved. "
        "Where the network is compiled, the first step takes minutes.",
    )


def profiled(console: Console, profile: "Profile") -> None:
    """Both rates, the slower one, and what to do about it."""
    rows = [
        ["reading alone", f"{profile.data:.0f}"],
        ["learning alone", f"{profile.compute:.0f}"],
        ["together", f"{profile.together:.0f}"],
    ]
    show_table(console, [f"batch {profile.batch_size}, {profile.workers} workers", "images/s"], rows)
    advice = {
        "data": "more --workers, or smaller files once and for all: shvit shard",
        "compute": "reading has time to spare; a larger machine, --precision or --compile on would tell",
    }
    say(
        console,
        f"{profile.bottleneck} is the bottleneck; {profile.data_wait:.0%} of the time goes by waiting for data. "
        f"{advice[profile.bottleneck]}",
    )
