"""`shvit bench`."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from ..console import say
from ..errors import InputError
from ..requests import Device, Many
from .app import NONE_TYPED, Flags, Json, console_for, finish


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
    from ..bench.report import check_paths, show, watching, write_result
    from ..bench.run import bench as run
    from ..engines import is_exported

    console = console_for(json)
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
        say(console, f"wrote {write_result(result, out)}")
    if plot:
        say(console, f"wrote {plot}" if draw(result, plot) else "nothing to plot: no accuracy of these is known")
    finish(json, result.to_dict())
