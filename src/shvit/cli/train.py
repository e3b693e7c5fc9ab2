"""`shvit train`."""

import signal
import sys
from dataclasses import Field, fields, make_dataclass, replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.console import Console

from ..allocator import keep_blocks
from ..console import main_metrics, say, show_table
from ..errors import InputError, counted, notice
from ..redact import redacted
from ..requests import with_current_fit
from ..requests.train import TrainRequest
from ..train.recipe import OLD_NAMES, Recipe
from .app import INTERRUPTED, NONE_TYPED, RESUME_ME, Flags, Json, console_for, finish

if TYPE_CHECKING:
    from ..train.profile import Profile
    from ..train.progress import TrainResult


def _flags() -> list[tuple[str, Any, None]]:
    """Name, type and default of each recipe flag: one flag per recipe field, and a hidden flag per old name."""
    flags = {entry.name: entry for entry in fields(Recipe) if "help" in entry.metadata}
    flags |= {old: flags[name] for old, name in OLD_NAMES.items() if name in flags}

    def shown(flag: str, entry: Field[Any]) -> Parameter:
        converter = with_current_fit if entry.name == "fit" else None
        return Parameter(converter=converter, help=entry.metadata["help"], show=flag == entry.name, show_default=False)

    return [(flag, Annotated[entry.type | None, shown(flag, entry)], None) for flag, entry in flags.items()]  # pyright: ignore


RecipeSettings = make_dataclass("RecipeSettings", _flags(), namespace={"__module__": __name__})
"""A flag for each field of a recipe. A field is None if the user did not give its flag."""


def train(
    request: TrainRequest,
    *,
    settings: Annotated[RecipeSettings | None, Parameter(name="*", group="Recipe")] = None,  # pyright: ignore
    json: Json = False,
    typed: Flags = NONE_TYPED,
) -> None:
    """Train a model on labelled images, or on images with boxes or masks.

    Exit codes: 0 done; 1 failure; 2 wrong input; 75 stopped by SIGTERM; 130 stopped by Ctrl-C. A stopped run
    continues with --resume. On several GPUs or machines, use: torchrun --nproc-per-node 8 -m shvit train …
    """
    from ..train import run
    from ..train.distributed import ProcessGroup
    from ..train.profile import STEPS
    from ..train.progress import Reporter

    keep_blocks()
    request, is_main = replace(request, settings=_given(settings)), ProcessGroup.from_environment().is_main
    console = console_for(json) if is_main else Console(quiet=True)
    if request.profile:
        idle = "out", "resume", "track", "teacher-cache", "save-every"
        typed.refuse(*idle, because="with --profile, which neither trains nor writes files")
        say(
            console,
            f"profiling: {STEPS} steps of data loading, of training, and of both together. Nothing is saved. "
            "If the model is compiled, the first step takes minutes.",
        )
        profile = run.profile(request)
        _show_profile(console, profile)
        finish(json and is_main, profile.to_dict())
        return
    try:
        result = run.train(request, Reporter(console))
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(str(stop) or _remains(request)) from None
    _show_result(console, result, request.data)
    best = str(result.out / "best.safetensors") if result.best else None
    finish(json and is_main, {"out": str(result.out), "best": best, **result.to_dict()})
    if result.stopped_by:
        sys.exit({signal.SIGINT: INTERRUPTED, signal.SIGTERM: RESUME_ME}[result.stopped_by])


def _given(settings: Any) -> dict[str, Any]:
    """The recipe fields that the user gave, by their current names."""
    given = {name: value for name, value in vars(settings).items() if value is not None} if settings else {}
    for old in given.keys() & OLD_NAMES.keys():
        before, now = (f"--{name.replace('_', '-')}" for name in (old, OLD_NAMES[old]))
        if OLD_NAMES[old] in given:
            raise InputError(f"{before} is the old name of {now}: give only {now}")
        notice(f"{before} has been renamed to {now}; the old name will be removed in the next release")
        given[OLD_NAMES[old]] = given.pop(old)
    return given


def _remains(request: TrainRequest) -> str:
    """The message of Ctrl-C before the first step: which files were written, and how to resume."""
    if request.out is None or not (request.out / "recipe.json").exists():
        return "nothing was written"
    return f"the run is kept in {request.out}; {how_to_resume(request.data, request.out)}"


def how_to_resume(data: str, out: Path) -> str:
    """The command that resumes a run."""
    return f"resume with: shvit train {quote(redacted(data))} --out {quote(str(out))} --resume"


def _show_result(console: Console, result: "TrainResult", data: str) -> None:
    best = quote(str(result.out / "best.safetensors"))
    if result.interrupted:
        where = "after the last epoch" if result.trained else f"in epoch {result.epochs + 1}"
        say(console, f"stopped {where}; {how_to_resume(data, result.out)}")
    if result.best:
        shown = main_metrics(result.best, first=result.selected_by)
        say(console, f"best {shown} in epoch {result.best['epoch']}: {best}")
        say(console, f"try it: shvit predict {best} IMAGES…")


def _show_profile(console: Console, profile: "Profile") -> None:
    rows = [
        ["data loading", f"{profile.data:.0f}"],
        ["training steps", f"{profile.compute:.0f}"],
        ["both together", f"{profile.together:.0f}"],
    ]
    workers = counted(profile.workers, "worker")
    show_table(console, [f"batch size {profile.batch_size}, {workers}", "images/s"], rows)
    advice = {
        "data": "Try more --workers, or store smaller images with shvit shard",
        "compute": "Data loading is fast enough. Try --precision, --compile on, or a faster machine",
    }
    say(
        console,
        f"bottleneck: {profile.bottleneck}. {profile.data_wait:.0%} of the time is spent waiting for data. "
        f"{advice[profile.bottleneck]}.",
    )
