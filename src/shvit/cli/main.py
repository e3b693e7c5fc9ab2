"""Run a command, print errors on one line, and set the exit code."""

import sys
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

from cyclopts import CycloptsError
from rich.console import Console
from rich.markup import escape

from ..allocator import return_large_blocks
from ..console import say, takes_all, visible
from ..errors import Failure, InputError, Notice, one_line
from ..files import FULL
from .app import INTERRUPTED, app, call
from .audit import audit
from .bench import bench
from .calibrate_bn import calibrate_bn
from .demo import demo
from .eval import evaluate
from .export import export
from .info import info
from .models import models
from .predict import predict
from .shard import shard
from .study import study
from .train import train

VERBS = {
    "demo": demo,
    "audit": audit,
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
"""Commands by name. They import torch and other large libraries only when they run, so that --help is fast."""

for name, verb in VERBS.items():
    app.command(verb, name=name)


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 failure, 2 wrong input, 75 stopped by SIGTERM, 130 Ctrl-C."""
    return_large_blocks()
    for stream in (sys.stdout, sys.stderr):
        takes_all(stream)
    console = Console(stderr=True, soft_wrap=True)
    warnings.showwarning = partial(_show_warning, console, warnings.showwarning)
    try:
        call(sys.argv[1:])
        sys.stdout.flush()
    except (InputError, CycloptsError) as error:
        _show(console, "[bold red]error:", error)
        sys.exit(2)
    except (Failure, OSError) as error:
        _show(console, "[bold red]failed:", error)
        sys.exit(1)
    except KeyboardInterrupt as stop:
        say(console, f"stopped: {stop}" if str(stop) else "stopped")
        sys.exit(INTERRUPTED)


def _show(console: Console, label: str, message: Warning | BaseException) -> None:
    text = visible(one_line(message))
    if isinstance(message, OSError) and message.errno in FULL:
        text = f"no space left on {message.filename or 'the disk or the output device'} ({message.strerror})"
    console.print(f"{label}[/] {escape(text)}", highlight=False)


def _show_warning(console: Console, default: Callable[..., None], message: Warning | str, *about: Any) -> None:
    """Print notices on one line, and other warnings as Python does."""
    if isinstance(message, Notice):
        _show(console, "[bold yellow]note:", message)
    else:
        default(message, *about)
