"""Writes what was measured into README and docs, between their markers. A test fails where they differ from results/.

python benchmarks/readme.py
"""

import json
from functools import partial
from pathlib import Path
from statistics import mean, variance

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
    machine, threads = result["hardware"], result["threads"]
    cores = "one core of a CPU" if threads == 1 else f"{threads} cores of a CPU"
    by = f" ({result['engine']}, {result['precision']})" if "engine" in result else ""
    return f"""\
    $ shvit train imagenette160 --model shvit_s1 --image-size {size} --epochs {epochs} --out runs/x
    $ shvit eval runs/x/best.safetensors imagenette160
    top-1 {result["value"]:.2%} of {result["images"]:,} validation images{by}

From fresh weights in {result["seconds"] / 60:.0f} minutes on {cores} \
({machine["processor"]}, no GPU). A plain loop of timm's loader, transforms and eager
model with AdamW takes {result["speed_ratio"]:.2f} times as long (by {result["plain_epochs_run"]} of its epochs, \
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


ENGINES = ("onnx", "openvino", "torch", "executorch")
IN_PAPER = {"gpu": "GPU", "cpu": "CPU", "cpu-onnx": "CPU, ONNX"}


def compared(what: str) -> str:
    """Costs and speeds of a comparison's networks, beside the paper's."""
    result = latest(f"study-{what}")
    rows, reference = result["rows"], result["reference"]
    [base] = [row["entry"]["paper"] for row in rows if row["entry"]["label"] == reference]
    engines = [name for name in ENGINES if any(speed["engine"] == name for speed in rows[0]["speeds"])]
    batch, columns = result["how"]["batch_sizes"][0], [*engines, *IN_PAPER.values()]
    lines = [
        *said(result),
        f"On {measured_on(result)}, fp32, batches of {batch}: images a second as a multiple of those of",
        f"*{reference}*, timed in turn, medians; in the last columns the paper's, on its machines. Memory-bound: the",
        "share of time in depthwise convolutions, norms, copies, softmax and elementwise work, in ONNX Runtime.",
        "",
        f"| network | pixels | parameters, M | MACs, M | activations, MB | memory-bound | {' | '.join(columns)} |",
        "|---" * (6 + len(columns)) + "|",
    ]
    for row in rows:
        entry, ratios = row["entry"], {speed["engine"]: speed["ratio"] for speed in row["speeds"]}
        bound = next((f"{one['memory_bound']:.0%}" for one in row["breakdowns"] if one["engine"] == "onnx"), "-")
        costs = [f"{row['params'] / 1e6:.1f}", f"{row['macs'] / 1e6:.0f}", f"{row['activation_bytes'] / 1e6:.1f}"]
        paper = [f"{entry['paper'][k] / base[k]:.2f}" if k in entry["paper"] and k in base else "-" for k in IN_PAPER]
        found = [f"{ratios[name]:.2f}" if ratios.get(name) else "-" for name in engines]
        cells = [entry["label"], str(row["image_size"]), *costs, bound, *found, *paper]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def said(result: dict) -> list[str]:
    """The command that measured it."""
    return [f"`{result['command']}`:", ""]


def measured_on(result: dict) -> str:
    threads = f"{result['threads']} thread of " if result["threads"] == 1 else ""
    return f"{threads}{hardware_in_words(result['hardware'])}"


def stages() -> str:
    """Latency by stage, of the macro designs."""
    rows = latest("study-macro")["rows"]
    names = ("stem", "stage 1", "stage 2", "stage 3", "stage 4", "head")
    lines = [
        "Milliseconds an image by stage in ONNX Runtime, from its profile:",
        "",
        f"| network | {' | '.join(names)} |",
        "|---" * (1 + len(names)) + "|",
    ]
    for row in rows:
        [one] = [one for one in row["breakdowns"] if one["engine"] == "onnx"]
        cells = [1e3 * one["stage_seconds"][name] / one["batch_size"] if name in one["stage_seconds"] else None
                 for name in names]  # fmt: skip
        lines.append(f"| {' | '.join([row['entry']['label'], *(f'{c:.2f}' if c else '-' for c in cells)])} |")
    return "\n".join(lines)


def learnt() -> str:
    """Accuracy of the ablation's networks."""
    result = latest("study-ablation-s1")
    how, rows = result["training"], result["rows"]
    several = [row["top1"] for row in rows if len(row["top1"]) > 1]
    spread = 100 * mean(variance(tops) for tops in several) ** 0.5
    lines = [
        *said(result),
        f"On {measured_on(result)}, {result['date']} ({result['note'][0].lower()}{result['note'][1:-1]}):",
        f"S1 at {how['image_size'] or result['how']['image_size']} pixels on imagenette160, {how['epochs']} epochs "
        "from fresh weights, all alike; top-1 of the best epoch:",
        "",
        "| network | seeds | mean | paper, S3 on ImageNet-1K |",
        "|---|---|---|---|",
    ]
    paper = {row["entry"]["label"]: row["entry"]["paper"].get("top1") for row in latest("study-ablation")["rows"]}
    for row in rows:
        each = ", ".join(f"{100 * top1:.2f}" for top1 in row["top1"]) or "-"
        average = f"{100 * row['mean_top1']:.2f} %" if row["mean_top1"] else "-"
        lines.append(f"| {row['entry']['label']} | {each} | {average} | {paper[row['entry']['label']]} % |")
    return "\n".join([*lines, "", f"Seeds of one network are {spread:.2f} points apart (standard deviation)."])


def breakdown() -> str:
    result = latest("study-breakdown")
    lines = [
        *said(result),
        f"On {measured_on(result)}, fp32, batches of {result['rows'][0]['batch_size']}, by each engine's profiler:",
        "",
        "| network | engine | ms an image | memory-bound | attention layers' share | memory-bound in these |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        cells = [
            f"{1e3 * row['seconds'] / row['batch_size']:.2f}",
            f"{row['memory_bound']:.0%}",
            f"{row['attention_seconds'] / row['seconds']:.0%}",
            f"{row['attention_memory_bound']:.0%}",
        ]
        lines.append(f"| {' | '.join([row['model'], row['engine'], *cells])} |")
    return "\n".join(lines)


def resolution() -> str:
    result = latest("study-resolution")
    sizes = result["sizes"]
    times = {(p["model"], p["engine"], p["image_size"]): p["milliseconds"] for p in result["points"]}
    lines = [
        *said(result),
        f"On {measured_on(result)}, fp32, batches of {result['how']['batch_sizes'][0]}, timed in turn; milliseconds "
        "an image:",
        "",
        f"| network | engine | {' | '.join(f'{size} px' for size in sizes)} |",
        "|---" * (2 + len(sizes)) + "|",
    ]
    for model, engine in dict.fromkeys(key[:2] for key in times):
        cells = [f"{times[model, engine, size]:.1f}" if (model, engine, size) in times else "-" for size in sizes]
        lines.append(f"| {' | '.join([f'`{model}`', engine, *cells])} |")
    return "\n".join(lines)


def sizes() -> str:
    """Accuracy against size, of a network trained at one."""
    result, trained = latest("study-resolution-s1"), latest("study-trained")["rows"]["s1"]
    engine = result["points"][0]["engine"]
    times = {p["image_size"]: p["milliseconds"] for p in result["points"] if p["engine"] == engine}
    tops = {row["image_size"]: row["top1"] for row in result["accuracies"]}
    lines = [
        *said(result),
        f"S1 trained at {trained['image_size']} pixels on imagenette160, {trained['epochs']} epochs, judged at other "
        f"sizes as it is, and its latency in {engine}, one image:",
        "",
        f"| pixels | {' | '.join(map(str, tops))} |",
        "|---" * (1 + len(tops)) + "|",
        f"| top-1, % | {' | '.join(f'{100 * top1:.1f}' for top1 in tops.values())} |",
        f"| ms | {' | '.join(f'{times[size]:.2f}' for size in tops)} |",
    ]
    return "\n".join(lines)


def redundancy() -> str:
    """What was found of trained transformers, layer by layer."""
    lines = []
    for what in ("deit", "swin"):
        result, trained = latest(f"study-redundancy-{what}"), latest("study-trained")["rows"][what]
        layers, top1 = result["layers"], result["top1"]
        similar = [100 * value for value in result["mean_similarity"]]
        third = len(similar) // 3
        early, late = mean(similar[:third]), mean(similar[-third:])
        saved = result["savings"]
        error = 100 * (top1 * (1 - top1) / result["images"]) ** 0.5
        lines += [
            f"`{result['model']}`, trained from fresh weights for {trained['epochs']} epochs, {trained['top1']:.2%} of",
            f"{trained['images']:,} validation images of imagenette160 (`{trained['command']}`).",
            "",
            *said(result),
            f"{top1:.2%} of {result['images']:,} images (standard error {error:.1f} points). Similarity of the last",
            f"{third} layers {late:.1f} %, of the first {third} {early:.1f} %: late layers are "
            f"{'more' if late > early else 'NOT more'} alike (in the paper they are more).",
            "",
            f"| | {' | '.join(str(n) for n in range(1, len(layers) + 1))} |",
            "|---" * (1 + len(layers)) + "|",
            f"| mean similarity, % | {' | '.join(f'{value:.0f}' for value in similar)} |",
        ]
        for title, key in (("best score with one head off, points lost", "without"), ("with one alone", "alone")):
            lost = [f"{100 * (top1 - max(layer[key])):.1f}" for layer in layers]
            lines.append(f"| {title} | {' | '.join(lost)} |")
        lines += ["", f"{len(result['could_be_single'])} layers lose at most 0.5 points with one head while the others "
                  f"keep theirs, {len(result['single_together'])} all at once."]  # fmt: skip
        if saved:
            faster = ", ".join(f"{name} {ratio:.2f}" for name, ratio in saved["speed_ratio"].items())
            lines[-1] += (
                f" With the other heads of these taken out: {100 * (saved['top1'] - top1):+.2f} points,\n"
                f"{saved['params_saved']:.1%} fewer parameters, {saved['macs_saved']:.1%} fewer operations; as a "
                f"multiple of the speed: {faster}."
            )
        lines.append("")
    return "\n".join(lines[:-1])


SECTIONS = {
    "README.md": {
        "bench": bench,
        "cpu_ratio": cpu_ratio,
        "parity": parity,
        "predict": predict,
        "train_small": train_small,
    },
    "docs/detection.md": {"by_heart": by_heart, "exports": exports, "learn": learn, "speed": speed},
    "docs/studies.md": {
        "macro": partial(compared, "macro"),
        "stages": stages,
        "ablation": partial(compared, "ablation"),
        "learnt": learnt,
        "designs": partial(compared, "designs"),
        "breakdown": breakdown,
        "resolution": resolution,
        "sizes": sizes,
        "redundancy": redundancy,
    },
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
