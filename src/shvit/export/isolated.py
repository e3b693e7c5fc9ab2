"""Load an exported file from disk and run it in a new process, as a user's program would.

python -m shvit.export.isolated FILE IMAGES.npy RESULT.npz BATCH THREADS
"""

import sys
import time
from pathlib import Path
from statistics import median

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


def latency(engine: Engine, images: UInt8[Tensor, "b 3 h w"]) -> float:
    """Median milliseconds per call, after warm-up."""
    for _ in range(2):
        engine(images)
    times: list[float] = []
    while len(times) < 3 or (len(times) < MAX_ROUNDS and sum(times) < MAX_SECONDS):
        started = time.perf_counter()
        engine(images)
        times.append(time.perf_counter() - started)
    return 1000 * median(times)


def main() -> None:
    """Run an exported file on the images of a .npy file, and write the outputs and the latency to a .npz file."""
    file, images_file, result, batch, threads = sys.argv[1:]
    engine = load(read(Path(file)), device="cpu", threads=int(threads) or None)
    images = torch.from_numpy(np.load(images_file))
    outputs = run_all(engine, images, int(batch))
    np.savez(result, outputs=outputs.numpy(), latency=latency(engine, images[: int(batch)]))


if __name__ == "__main__":
    main()
