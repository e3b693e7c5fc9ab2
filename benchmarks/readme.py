"""Writes what was measured into README and docs, between their markers. A test fails where they differ from results/.

python benchmarks/readme.py
"""

import json
from pathlib import Path

from shvit.bench.peers import PAPER_BACKBONES
from shvit.bench.report import hardware_in_words

ROOT = Path(__file__).parents[1]
AVX2_RATIO = "cpu_ratio_amd-epyc-2core_2026-11-22.json"


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
        f"On {machine['cores']} cores of {hardware_in_words(machine)}, {result['threads']} thread:",
        "images a second as a multiple of timm's plain port of the same network in ONNX Runtime fp32, timed in turn,",
        f"medians. A matrix product in int8 is {rates['int8']['rate'] / rates['fp32']['rate']:.1f} times as fast as "
        "one in fp32 on this processor.",
        "",
        "| engine | precision | S1, batch of 16 | S1, one image | S4, batch of 16 | S4, one image |",
        "|---|---|---|---|---|---|",
    ]
    for pair in dict.fromkeys(key[:2] for key in ratios):
        cells = [f"{ratios[*pair, model, batch]:.2f}" for model in ("shvit_s1", "shvit_s4") for batch in (16, 1)]
        lines.append(f"| {' | '.join([*pair, *cells])} |")
    older = json.loads((ROOT / "results" / AVX2_RATIO).read_text())
    found = [f"{row['ratio']:.2f}" for row in older["rows"] if row["precision"] == "int8"]
    return "\n".join([*lines, "", f"On a processor with AVX2 alone int8 had {', '.join(found)}, in the same order."])


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


def loader() -> str:
    result = latest("loader")
    lines = [
        f"On {result['cores']} cores of {result['hardware']['processor']}, two workers, from files to normalised "
        "batches: images a second",
        "as a multiple of timm's `create_loader` with the same augmentation, in turns. `paper` is the paper's, at 224",
        "pixels; `light`, at 160, has crops and mirroring alone.",
        "",
        "| images | augmentation | images/s | timm normalises in its workers | in its prefetcher |",
        "|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        ratios = [f"{row['ratio'][name]:.2f}" for name in ("timm", "timm with prefetcher")]
        cells = [row["data"].removeprefix("data/"), row["augmentation"], f"{row['images_per_second']['shvit']:.0f}"]
        lines.append(f"| {' | '.join([*cells, *ratios])} |")
    return "\n".join(lines)


def step() -> str:
    result = latest("train-step")
    rates = result["images_per_second"]
    return (
        f"A training step of S1 at 160 pixels on {result['hardware']['cores']} cores of "
        f"{result['hardware']['processor']} ({result['precision']}, compiled, channels_last, with the\n"
        f"recipe's mixing, clipping and averaging) learns from {rates['ours']:.0f} images a second, "
        f"{result['value']:.2f} times timm's eager fp32 step; that is {result['share_of_ceiling']:.0%}\n"
        "of the rate of matrix products. "
        "Not measured on a GPU."
    )


def kill() -> str:
    result = latest("kill-resume")
    rows = result["rows"]
    for path in sorted((ROOT / "results").glob("kill-resume-*_*.json")):  # ways that were measured alone
        rows = rows | json.loads(path.read_text())["rows"]
    lines = [
        f"{result['what']}. Ended by SIGKILL at random moments, resumed each time:",
        "",
        "| way | kills | of these in the middle of writing a state | the same bits in the end |",
        "|---|---|---|---|",
    ]
    for name, row in rows.items():
        lines.append(f"| {name} | {row['kills']} | {row['states_cut']} | {'yes' if row['same'] else 'NO'} |")
    return "\n".join(lines)


def recipes() -> str:
    result = latest("recipes")
    student, teacher, highres = result["pairs"][0]["plain"]["recipe"], result["teacher"], result["highres"]
    tuned = highres["tuned"]
    lines = [
        f"S1 at {student['image_size']} pixels on imagenette160, {student['epochs']} epochs, with the labels alone and "
        f"with a teacher: `{teacher['model']}`,",
        f"trained by `shvit train` for {teacher['recipe']['epochs']} epochs to {teacher['top1']:.2%}. "
        "Top-1 of the best epoch:",
        "",
        "| seed | labels alone | distilled (soft, temperature 2) | gain, points |",
        "|---|---|---|---|",
        *(
            f"| {pair['seed']} | {max(pair['plain']['top1']):.2%} | {max(pair['distilled']['top1']):.2%} "
            f"| {pair['gain']:+.2f} |"
            for pair in result["pairs"]
        ),
        "",
        f"`highres` took the S1 of {highres['start']['image_size']} pixels with {highres['start']['top1']:.2%} to "
        f"{tuned['recipe']['image_size']} pixels, in {tuned['recipe']['epochs']} epochs: {max(tuned['top1']):.2%} "
        f"({highres['gain']:+.2f} points);",
        f"as it was, it has {highres['as_it_is']:.2%} there: it is the pixels that help, and not yet the tuning.",
    ]
    return "\n".join(lines)


PUBLISHED = {"S1 at 224": (33489, 241, 300), "S4 at 256": (14283, 986, 300), "S4 at 512": (3957, 3972, 30)}
"""Images a second in inference on an A100, millions of multiply-accumulates, and epochs, by the paper."""
IMAGES = 1_281_167


def estimate() -> str:
    """On paper: from the measured rates of reading and learning, and the paper's of inference."""
    measured, reading = latest("train-step"), latest("loader")
    here = measured["images_per_second"]["ours"] * 123  # million multiply-accumulates a second of S1 at 160 pixels
    core = reading["rows"][0]["images_per_second"]["shvit"] / reading["cores"]
    lines = [
        "An estimate, not a measurement. An epoch has 1.28 million images. A step is three forward passes, so a GPU",
        "learns from at most a third of the images that it can classify: of the paper's rates on an A100. Reading was",
        f"measured above: {core:.0f} images a second and core, photographs of 500x375, the paper's augmentation.",
        "",
        f"| | {' | '.join(PUBLISHED)}, `highres` |",
        "|---|---|---|---|",
    ]
    runs = [(8 * inference / 3, macs, epochs * IMAGES) for inference, macs, epochs in PUBLISHED.values()]
    rows = {
        "epochs": [str(epochs) for _, _, epochs in PUBLISHED.values()],
        "8 A100 learn from at most, images/s": [f"{rate:,.0f}" for rate, _, _ in runs],
        "which takes, hours": [f"{images / rate / 3600:.1f}" for rate, _, images in runs],
        "cores that read as many": [f"{rate / core:.0f}" for rate, _, _ in runs],
        "hours, with 96 cores to read": [f"{images / min(rate, 96 * core) / 3600:.1f}" for rate, _, images in runs],
        "days, on the two cores used here": [f"{images / (here / macs) / 86400:.0f}" for _, macs, images in runs],
    }
    lines += [f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()]
    return "\n".join(
        [
            *lines,
            "",
            "So one machine of 8 GPUs is bound by reading for S1 at 224 and S4 at 256, unless it has several hundred",
            "cores: shards of smaller images (`shvit shard --size 256`), and more machines, whose cores add up, help",
            "more than faster GPUs. At 512 pixels some 50 cores are enough. A teacher of 16 G multiply-accumulates",
            "costs 22 times the step of S1, and 5 times that of S4: distillation is bound by the teacher.",
        ]
    )


def by_heart() -> str:
    result = latest("by-heart")
    lines = [
        f"S1 on {len(result['photographs'])} photographs of coco421 with {result['objects']} objects of "
        f"{result['classes']} classes, none of them small, learnt by heart at 128 pixels",
        f"from a backbone trained on imagenette160 (`benchmarks/detection.py`), on {result['threads']} cores of "
        f"{hardware_in_words(result['hardware'])}:",
        "",
        "| task | AP50 of boxes | AP50 of masks | minutes |",
        "|---|---|---|---|",
    ]
    for task, run in result["runs"].items():
        masks = f"{run['segm']['AP50']:.1%}" if "segm" in run else "-"
        lines.append(f"| {task} | {run['bbox']['AP50']:.1%} | {masks} | {run['seconds'] / 60:.1f} |")
    return "\n".join(lines)


def learn() -> str:
    result = latest("learn")
    flags = " ".join(result["pairs"][0]["trained"]["command"].split()[5:])
    minutes = [pair[start]["seconds"] / 60 for pair in result["pairs"] for start in ("trained", "fresh")]
    lines = [
        "S1 as RetinaNet on the 215 training images of coco421, judged on its 206 validation images, with a backbone",
        "trained on imagenette160 and from fresh weights",
        f"(`{flags}`;",
        f"{max(minutes):.0f} minutes a run, on {result['threads']} cores of {hardware_in_words(result['hardware'])}):",
        "",
        "| seed | AP50, trained backbone | AP50, fresh weights | AP, trained | AP, fresh |",
        "|---|---|---|---|---|",
    ]
    for pair in result["pairs"]:
        found = [f"{pair[start]['bbox'][name]:.2%}" for name in ("AP50", "AP") for start in ("trained", "fresh")]
        lines.append(f"| {' | '.join([str(pair['seed']), *found])} |")
    lines += ["", "Far too few images and epochs for a detector of use; it shows which start is better."]
    return "\n".join(lines)


def exports() -> str:
    lines = [
        "| task | format | precision | objects alike | largest difference of a score | AP of int8, of fp32 |",
        "|---|---|---|---|---|---|",
    ]
    for task in ("detect", "segment"):
        for report in latest(f"parity-{task}")["reports"]:
            found, held = report.get("parity"), report.get("floor")
            cells = ["converted, not run: its specification is the model's", "-"]
            if "failed" in report:
                cells = [f"not kept: {report['failed']}", "-"]
            elif found:
                cells = [f"{found['matched']:.1%} of {found['objects']}", f"{found['score_difference']:.0e}"]
            ap = f"{held['score']:.2%}, {held['reference']:.2%}" if held else "-"
            lines.append(f"| {' | '.join([task, report['engine'], report['precision'], *cells, ap])} |")
    return "\n".join(lines)


def speed() -> str:
    result = latest("bench-detect")
    machine = result["hardware"]
    lines = [
        f"On {machine['cores']} cores of {hardware_in_words(machine)}, {result['threads']} thread, fp32, at "
        f"{result['rows'][0]['image_size']} pixels,",
        "timed in turn; milliseconds an image:",
        "",
        "| network | part | engine | batch of 16 | one image |",
        "|---|---|---|---|---|",
    ]
    times: dict[tuple[str, str, str], dict[int, float]] = {}
    for row in result["rows"]:
        key = row["part"], row["engine"], row["model"]
        times.setdefault(key, {})[row["batch_size"]] = 1e3 / row["images_per_second"]
    for (part, engine, model), cells in sorted(times.items()):
        shown = [f"{cells[batch]:.0f}" if batch in cells else "-" for batch in (16, 1)]
        lines.append(f"| {' | '.join([f'`{model}`', part, engine, *shown])} |")
    lines += [
        "",
        "Time of the other backbones as a multiple of S4's, batch of 16:",
        "",
        "| engine | ResNet-50 | MobileNetV3-Large |",
        "|---|---|---|",
    ]
    backbones = {"in the paper (PyTorch, traced)": {model: cpu for model, (_, cpu) in PAPER_BACKBONES.items()}}
    for part, engine, model in sorted(times):
        if part == "backbone":
            backbones.setdefault(engine, {})[model] = times[part, engine, model][16]
    for engine, took in backbones.items():
        cells = [f"{took[f'timm/{name}'] / took['shvit_s4']:.2f}" for name in ("resnet50", "mobilenetv3_large_100")]
        lines.append(f"| {' | '.join([engine, *cells])} |")
    return "\n".join(lines)


SECTIONS = {
    "README.md": {
        "bench": bench,
        "cpu_ratio": cpu_ratio,
        "parity": parity,
        "predict": predict,
        "train_small": train_small,
    },
    "docs/detection.md": {"by_heart": by_heart, "exports": exports, "learn": learn, "speed": speed},
    "docs/training.md": {"estimate": estimate, "kill": kill, "loader": loader, "recipes": recipes, "step": step},
}


def filled(path: str) -> str:
    """The page with every section made anew."""
    text = (ROOT / path).read_text()
    for name, section in SECTIONS[path].items():
        start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        before, _, rest = text.partition(start)
        text = f"{before}{start}{section()}\n{end}{rest.partition(end)[2]}"
    return text


if __name__ == "__main__":
    for page in SECTIONS:
        (ROOT / page).write_text(filled(page))
