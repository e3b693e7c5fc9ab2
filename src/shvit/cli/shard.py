"""`shvit shard`."""

import sys
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from rich.console import Console

from ..console import images_progress, say
from ..errors import notice
from ..requests import Workers
from .app import INTERRUPTED, Json, console_for, finish

if TYPE_CHECKING:
    from ..data.shards.writer import Written


def shard(
    data: str,
    *,
    out: Path,
    size: int = 512,
    per_shard: int = 1000,
    quality: int = 95,
    workers: Workers = 2,
    seed: int = 0,
    val_share: float | None = None,
    max_bad_share: float = 0.2,
    json: Json = False,
) -> None:
    """Pack labelled images, resized once, into WebDataset shards: for data that is large or lies elsewhere.

    Started again after a stop, it goes on where it was; a folder that is complete is only checked.

    Parameters
    ----------
    data
        As for train: folder, CSV, shards, hf://NAME or digits.
    out
        A new folder for train-000000.tar, …, val-000000.tar, … and shards.json; or that of the run to continue.
    size
        Shorter side of the images in pixels. None is enlarged, and JPEGs that are small enough are copied as they are.
    per_shard
        Images a shard, at most.
    quality
        Of the JPEGs that are written anew, 1 to 100.
    seed
        Shuffles the training images, and draws validation images where the data has no splits.
    val_share
        Share of the images that is held out for validation; default: 0.2. For data without a validation split.
    max_bad_share
        Share of the images that may be unusable; bad_images.csv lists them.
    """
    from ..data.shards.writer import write_shards

    console = console_for(json)
    options = {"seed": seed, "val_share": val_share, "max_bad_share": max_bad_share}
    try:
        with images_progress(shown=True) as progress:
            bar = progress.add_task("", total=None)
            written = write_shards(
                data,
                out,
                size,
                per_shard,
                quality,
                workers,
                progress=lambda done, total: progress.update(bar, completed=done, total=total),
                **options,
            )
    except KeyboardInterrupt:
        say(console, f"stopped; the same command goes on with the shards that are missing in {out}")
        sys.exit(INTERRUPTED)
    for text in written.warnings:
        notice(text)
    sharded(console, written)
    finish(json, written.to_dict())


def sharded(console: Console, written: "Written") -> None:
    """What lies in the folder, what was left out, and what to do with it."""
    result = written.to_dict()
    out = quote(str(written.out))
    images, shards = (sum(result[key].values()) for key in ("images", "shards"))
    kept = f" ({written.found} of them were there)" if written.found else ""
    left_out = f" · {result['bad_images']} images left out, see bad_images.csv" if result["bad_images"] else ""
    done = "" if written.made else "nothing was to be done, all checksums are right: "
    say(
        console,
        f"{done}{images:,} images in {shards} shards{kept} · {result['bytes'] / 1e6:,.1f} MB{left_out} · "
        f"train on them: shvit train {out} --out RUN",
    )
