"""Training: speed, exact resuming and accuracy."""

import json

from .results import ROOT, latest, table


def loader() -> str:
    result = latest("loader")
    rows = [
        [
            row["data"].removeprefix("data/"),
            row["augmentation"],
            f"{row['images_per_second']['shvit']:.0f}",
            *(f"{row['ratio'][name]:.2f}" for name in ("timm", "timm with prefetcher")),
        ]
        for row in result["rows"]
    ]
    columns = (
        "images",
        "augmentation",
        "images/s",
        "relative to timm (no prefetcher)",
        "relative to timm (prefetcher)",
    )
    return "\n".join(
        [
            f"Images/s, from files to normalized batches, with {result['workers']} workers on {result['cores']} cores "
            f"of {result['hardware']['processor']}. The last two columns give",
            "this speed relative to timm's `create_loader` with the same augmentation: without timm's prefetcher (the "
            "workers normalize the images) and with it (the main process normalizes them). Runs are",
            "interleaved. `paper` is the paper's augmentation at 224 pixels. `light` consists of crops and flips, at "
            "160 pixels.",
            "",
            *table(columns, rows),
        ]
    )


def scale() -> str:
    result = latest("data-at-scale")
    names = {"shvit": "shvit", "torchvision": "torchvision's ImageFolder and torch's DataLoader"}
    rows = [
        [
            names[row["loader"]],
            f"{row['seconds_to_open']:.0f}",
            f"{row['private_per_worker']:.0f}",
            f"{row['all_processes']:.0f}",
        ]
        for row in result["rows"]
    ]
    columns = ("loader", "seconds to open", "MiB of a worker that it does not share", "MiB of all processes")
    return "\n".join([f"Measured: {result['what']}, after an epoch.", "", *table(columns, rows)])


def step() -> str:
    result = latest("train-step")
    return (
        f"A training step of S1 at 160 pixels on {result['hardware']['cores']} cores of "
        f"{result['hardware']['processor']} ({result['precision']}, compiled, channels_last, with the\n"
        f"recipe's mixup, CutMix, clipping and EMA) processes {result['images_per_second']['ours']:.0f} images/s. "
        f"This is {result['value']:.2f} times the speed of timm's step (eager, fp32)\nand uses "
        f"{result['share_of_ceiling']:.0%} of the peak matmul FLOP/s. The step has not been timed on a GPU."
    )


def kill() -> str:
    result = latest("kill-resume")
    rows = result["rows"]
    for path in sorted((ROOT / "results").glob("kill-resume-*_*.json")):  # configurations measured separately
        rows = rows | json.loads(path.read_text())["rows"]
    cells = (
        [name, str(row["kills"]), str(row["states_cut"]), "yes" if row["same"] else "NO"] for name, row in rows.items()
    )
    return "\n".join(
        [
            "Each run trains `shvit_s1` on 512 images of imagenette160, is killed (SIGKILL) at random moments, and is "
            "resumed each time. The final",
            "weights are compared with those of an uninterrupted run:",
            "",
            *table(("configuration", "kills", "kills while writing a checkpoint", "bit-identical weights"), cells),
        ]
    )


def recipes() -> str:
    result = latest("recipes")
    student, teacher, highres = result["pairs"][0]["plain"]["recipe"], result["teacher"], result["highres"]
    tuned = highres["tuned"]
    rows = (
        [
            str(pair["seed"]),
            f"{max(pair['plain']['top1']):.2%}",
            f"{max(pair['distilled']['top1']):.2%}",
            f"{pair['gain']:+.2f}",
        ]
        for pair in result["pairs"]
    )
    return "\n".join(
        [
            f"S1, trained at {student['image_size']} pixels on imagenette160 for {student['epochs']} epochs, without "
            f"and with a teacher (`{teacher['model']}`,",
            f"trained by `shvit train` for {teacher['recipe']['epochs']} epochs, with {teacher['top1']:.2%} top-1). "
            "Top-1 after the best epoch:",
            "",
            *table(("seed", "labels only", "distilled (soft, temperature 2)", "gain, points"), rows),
            "",
            f"An S1 trained at {highres['start']['image_size']} pixels has {highres['start']['top1']:.2%} top-1, and "
            f"{max(tuned['top1']):.2%} ({highres['gain']:+.2f} points) after fine-tuning with `highres` at "
            f"{tuned['recipe']['image_size']} pixels for {tuned['recipe']['epochs']} epochs.",
            f"Without fine-tuning, this S1 has {highres['as_it_is']:.2%} at {tuned['recipe']['image_size']} pixels. "
            "The gain therefore comes from the larger images, not from",
            "fine-tuning.",
        ]
    )


PUBLISHED = {"S1 at 224": (33489, 241, 300), "S4 at 256": (14283, 986, 300), "S4 at 512": (3957, 3972, 30)}
"""Inference images/s on an A100, millions of multiply-accumulates, and epochs, from the paper."""
IMAGES = 1_281_167
S1_AT_160 = 123
"""Millions of multiply-accumulates of S1 at 160 pixels."""


def estimate() -> str:
    """Estimate from the measured throughput of loading and training, and the paper's inference throughput."""
    measured, reading = latest("train-step"), latest("loader")
    here = measured["images_per_second"]["ours"] * S1_AT_160
    core = reading["rows"][0]["images_per_second"]["shvit"] / reading["cores"]
    runs = [(8 * inference / 3, macs, epochs * IMAGES) for inference, macs, epochs in PUBLISHED.values()]
    rows = {
        "epochs": [str(epochs) for _, _, epochs in PUBLISHED.values()],
        "maximum training throughput of 8 A100, images/s": [f"{rate:,.0f}" for rate, _, _ in runs],
        "hours at this throughput": [f"{images / rate / 3600:.1f}" for rate, _, images in runs],
        "CPU cores that load images at this throughput": [f"{rate / core:.0f}" for rate, _, _ in runs],
        "hours if 96 cores load images": [f"{images / min(rate, 96 * core) / 3600:.1f}" for rate, _, images in runs],
        "days on two CPU cores, without a GPU": [f"{images / (here / macs) / 86400:.0f}" for _, macs, images in runs],
    }
    return "\n".join(
        [
            "These numbers are estimates, not measurements. ImageNet-1K has 1.28 million training images. A training "
            "step costs about three forward",
            "passes, so training throughput is at most a third of the inference throughput that the paper reports "
            "for an A100. Data loading was",
            f"measured [above](#data-loading): {core:.0f} images/s per core (photographs of 500x375, the paper's "
            "augmentation).",
            "",
            *table(("", *list(PUBLISHED)[:-1], f"{list(PUBLISHED)[-1]}, `highres`"),
                   ([name, *cells] for name, cells in rows.items())),
            "",
            "On one machine with 8 GPUs, data loading is the bottleneck for S1 at 224 and S4 at 256 pixels, unless the "
            "machine has several",
            "hundred CPU cores. Smaller images in the shards (`shvit shard --size 256`) or more machines help more "
            "than faster GPUs. At 512",
            "pixels, about 50 cores are enough. In distillation, the teacher is the bottleneck: a forward pass of a "
            "teacher with 16 G MACs costs 22 times as much as",
            "a training step of S1, and 5 times as much as a training step of S4.",
        ]
    )  # fmt: skip
