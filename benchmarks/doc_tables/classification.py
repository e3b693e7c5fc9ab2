"""Speed and accuracy of classifiers, and of their exports."""

import json

from shvit.bench.peers import PROTOCOLS
from shvit.errors import counted

from .results import BATCH, NOTES, ROOT, latest, machine, one_thread, table, throughput, top1_cell

AVX2_RATIO = "cpu_ratio_amd-epyc-2core_2026-11-22.json"
NOT_RUN = "converted, not run"


def train_small() -> str:
    result = latest("train_small")
    epochs, size = result["recipe"]["epochs"], result["recipe"]["image_size"]
    threads = result["threads"]
    cores = "one core" if threads == 1 else f"{threads} cores"
    by = f" ({result['engine']}, {result['precision']})" if "engine" in result else ""
    return f"""\
    shvit train imagenette160 --model shvit_s1 --image-size {size} --epochs {epochs} --out runs/x
    shvit eval runs/x/best.safetensors imagenette160

reaches {result["value"]:.2%} top-1 on {result["images"]:,} validation images{by}. Training from scratch takes \
{result["seconds"] / 60:.0f} minutes on
{cores} of an {result["hardware"]["processor"]} CPU. A plain training loop (timm's loader, transforms and eager model, \
AdamW) would take
{result["speed_ratio"]:.2f} times as long on the same machine (extrapolated from \
{counted(result["plain_epochs_run"], "epoch")}). This is one run with one seed. \
`best.safetensors` holds
the better of the raw and the EMA weights, chosen on the same validation images."""


def cpu_ratio() -> str:
    result = latest("cpu_ratio")
    rates = result["machine"]["products"]
    ratios = {
        (row["engine"], row["precision"], row["model"], row["batch_size"]): row["ratio"] for row in result["rows"]
    }
    older = json.loads((ROOT / "results" / AVX2_RATIO).read_text())
    before = ", ".join(f"{row['ratio']:.2f}" for row in older["rows"] if row["precision"] == "int8")
    return "\n".join(
        [
            f"Median throughput on {one_thread(result)}, relative to timm's port of the same network",
            "in ONNX Runtime fp32. Runs are interleaved. On this CPU, an int8 matmul is "
            f"{rates['int8']['rate'] / rates['fp32']['rate']:.1f} times as fast as an fp32 matmul.",
            "",
            *table(
                ("engine", "precision", "S1, batch 16", "S1, batch 1", "S4, batch 16", "S4, batch 1"),
                (
                    [*pair, *(f"{ratios[*pair, model, batch]:.2f}" for model in MODELS for batch in (16, 1))]
                    for pair in dict.fromkeys(key[:2] for key in ratios)
                ),
            ),
            "",
            f"On the machine with AVX2 only, the values for OpenVINO int8 are {before} (in the order of the columns).",
        ]
    )


MODELS = ("shvit_s1", "shvit_s4")


def predict() -> str:
    result = latest("predict")
    speed = result["images_per_second"]
    few, many = result["peak_mib"].items()
    agreed = ", ".join(
        f"{part['top1_agreement']:.2%} of {part['images']:,} images ({name})"
        for name, part in result["agreement"].items()
    )
    return f"""\
`shvit predict` with an int8 export of S1 classifies {result["files"]:,} photographs at {speed["shvit"]:.0f} images/s \
on {machine(result)}.
This is {result["value"]:.1f} times the speed of a plain loop (PIL, timm's transform, a DataLoader with two workers, \
timm's `shvit_s1` in eager mode). Runs are interleaved.
Peak memory is {few[1]:.0f} MiB for {int(few[0]):,} files and {many[1]:.0f} MiB for {int(many[0]):,} files.

The fast image decoder leads to the same top-1 class as PIL and timm's transform on {agreed}."""


def parity() -> str:
    rows = []
    for name in ("s1", "s4"):
        for report in latest(f"parity-{name}")["reports"]:
            result = report.get("parity")
            cells = [NOT_RUN, "-"]
            if result:
                cells = [
                    f"{result['relative_difference']:.0e}",
                    f"{result['top1_agreement']:.0%} of {result['images']}",
                ]
            rows.append([name.upper(), report["engine"], report["precision"], *cells])
    columns = ("network", "format", "precision", "max logit difference / max logit", "top-1 agreement")
    return "\n".join(table(columns, rows))


def bench() -> str:
    result = throughput()
    speeds: dict[tuple[str, int], dict[str, str]] = {}
    top1 = {}
    for row in result["rows"]:
        network = row["model"], row["image_size"]
        top1[network] = row["published_top1"]
        speeds.setdefault(network, {})[f"{row['engine']} {row['precision']}"] = f"{row['images_per_second']:.0f}" + (
            f" ({row['share_of_ceiling']:.0%})" if row["share_of_ceiling"] else ""
        )
    runs = sorted({run for cells in speeds.values() for run in cells})
    rows = (
        [f"`{name}`", str(size), top1_cell(top1[name, size]), *(speeds[name, size].get(run, "-") for run in runs)]
        for name, size in sorted(speeds, key=lambda network: top1[network]["percent"])
    )
    return "\n".join(
        [
            f"Median images/s at batch size {BATCH} on {one_thread(result)}. In parentheses: the share of "
            "the machine's peak matmul FLOP/s in this precision. "
            "Each network runs at its own image size. Runs are interleaved.",
            "",
            *table(("network", "pixels", "published top-1 (fp32)", *runs), rows),
            "",
            f"{NOTES} Published top-1 is on ImageNet-1K, from timm's results tables (`starnet_s4`: its authors).",
        ]
    )


def paper_gpu() -> str:
    """The paper's throughput on a GPU, which this project has not measured."""
    speeds = PROTOCOLS["paper-gpu"].images_per_second
    return "\n".join(
        [
            "From the paper, not measured by this project: traced PyTorch in fp16 on an NVIDIA A100, batch size 256.",
            "",
            *table(("network", "images/s"), ([f"`{name}`", f"{speed:,}"] for name, speed in speeds.items())),
        ]
    )
