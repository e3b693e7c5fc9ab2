"""Time of each kind of layer of SHViT on the engine `native`, for one image on one thread, with the minimum beside it.

    python benchmarks/native_profile.py --peak 235

PEAK is the rate of the processor's dot-product instructions, in 10^9 multiply-accumulates per second on one thread: for
AVX-512 with VNNI, 64 times the clock rate in GHz. The minimum is the number of multiply-accumulates divided by it.
Each time is a median of 100 calls, with the weights in the caches as far as they fit.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

import shvit
from shvit.bench.report import hardware_name
from shvit.data.transforms import Preprocess
from shvit.engines.native.engine import NativeEngine, quantized_network
from shvit.engines.native.library import instruction_set
from shvit.engines.native.quantization import IntegerLayer
from shvit.files import write_json
from shvit.modelfile import ModelFile
from shvit.provenance import facts

CALLS = 100


def multiplications(layer: IntegerLayer, pixels: int) -> int:
    """Multiply-accumulates of a layer whose output has this many pixels."""
    if layer.kind == "attend":
        return pixels * layer.inputs * layer.outputs + pixels**2 * (16 + layer.inputs)
    if layer.kind in ("excite", "classify"):
        return layer.weight.size + layer.weight2.size
    return pixels * layer.weight.size


def profile(name: str, peak: float) -> dict[str, Any]:
    """Microseconds of each kind of layer, and the minimum."""
    network = shvit.create_model(name).eval()
    side = network.image_size
    classes = tuple(map(str, range(network.num_classes)))
    model_file = ModelFile(network, classes, Preprocess(side))
    images = torch.randint(0, 256, (4, 3, side, side), dtype=torch.uint8)
    engine = NativeEngine(model_file, "int8", "cpu", 1, [images])
    seconds = np.median([engine.layer_seconds(images[:1]) for _ in range(CALLS)], axis=0)
    rows: dict[str, dict[str, float]] = {}
    for layer, took in zip(quantized_network(model_file, [images]).layers, seconds, strict=True):
        side = (side + 1) // 2 if layer.kind == "convolve" or layer.stride == 2 else side
        kind = f"pointwise {side}x{side}" if layer.kind == "pointwise" else layer.kind
        row = rows.setdefault(kind, {"layers": 0, "us": 0.0, "minimum_us": 0.0, "weight_bytes": 0})
        row["layers"] += 1
        row["us"] += 1e6 * float(took)
        row["minimum_us"] += multiplications(layer, side**2) / peak / 1e3
        row["weight_bytes"] += layer.weight.nbytes + layer.weight2.nbytes
    total, minimum = (sum(row[key] for row in rows.values()) for key in ("us", "minimum_us"))
    return {"model": name, "us": total, "minimum_us": minimum, "share": minimum / total, "kinds": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["shvit_s1", "shvit_s2", "shvit_s3", "shvit_s4"])
    parser.add_argument("--peak", type=float, required=True)
    parser.add_argument("--results", type=Path, default=Path(__file__).parents[1] / "results")
    args = parser.parse_args()
    rows = [profile(name, args.peak) for name in args.models]
    for row in rows:
        print(f"{row['model']}: {row['us']:,.0f} us, {row['share']:.0%} of the peak")
        for kind, one in row["kinds"].items():
            print(f"  {kind} ({one['layers']}): {one['us']:.0f} us, minimum {one['minimum_us']:.0f}")
    result = {
        "what": f"{rows[0]['model']}, int8, one image on one thread",
        "value": rows[0]["us"],
        "unit": "microseconds",
        "threads": 1,
        "peak_gmacs": args.peak,
        "instruction_set": instruction_set(),
        "rows": rows,
        **facts(),
    }
    name = f"native-profile_{hardware_name(result['hardware'])}_{result['date'][:10]}.json"
    write_json(args.results / name, result)


if __name__ == "__main__":
    main()
