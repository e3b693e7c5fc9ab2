"""The command line: runs a verb, shows errors in one line, and sets the exit code."""

import ctypes
import inspect
import re
import sys
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

from cyclopts import App, CycloptsError
from rich.console import Console
from rich.markup import escape

from ..console import say, takes_all, visible
from ..errors import Failure, InputError, Notice
from ..files import FULL
from ..requests.train import TrainRequest
from .app import INTERRUPTED, app
from .bench import bench
from .calibrate_bn import calibrate_bn
from .demo import demo
from .eval import evaluate
from .export import export
from .flags import Typed
from .info import info
from .models import models
from .predict import predict
from .shard import shard
from .study import study
from .train import how_to_resume, train

VERBS = {
    "demo": demo,
    "train": train,
    "eval": evaluate,
    "predict": predict,
    "export": export,
    "bench": bench,
    "study": study,
    "shard": shard,
    "calibrate-bn": calibrate_bn,
    "models": models,
    "info": info,
}
"""Each verb by its name. Their heavy imports happen inside, so that help needs no torch."""

for name, verb in VERBS.items():
    app.command(verb, name=name)

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's `mallopt`."""


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
        typed = {name: Typed.of(sys.argv[1:]) for name, kind in asked.items() if kind is Typed}
        verb(*bound.args, **bound.kwargs, **typed)
        sys.stdout.flush()
    except (InputError, CycloptsError) as error:
        errors.print(f"[bold red]error:[/bold red] {escape(_one_line(error))}", highlight=False)
        sys.exit(2)
    except (Failure, OSError) as error:
        errors.print(f"[bold red]failed:[/bold red] {escape(_one_line(error))}", highlight=False)
        sys.exit(1)
    except KeyboardInterrupt as stop:
        kept = str(stop) or (_kept(bound.arguments["request"]) if verb is train and bound else "")
        say(errors, f"stopped: {kept}" if kept else "stopped")
        sys.exit(INTERRUPTED)


_flow(app, study)


def _show_warning(console: Console, others: Callable[..., None], message: Warning | str, *about: Any) -> None:
    """Notices as one line; other warnings as Python shows them."""
    if isinstance(message, Notice):
        console.print(f"[bold yellow]note:[/bold yellow] {escape(_one_line(message))}", highlight=False)
    else:
        others(message, *about)


def _kept(request: TrainRequest) -> str:
    """What remains of a training run that Ctrl-C stopped before its first step."""
    if request.out is None or not (request.out / "recipe.json").exists():
        return "nothing was written"
    return f"the run is kept in {request.out}; {how_to_resume(request.data, request.out)}"


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno in FULL:
        return f"no space left on {error.filename or 'the disk or the device that was written to'} ({error.strerror})"
    return visible(" ".join(str(error).split()))
