"""SpeedOptions fast networks run beside each other, on one engine after the other."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from ..bench.case import Case
from ..bench.plan import Omitted, pairs, settle
from ..bench.run import Progress, Row, bench
from ..errors import Failure, InputError
from ..requests.bench import BenchRequest


@dataclass(frozen=True)
class SpeedOptions:
    """SpeedOptions speed is measured; as `shvit bench` has it."""

    image_size: int | None = None
    """None: what the first network was designed for."""
    engines: tuple[str, ...] = ()
    """Default: all that can run here."""
    precisions: tuple[str, ...] = ()
    """Default: fp32, on NVIDIA GPUs fp16."""
    batch_sizes: tuple[int, ...] = (16,)
    threads: int | None = None
    device: str = "auto"
    rounds: int = 10


def timed(
    how: SpeedOptions,
    models: tuple[str, ...],
    sizes: tuple[int, ...],
    told: Progress,
    wanted: Callable[[Case], bool] = lambda case: True,
) -> Iterator[tuple[Sequence[Row], list[str]]]:
    """Networks at sizes, timed in turn on one engine after the other; and what has no number, and why.

    An engine that fails costs the others nothing.

    Raises:
        InputError: An engine, precision or size that cannot be measured here; before anything is.
        KeyboardInterrupt: Ctrl-C, after what was timed until then was given.
    """
    precisions = how.precisions or (("fp16",) if how.device.startswith("cuda") else ("fp32",))
    request = settle(
        BenchRequest(
            models,
            engines=how.engines,
            precisions=precisions,
            batch_sizes=how.batch_sizes,
            image_sizes=sizes,
            threads=how.threads,
            device=how.device,
            rounds=how.rounds,
        )
    )
    here, left_out = pairs(request)
    yield (), _why(left_out)
    for engine in dict.fromkeys(engine for engine, _ in here):
        one = replace(request, engines=(engine,), precisions=tuple(p for name, p in here if name == engine))
        try:
            result = bench(one, lambda what, *steps, engine=engine: told(f"{engine}: {what}", *steps), wanted)
        except (InputError, Failure) as error:
            if isinstance(error, InputError) and how.engines:
                raise
            yield (), [f"{engine}: {error}"]
            continue
        yield result.rows, _why((*result.skipped, *result.failed))
        if result.request.rounds < one.rounds:
            raise KeyboardInterrupt


def _why(omitted: Sequence[Omitted]) -> list[str]:
    return [f"{row.what}: {row.reason}" for row in omitted]
