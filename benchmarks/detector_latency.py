"""Latency of whole detectors in OpenVINO: the light detector, RetinaNet, and torchvision's SSDLite320-MobileNetV3.

    python benchmarks/detector_latency.py --threads 1

Networks are timed from uint8 pixels to raw boxes and scores, one image per call, in turn; and together with the
selection of objects, which is NMS for RetinaNet and SSDLite. All have random weights and three classes. SSDLite is
quantized by NNCF with its defaults.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

import ssdlite
from shvit.bench.report import hardware_name
from shvit.data.letterbox import Letterbox
from shvit.data.transforms import Preprocess
from shvit.engines import openvino
from shvit.engines.openvino_runtime import CompiledNetwork
from shvit.files import write_json
from shvit.model.architecture import Architecture
from shvit.modelfile import ModelFile
from shvit.provenance import facts
from shvit.suppress import quiet
from shvit.tasks import task_of

CLASSES = ("a", "b", "c")
CALIBRATION = 4


def ours(detector: str, name: str, side: int, precision: str, threads: int) -> Callable[[torch.Tensor], Any]:
    torch.manual_seed(0)
    network = Architecture(name, len(CLASSES), detector=detector).build().eval()
    for part in network.modules():  # otherwise, branches that start at zero are skipped
        if isinstance(part, torch.nn.BatchNorm2d):
            torch.nn.init.ones_(part.weight)
    model = ModelFile(network, CLASSES, Preprocess(side, fit="whole"), "detect")
    built = openvino.build(model, precision, images(CALIBRATION, side))
    return CompiledNetwork(built, "fp32", threads)


def theirs(side: int, precision: str, threads: int) -> Callable[[torch.Tensor], Any]:
    import nncf
    import openvino as ov

    torch.manual_seed(0)
    raw = ssdlite.Raw(ssdlite.ssdlite(len(CLASSES)).eval(), Preprocess(side, fit="whole")).eval()
    pixels = images(CALIBRATION, side)
    with quiet():
        network = ov.convert_model(raw, example_input=pixels[0])
        network.reshape([1, 3, side, side])
        if precision == "int8":
            network = nncf.quantize(network, nncf.Dataset([batch.numpy() for batch in pixels]))
    return CompiledNetwork(network, "fp32", threads)


def images(count: int, side: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 256, (1, 3, side, side), dtype=torch.uint8, generator=generator) for _ in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="shvit_s1")
    parser.add_argument("--image-size", type=int, default=320)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--results", type=Path, default=Path(__file__).parents[1] / "results")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    side, whole = args.image_size, Letterbox(args.image_size, args.image_size, 1.0, 1.0)
    [image] = images(1, side)
    runs: dict[tuple[str, str, str], Callable[[], Any]] = {}
    for precision in ("int8", "fp32"):
        for detector in ("light", "retinanet"):
            run = ours(detector, args.model, side, precision, args.threads)
            task: Any = task_of(
                ModelFile(Architecture(args.model, 3, detector=detector).build(), CLASSES, task="detect")
            )
            runs[detector, precision, "network"] = lambda run=run: run(image)
            runs[detector, precision, "objects"] = lambda run=run, task=task: task.decode(run(image), [whole])
        run = theirs(side, precision, args.threads)
        runs["ssdlite320", precision, "network"] = lambda run=run: run(image)
        runs["ssdlite320", precision, "objects"] = lambda run=run: ssdlite.decode(run(image)[0], whole)
    times: dict[tuple[str, str, str], list[float]] = {key: [] for key in runs}
    for _ in range(args.rounds + 3):
        for key, run in runs.items():
            run()
            started = time.perf_counter()
            run()
            times[key].append(1000 * (time.perf_counter() - started))
    rows = [
        {"detector": name, "precision": precision, "what": what, "milliseconds": median(values[3:])}
        for (name, precision, what), values in times.items()
    ]
    found = {(row["detector"], row["precision"], row["what"]): row["milliseconds"] for row in rows}
    result = {
        "what": f"latency of whole detectors with {args.model} at {side} pixels in OpenVINO, one image",
        "value": found["retinanet", "int8", "network"] / found["light", "int8", "network"],
        "unit": "latency of RetinaNet / latency of the light detector, int8, pixels to raw outputs",
        "ssdlite_ratio": {
            p: found["ssdlite320", p, "network"] / found["light", p, "network"] for p in ("int8", "fp32")
        },
        "command": f"python benchmarks/detector_latency.py --model {args.model} --threads {args.threads}",
        "threads": args.threads,
        "rows": rows,
        **facts(),
    }
    date = result["date"][:10]
    write_json(args.results / f"detector-latency_{hardware_name(result['hardware'])}_{date}.json", result)
    print(json.dumps({key: result[key] for key in ("value", "unit", "ssdlite_ratio", "rows")}, indent=1))


if __name__ == "__main__":
    main()
