"""Writes what was measured into the README, between its markers. A test fails where README and results/ differ.

python benchmarks/readme.py
"""

import json
from pathlib import Path

ROOT = Path(__file__).parents[1]


def latest(what: str) -> dict:
    """The newest result of this kind."""
    return json.loads(max((ROOT / "results").glob(f"{what}_*.json"), key=lambda path: path.stem[-10:]).read_text())


def train_small() -> str:
    result = latest("train_small")
    epochs, size = result["recipe"]["epochs"], result["recipe"]["image_size"]
    machine = result["hardware"]
    return f"""\
    $ shvit train imagenette160 --model shvit_s1 --image-size {size} --epochs {epochs} --out runs/x
    $ shvit eval runs/x/best.safetensors imagenette160
    top-1 {result["value"]:.2%} of {result["images"]:,} validation images

From fresh weights in {result["seconds"] / 60:.0f} minutes on {machine["cores"]} cores of a CPU \
({machine["processor"]}, no GPU): {result["speed_ratio"]:.2f} times
as fast as a plain loop of timm's loader, transforms and eager model (by {result["plain_epochs_run"]} of its epochs, \
on the same machine).
One seed; the saved weights are the better of the last ones and their average, judged on these same images."""


def cpu_ratio() -> str:
    result = latest("cpu_ratio")
    machine, rates = result["hardware"], result["machine"]["products"]
    lines = [
        f"S1 at 224 pixels on {machine['cores']} cores of {machine['processor']} (AVX2 without VNNI), "
        f"{result['threads']} thread: images a second as a multiple of",
        "timm's plain port in ONNX Runtime fp32, timed in turn, medians. A matrix product in int8 is "
        f"{rates['int8']['rate'] / rates['fp32']['rate']:.1f} times as fast as",
        "one in fp32 on this processor; with VNNI or AMX it would be some five times, which is not measured here.",
        "",
        "| engine | precision | batch of 16 | one image |",
        "|---|---|---|---|",
    ]
    ratios = {(row["engine"], row["precision"], row["batch_size"]): row["ratio"] for row in result["rows"]}
    for engine, precision in dict.fromkeys(key[:2] for key in ratios):
        lines.append(
            f"| {engine} | {precision} | {ratios[engine, precision, 16]:.2f} | {ratios[engine, precision, 1]:.2f} |"
        )
    return "\n".join(lines)


SECTIONS = {"cpu_ratio": cpu_ratio, "train_small": train_small}


def filled(text: str) -> str:
    """The README with every section made anew."""
    for name, section in SECTIONS.items():
        start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        before, _, rest = text.partition(start)
        text = f"{before}{start}{section()}\n{end}{rest.partition(end)[2]}"
    return text


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(filled(readme.read_text()))
