"""Time backbones at batch size 16 and 1, and whole detectors at batch size 1, at 512 pixels.

This is `shvit bench --task detect` with a fixed list of networks, and without batches of whole detectors, which
take minutes on a CPU.

    python benchmarks/detection_speed.py --rounds 3
"""

import argparse
from pathlib import Path

from rich.console import Console

from shvit.bench.case import BACKBONE
from shvit.bench.report import show, write_result
from shvit.bench.run import bench
from shvit.requests.bench import BenchRequest

MODELS = (
    "shvit_s4",
    "timm/mobilenetv3_large_100",
    "timm/resnet50",
    "torchvision/retinanet_resnet50_fpn_v2",
    "torchvision/fasterrcnn_mobilenet_v3_large_fpn",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", nargs="+", default=["torch-traced", "openvino"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=Path(__file__).parents[1] / "results")
    args = parser.parse_args()
    request = BenchRequest(
        MODELS,
        engines=tuple(args.engine),
        precisions=("fp32",),
        threads=args.threads,
        rounds=args.rounds,
        task="detect",
    )
    result = bench(request, wanted=lambda case: case.part == BACKBONE or case.batch_size == 1)
    show(Console(), result)
    print(write_result(result, args.results))


if __name__ == "__main__":
    main()
