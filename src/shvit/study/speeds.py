"""Time several networks in alternation, one engine at a time."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

from ..bench.plan import Omitted, pairs, settle
from ..bench.run import OnProgress, Row, bench
from ..errors import Failure, InputError
from ..requests.bench import BenchRequest
from ..requests.study import SpeedOptions


def timed(
    speed: SpeedOptions, networks: Collection[tuple[str, int]], progress: OnProgress
) -> Iterator[tuple[Sequence[Row], list[str]]]:
    """Time networks, given by name and image size. For each engine, yields its rows and the reasons for missing rows.

    In each round, every network is timed once. If an engine fails, the other engines are still measured.

    Raises:
        InputError: An engine, precision or size cannot be used here. Raised before any measurement.
        KeyboardInterrupt: Ctrl-C. The rows measured so far have been yielded.
    """
    if not speed.precisions:
        speed = replace(speed, precisions=("fp16" if speed.device.startswith("cuda") else "fp32",))
    models, sizes = (tuple(dict.fromkeys(column)) for column in zip(*networks, strict=True))
    request = settle(BenchRequest(models, image_sizes=sizes, **vars(speed)))
    runnable, left_out = pairs(request)
    yield (), _reasons(left_out)
    for engine in dict.fromkeys(engine for engine, _ in runnable):
        one = replace(request, engines=(engine,), precisions=tuple(p for name, p in runnable if name == engine))
        try:
            result = bench(
                one,
                lambda what, *steps, engine=engine: progress(f"{engine}: {what}", *steps),
                lambda case: (case.model, case.image_size) in networks,
            )
        except (InputError, Failure) as error:
            if isinstance(error, InputError) and speed.engines:
                raise
            yield (), [f"{engine}: {error}"]
        else:
            yield result.rows, _reasons((*result.skipped, *result.failed))
            if result.interrupted:
                raise KeyboardInterrupt


def _reasons(omitted: Sequence[Omitted]) -> list[str]:
    return [f"{row.what}: {row.reason}" for row in omitted]
