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
    ratios = {
        (row["engine"], row["precision"], row["model"], row["batch_size"]): row["ratio"] for row in result["rows"]
    }
    lines = [
        f"On {machine['cores']} cores of {machine['processor']} (AVX2 without VNNI), {result['threads']} thread: "
        "images a second as a multiple of timm's plain port of the",
        "same network in ONNX Runtime fp32, timed in turn, medians. A matrix product in int8 is "
        f"{rates['int8']['rate'] / rates['fp32']['rate']:.1f} times as fast as",
        "one in fp32 on this processor; with VNNI or AMX it would be some five times, which is not measured here.",
        "",
        "| engine | precision | S1, batch of 16 | S1, one image | S4, batch of 16 | S4, one image |",
        "|---|---|---|---|---|---|",
    ]
    for pair in dict.fromkeys(key[:2] for key in ratios):
        cells = [f"{ratios[*pair, model, batch]:.2f}" for model in ("shvit_s1", "shvit_s4") for batch in (16, 1)]
        lines.append(f"| {' | '.join([*pair, *cells])} |")
    return "\n".join(lines)


def predict() -> str:
    result = latest("predict")
    speed, machine = result["images_per_second"], result["hardware"]
    few, many = result["peak_mib"].items()
    agreed = "; ".join(
        f"{part['top1_agreement']:.2%} of {part['images']:,} ({name})" for name, part in result["agreement"].items()
    )
    return f"""\
`shvit predict` with an int8 file labels {result["files"]:,} photographs at {speed["shvit"]:.0f} images a second on \
{machine["cores"]} cores of {machine["processor"]},
{result["value"]:.1f} times a plain loop (PIL, timm's transform, two workers of a DataLoader, timm's shvit_s1 eager, \
in turns).
Its peak memory is {few[1]:.0f} MiB for {int(few[0]):,} files and {many[1]:.0f} MiB for {int(many[0]):,}. \
Its faster way from file to pixels gives the labels of PIL and
timm's transform on {agreed}."""


def parity() -> str:
    lines = [
        "| network | format | precision | largest difference of a logit, of the largest logit | first labels alike |",
        "|---|---|---|---|---|",
    ]
    for name in ("s1", "s4"):
        for report in latest(f"parity-{name}")["reports"]:
            found = report.get("parity")
            cells = ["converted, not run: its specification is the model's", "-"]
            if found:
                cells = [f"{found['relative_difference']:.0e}", f"{found['top1_agreement']:.0%} of {found['images']}"]
            lines.append(f"| {' | '.join([name.upper(), report['engine'], report['precision'], *cells])} |")
    return "\n".join(lines)


def bench() -> str:
    result = latest("bench")
    machine = result["hardware"]
    lines = [
        f"On {machine['cores']} cores of {machine['processor']}, {result['threads']} thread, batches of "
        f"{result['request']['batch_sizes'][0]}, each at its own resolution, timed in turn:",
        "",
        "| network | pixels | engine | images/s | of the matrix product's rate | published top-1 |",
        "|---|---|---|---|---|---|",
    ]
    for row in sorted(result["rows"], key=lambda row: -row["images_per_second"]):
        top1 = row["published_top1"]
        cells = [
            f"`{row['model']}`",
            str(row["image_size"]),
            f"{row['engine']} {row['precision']}",
            f"{row['images_per_second']:.0f}",
            f"{row['share_of_ceiling']:.0%}",
            f"{top1['percent']:.1f} %{'†' if top1['distilled'] else ''}" if top1 else "-",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", "† with distillation. The top-1 are those that timm lists, on ImageNet-1K."])


SECTIONS = {
    "bench": bench,
    "cpu_ratio": cpu_ratio,
    "parity": parity,
    "predict": predict,
    "train_small": train_small,
}


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
