"""Throughput of the engines on a CPU, relative to timm's port of SHViT in ONNX Runtime fp32.

The baseline is the unfused network, exported as it is. Its input is normalized fp32 images, with the same batch size
and number of threads. The engines take uint8 images and normalize them. Runs are interleaved, and each
ratio is that of the medians. Exported files run in the precision that they were exported in.

ONNX Runtime's fp32 kernels come close to the CPU's peak fp32 FLOP/s. Therefore, bf16 and int8 can
hardly gain more than the ratio of their peak FLOP/s to that of fp32, which is also measured.

    python benchmarks/cpu_ratio.py shvit_s1 shvit_s4 --engine openvino onnx torch --batch-size 16 1 --threads 1
"""

import argparse
import json
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import onnxruntime
import timm
import torch

from shvit.bench.case import Case, Worker, open_model
from shvit.bench.machine import measure_machine
from shvit.bench.plan import plan, settle
from shvit.bench.report import hardware_name
from shvit.bench.run import about
from shvit.bench.timing import Timed, interleave, sample, warm_up
from shvit.engines import ENGINES, Exported, Runnable
from shvit.errors import Failure, InputError
from shvit.model.architecture import TIMM_PREFIX, Architecture
from shvit.model.config import VARIANTS
from shvit.requests.bench import BenchRequest


class Plain:
    """The baseline: timm's port of SHViT in ONNX Runtime, exported without fusing."""

    def __init__(self, architecture: Architecture, case: Case, folder: Path) -> None:
        name = architecture.name.removeprefix(TIMM_PREFIX)
        if name not in VARIANTS:
            raise InputError(f"the baseline is timm's port of SHViT, but {case.model} is {name}: give an SHViT model")
        network = timm.create_model(name, num_classes=architecture.num_classes).eval()
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
                torch.nn.init.ones_(module.weight)  # as in the networks that are compared with it
        images = torch.randn(case.batch_size, 3, case.image_size, case.image_size)
        path = folder / f"{name}_{case.batch_size}_{case.image_size}.onnx"
        torch.onnx.export(network, (images,), path, input_names=["images"], dynamo=True, verbose=False)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = case.threads or 0
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.call = lambda: session.run(None, {"images": images.numpy()})
        self.repetitions = warm_up(self.call)

    def time(self) -> list[float]:
        return sample(self.call, self.repetitions)


def architecture_of(model: Runnable) -> Architecture:
    """The architecture of a model. Raises InputError if an exported file does not record it."""
    if not isinstance(model, Exported):
        return model.architecture
    described = model.provenance.get("architecture")
    if described is None:
        raise InputError(f"{model.path} does not record its architecture")
    return Architecture.from_dict(described)


def compare(request: BenchRequest, folder: Path) -> dict[str, Any]:
    """Time all cases and baselines. Returns the rows with their ratios, and the failures."""
    models = {name: open_model(name) for name in request.models}
    kinds = [kind for kind in ENGINES.values() if not kind.unavailable("cpu")]
    here = {precision for kind in kinds for precision in kind.precisions("cpu")}
    failed = {name: "not supported by this CPU" for name in request.precisions if name not in here}
    cases, skipped = plan(replace(request, precisions=tuple(p for p in request.precisions if p in here)), models)
    failed |= {row.what: row.reason for row in skipped}
    machine = measure_machine(request.threads, "cpu")
    subjects: dict[Any, Timed] = {}
    baselines: dict[Case, Any] = {}
    for case in cases:
        try:
            subjects[case] = Worker(case)
        except Failure as failure:
            failed[str(case)] = str(failure)
            continue
        architecture = architecture_of(models[case.model])
        key = (architecture.name, architecture.num_classes, case.batch_size, case.image_size)
        baselines[case] = key
        if key not in subjects:
            subjects[key] = Plain(architecture, case, folder)
        print("loaded", case, file=sys.stderr, flush=True)
    timings, broken = interleave(subjects, request.rounds)
    failed |= {str(case): reason for case, reason in broken.items()}
    rows = []
    for case, key in baselines.items():
        if case in timings:
            ours, plain = timings[case], timings[key]
            rows.append(
                {
                    **asdict(case),
                    "ratio": plain.median / ours.median,
                    "seconds": ours.median,
                    "plain_seconds": plain.median,
                    "spread": ours.spread,
                    "plain_spread": plain.spread,
                    "round_seconds": ours.rounds,
                    "plain_round_seconds": plain.rounds,
                }
            )
    if not rows:
        raise Failure(f"nothing could run: {failed}")
    return {"rows": rows, "failed": failed, "machine": asdict(machine)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="shvit_s1 to shvit_s4, model files or exported files")
    parser.add_argument("--engine", nargs="+", default=[])
    parser.add_argument("--precision", nargs="+", default=[])
    parser.add_argument("--batch-size", nargs="+", type=int, default=[16, 1])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--hardware", help="short name of the machine, for the result's file name")
    parser.add_argument("--results", type=Path, default=Path(__file__).parents[1] / "results")
    args = parser.parse_args()

    request = settle(
        BenchRequest(
            tuple(args.models),
            engines=tuple(args.engine),
            precisions=tuple(args.precision),
            batch_sizes=tuple(args.batch_size),
            threads=args.threads,
            device="cpu",
            rounds=args.rounds,
        )
    )
    with tempfile.TemporaryDirectory() as folder:
        measured = compare(request, Path(folder))
    facts = about("cpu")
    best = max(measured["rows"], key=lambda row: row["ratio"])
    result = {
        "what": f"{best['model']}, {best['engine']} {best['precision']}, batch {best['batch_size']}",
        "value": best["ratio"],
        "unit": "times the images/s of timm's port in ONNX Runtime fp32",
        "threads": args.threads,
        "request": asdict(request),
        **measured,
        **facts,
    }
    name = args.hardware or hardware_name(facts["hardware"])
    path = args.results / f"cpu_ratio_{name}_{facts['date'][:10]}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    for row in measured["rows"]:
        print(
            f"{row['model']:<24} {row['engine']:<10} {row['precision']:<5} batch {row['batch_size']:<3} "
            f"{row['ratio']:.2f} times, {row['seconds'] * 1e3:.2f} ms against {row['plain_seconds'] * 1e3:.2f} ms"
        )
    for what, reason in measured["failed"].items():
        print(f"not measured: {what}: {reason}")
    print(f"wrote {path}")


if __name__ == "__main__":
    try:
        main()
    except (InputError, Failure) as error:
        sys.exit(f"error: {error}")
