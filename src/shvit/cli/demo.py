"""`shvit demo`."""

from pathlib import Path

from .app import Json, console_for, finish, free_folder


def demo(*, out: Path = Path("runs/demo"), json: Json = False) -> None:
    """The whole journey on 1,797 handwritten digits: train, eval, export, bench, predict. No network needed.

    Parameters
    ----------
    out
        A new folder for the run; a number is added to the name where it exists.
    """
    from .demo_run import run_demo

    out = free_folder(out)
    console = console_for(json)
    finish(json, run_demo(out, console))
