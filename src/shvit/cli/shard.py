"""`shvit shard`."""

import sys
from shlex import quote
from typing import TYPE_CHECKING

from rich.console import Console

from ..console import images_progress, say
from ..errors import counted, notice
from ..requests.shard import ShardRequest
from .app import INTERRUPTED, Json, console_for, finish

if TYPE_CHECKING:
    from ..data.shards.writer import ShardReport


def shard(request: ShardRequest, *, json: Json = False) -> None:
    """Write a dataset as WebDataset shards of resized images. Use this for large or remote datasets.

    To continue a stopped run, start the same command again. If the folder is complete, its checksums are verified.
    """
    from ..data.shards.writer import drawn_by, write_shards
    from ..data.sources import open_source

    console = console_for(json)
    request.check()
    try:
        with images_progress(shown=True) as progress:
            bar = progress.add_task("", total=None)
            dataset = open_source(request.data, request.seed, request.drawn_share, drawn_by(request.out))
            report = write_shards(
                dataset, request, lambda done, total: progress.update(bar, completed=done, total=total)
            )
    except KeyboardInterrupt:
        say(console, f"stopped; run the same command again to write the remaining shards of {request.out}")
        sys.exit(INTERRUPTED)
    for text in report.warnings:
        notice(text)
    show(console, report)
    finish(json, report.to_dict())


def show(console: Console, report: "ShardReport") -> None:
    """Print what the folder contains, how many images were left out, and the command that trains on the folder."""
    result = report.to_dict()
    images, shards = (counted(sum(result[key].values()), key[:-1]) for key in ("images", "shards"))
    kept = f" ({report.kept} of them already existed)" if report.kept else ""
    bad = result["bad_images"]
    left_out = f" · {counted(bad, 'image')} left out, see bad_images.csv" if bad else ""
    done = "" if report.made else "already complete, all checksums match: "
    say(
        console,
        f"{done}{images} in {shards}{kept} · {result['bytes'] / 1e6:,.1f} MB{left_out} · "
        f"train on them: shvit train {quote(str(report.out))} --out RUN",
    )
