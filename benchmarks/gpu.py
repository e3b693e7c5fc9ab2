"""Speed and accuracy of the `cuda` engine on a GPU, compared with PyTorch.

Speed, in interleaved runs for each variant: the `cuda` engine, and timm's port of the same network, fused, in three
forms: torch.compile (max-autotune, with the faster of NCHW and channels_last), eager, and the paper's protocol
(traced, fp16 autocast). Inputs are uint8 images on the GPU (the paper's protocol: fp32); logits stay on the GPU.
Weights are random, since they do not affect the speed.

Accuracy: logits of the `cuda` engine, and of PyTorch in the same precision, compared with PyTorch in fp32 without
TF32.

The minimum time of each row is its number of operations divided by the peak fp16 FLOP/s, measured in the same run.
In the profile, the minimum time of a layer is this time or the time for its bytes at the measured memory bandwidth,
whichever is longer.

The file of a variant is written after each stage. With --seconds, a variant is skipped if it would not finish in
time, assuming that it takes as long as the previous one.

    python benchmarks/gpu.py shvit_s1 shvit_s2 shvit_s3 shvit_s4
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from shvit.bench.case import Case
from shvit.bench.peers import COMPILED, EAGER, TRACED
from shvit.bench.report import hardware_name, show
from shvit.bench.run import Result, about, bench
from shvit.console import say
from shvit.data.transforms import Preprocess
from shvit.engines.cuda.engine import CudaEngine
from shvit.engines.portable import portable
from shvit.engines.torch import DTYPES
from shvit.model.architecture import TIMM_PREFIX, Architecture
from shvit.modelfile import ModelFile
from shvit.requests.bench import BenchRequest

STAGES = {
    "eager": ((CudaEngine.name, EAGER, TRACED), (1, 32, 256, 1024, 2048)),
    "compiled": ((CudaEngine.name, COMPILED, TRACED), (1024,)),
}
"""Engines that are timed together, and their batch sizes. torch.compile takes a minute per case, so it comes last."""
CHECKED = 64


def lively(name: str) -> ModelFile:
    """A network with random weights and random BatchNorm statistics."""
    torch.manual_seed(0)
    model = Architecture(name).build().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.2)
    return ModelFile(model, tuple(map(str, range(1000))), Preprocess(model.image_size))


def exactness(name: str, device: str) -> dict[str, dict[str, float]]:
    """Compare logits with fp32: relative error by norm and by maximum, and how often the top-1 class agrees."""
    model_file = lively(name)
    side = model_file.preprocess.image_size
    coarse = torch.randint(0, 256, (CHECKED, 3, 8, 8), dtype=torch.uint8)
    images = nn.functional.interpolate(coarse, (side, side)).to(device)
    torch.backends.cudnn.allow_tf32 = False
    exact = eager(model_file, "fp32", images)
    torch.backends.cudnn.allow_tf32 = True
    found = {}
    for precision in ("fp16", "bf16"):
        ways = {
            "cuda": CudaEngine(model_file, precision, device)(images),
            "torch": eager(model_file, precision, images),
        }
        for way, logits in ways.items():
            found[f"{way} {precision}"] = {
                "distance": ((logits - exact).norm() / exact.norm()).item(),
                "largest": ((logits - exact).abs().max() / exact.abs().max()).item(),
                "top1_agreement": (logits.argmax(1) == exact.argmax(1)).float().mean().item(),
            }
    return found


@torch.inference_mode()
def eager(model_file: ModelFile, precision: str, images: torch.Tensor) -> torch.Tensor:
    network = portable(model_file).to(images.device, DTYPES[precision])
    return network(images).float()


def ratios(result: Result) -> dict[str, float]:
    """Throughput of the `cuda` engine relative to each other engine, by engine and batch size."""
    seconds = {(row.case.engine, row.case.batch_size): row.timing.median for row in result.rows}
    return {
        f"{engine}, batch {batch}": spent / seconds[CudaEngine.name, batch]
        for (engine, batch), spent in seconds.items()
        if engine != CudaEngine.name and (CudaEngine.name, batch) in seconds
    }


def run(name: str, args: argparse.Namespace, console: Console) -> None:
    """Measure one variant. Its file is rewritten after each stage."""
    error = exactness(name, args.device)
    for way, one in error.items():
        say(console, f"{name} {way}: relative error of the logits {one['distance']:.1e}")
    compared: dict[str, float] = {}
    stages: dict[str, Any] = {}
    started = time.perf_counter()

    def progress(what: str, done: int, total: int) -> None:
        print(f"{time.perf_counter() - started:6.0f} s  {what} {done}/{total}", file=sys.stderr, flush=True)

    def wanted(case: Case) -> bool:
        """The `cuda` engine runs our network; the other engines run timm's port of it."""
        return case.model.startswith(TIMM_PREFIX) != (case.engine == CudaEngine.name)

    models = (name, f"{TIMM_PREFIX}{name}")
    for stage, (engines, batches) in STAGES.items():
        request = BenchRequest(
            models,
            engines=engines,
            precisions=("fp16",),
            batch_sizes=batches,
            image_sizes=(),
            threads=None,
            device=args.device,
            rounds=args.rounds,
            profile=True,
        )
        result = bench(request, progress, wanted)
        show(console, result)
        compared |= ratios(result)
        stages[stage] = result.to_dict()
        document = {
            "what": f"{name}, cuda fp16, batch 1024",
            "value": compared.get(f"{COMPILED}, batch 1024"),
            "unit": "times the images/s of timm's fused port with torch.compile (max-autotune)",
            "ratios": compared,
            "exactness": error,
            "stages": stages,
            "threads": None,
            **about(args.device),
        }
        variant = name.removeprefix("shvit_")
        path = args.results / f"gpu-{variant}_{hardware_name(document['hardware'])}_{document['date'][:10]}.json"
        path.write_text(json.dumps(document, indent=2) + "\n")
        say(console, f"wrote {path}")
    for what, ratio in compared.items():
        say(console, f"{name}: {ratio:.2f} times the throughput of {what}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="shvit_s1 to shvit_s4")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="skip variants that would not finish within this time"
    )
    parser.add_argument("--results", type=Path, default=Path(__file__).parents[1] / "results")
    args = parser.parse_args()

    console = Console(width=200)
    args.results.mkdir(parents=True, exist_ok=True)
    started = last = time.perf_counter()
    took = 0.0
    for name in args.models:
        if last - started + took > args.seconds:
            say(console, f"no time left for {name}")
            continue
        run(name, args, console)
        took, last = time.perf_counter() - last, time.perf_counter()


if __name__ == "__main__":
    main()
