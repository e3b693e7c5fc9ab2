"""Load an exported file from disk and run it in a new process, as a user's program would.

python -m shvit.export.isolated FILE IMAGES.npz RESULT.npz BATCH THREADS
"""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ..engines import load, read
from ..engines.base import Engine

MAX_ROUNDS, MAX_SECONDS = 30, 5.0
"""Maximum number of timed calls, and the seconds after which timing stops. At least three calls are timed."""


def run_all(engine: Engine, images: UInt8[Tensor, "n 3 h w"], batch: int) -> Float[Tensor, "n classes"]:
    """Run all images in batches of exactly this size. Copies of the last image fill the last batch."""
    short = -len(images) % batch
    whole = torch.cat([images, images[-1:].expand(short, -1, -1, -1)]) if short else images
    return torch.cat([engine(part.contiguous()) for part in whole.split(batch)])[: len(images)]


def latency(run: Callable[[Any], object], images: Any) -> float:
    """Median milliseconds per call with these images, after warm-up."""
    for _ in range(2):
        run(images)
    times: list[float] = []
    while len(times) < 3 or (len(times) < MAX_ROUNDS and sum(times) < MAX_SECONDS):
        started = time.perf_counter()
        run(images)
        times.append(time.perf_counter() - started)
    return 1000 * median(times)


def pack(rows: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays of all rows, for one .npz file."""
    return {f"{index}/{name}": array for index, row in enumerate(rows) for name, array in row.items()}


def unpack(arrays: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Inverse of `pack`."""
    rows: dict[int, dict[str, np.ndarray]] = {}
    for key, array in arrays.items():
        index, _, name = key.partition("/")
        rows.setdefault(int(index), {})[name] = array
    return [rows[index] for index in sorted(rows)]


def main() -> None:
    """Run an exported file on the images of a .npz file, and write the outputs and the latency to another.

    The images are a batch, or, for an end-to-end file, single images of different sizes.
    """
    file, images_file, result, batch, threads = sys.argv[1:]
    engine = load(read(Path(file)), device="cpu", threads=int(threads) or None)
    with np.load(images_file) as given:
        arrays = dict(given)
    if "images" in arrays:
        images = torch.from_numpy(arrays["images"])
        outputs = {"outputs": run_all(engine, images, int(batch)).numpy()}
        milliseconds = latency(engine, images[: int(batch)])
    else:
        photos = [row["image"] for row in unpack(arrays)]
        outputs, milliseconds = pack([engine.results(photo) for photo in photos]), latency(engine.results, photos[0])
    np.savez(result, allow_pickle=False, latency=milliseconds, **outputs)


if __name__ == "__main__":
    main()
