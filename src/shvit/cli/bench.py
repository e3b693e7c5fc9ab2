"""`shvit bench`."""

from pathlib import Path
from typing import Any

from ..console import say
from ..errors import InputError
from ..requests.bench import BenchRequest
from .app import NONE_TYPED, Flags, Json, console_for, finish

DEFAULTS = BenchRequest()


def bench(
    request: BenchRequest = DEFAULTS,
    *,
    out: Path | None = None,
    plot: Path | None = None,
    json: Json = False,
    typed: Flags = NONE_TYPED,
) -> dict[str, Any]:
    """Measure the speed of models side by side, and the share of the machine's peak FLOP/s that they reach.

    Models are timed in interleaved rounds, so that other load on the machine affects all of them equally. To give
    a flag several values, list them or repeat the flag.

    Parameters
    ----------
    out
        A .json file for the results, or a folder. In a folder, the file is named bench_<hardware>_<date>.json
        (detectors: bench-<task>_...).
    plot
        A .png file to draw. It shows accuracy (published, or stored in the model file) against speed. If --image-size
        has several values, it shows latency against resolution.
    """
    from ..bench.case import runs_as_it_is
    from ..bench.figures import draw_result
    from ..bench.report import check_paths, show, watching, write_result
    from ..bench.run import bench as run
    from ..engines import is_exported
    from ..tasks import kind_of

    console, models = console_for(json), request.models
    check_paths(out, plot)
    if models and all(map(runs_as_it_is, models)):
        typed.refuse(
            "engine", "precision", because=f"on models with a fixed engine and precision ({', '.join(models)})"
        )
    if models and all(map(is_exported, models)):
        typed.refuse("image-size", because=f"on exported files, which run at their own size ({', '.join(models)})")
    if plot and not kind_of(request.task).labels_images:
        raise InputError("--plot works only for classifiers: leave out --plot or --task")
    with watching(console) as progress:
        result = run(request, progress)
    show(console, result)
    if out:
        say(console, f"wrote {write_result(result, out)}")
    if plot:
        drawn = draw_result(result, plot)
        say(console, f"wrote {plot}" if drawn else "nothing to plot: the accuracy of these models is unknown")
    return finish(json, result.to_dict())
