"""Estimate the minimum time of SHViT's kernel launches on a GPU, without a GPU.

A launch takes at least its number of operations divided by the peak FLOP/s, and at least its bytes (each feature map
and weight once) divided by the memory bandwidth. Launches run one after another. The default peaks are published
measurements of an H200: fp16 matmuls of random matrices, and a large copy, counting bytes read and written.

    python benchmarks/gpu_floor.py shvit_s1 --batch-size 1024 --layers
"""

import argparse
from dataclasses import dataclass

import torch

from shvit.bench.case import open_model
from shvit.engines.cuda.network import KernelNetwork
from shvit.engines.cuda.plan import Choices
from shvit.engines.portable import portable


@dataclass
class Layer:
    """The sum of all launches with the same name."""

    launches: int = 0
    operations: int = 0
    bytes: int = 0
    floor: float = 0.0
    """Seconds."""


def layers(name: str, batch: int, rate: float, bandwidth: float, processors: int) -> dict[str, Layer]:
    """Layers by name, in the order of the network."""
    model_file = open_model(name)
    side = model_file.preprocess.image_size
    images = torch.zeros(1, 3, side, side, dtype=torch.uint8).expand(batch, -1, -1, -1)
    plan, _ = KernelNetwork(portable(model_file), torch.float16, "cpu").plan(images, processors)
    found: dict[str, Layer] = {}
    for launch in Choices().launches(plan):
        layer = found.setdefault(launch.layer, Layer())
        layer.launches += 1
        layer.operations += launch.operations
        layer.bytes += launch.bytes
        layer.floor += max(launch.operations / rate, launch.bytes / bandwidth)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="shvit_s1 to shvit_s4, or model files")
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--rate", type=float, default=790e12, help="peak matmul FLOP/s")
    parser.add_argument("--bandwidth", type=float, default=4.3e12, help="memory bandwidth in bytes/s")
    parser.add_argument("--processors", type=int, default=132, help="number of multiprocessors")
    parser.add_argument("--layers", action="store_true", help="print a line for each layer")
    args = parser.parse_args()

    for name in args.models:
        found = layers(name, args.batch_size, args.rate, args.bandwidth, args.processors)
        if args.layers:
            for label, one in found.items():
                each = (
                    f"{one.operations / args.batch_size / 1e6:7.1f} MFLOP {one.bytes / args.batch_size / 1e3:6.0f} kB"
                )
                print(f"{label:55} {one.launches:2} launches {each} {one.floor * 1e6:7.1f} µs")
        operations, moved = (sum(getattr(one, what) for one in found.values()) for what in ("operations", "bytes"))
        floor = sum(one.floor for one in found.values())
        print(
            f"{name}: {sum(one.launches for one in found.values())} launches; per image: "
            f"{operations / args.batch_size / 1e6:.0f} MFLOP and {moved / args.batch_size / 1e6:.2f} MB moved; "
            f"minimum: all operations {operations / args.rate * 1e6:.0f} µs, "
            f"all bytes {moved / args.bandwidth * 1e6:.0f} µs, "
            f"launch by launch {floor * 1e6:.0f} µs: {args.batch_size / floor:,.0f} images/s"
        )


if __name__ == "__main__":
    main()
