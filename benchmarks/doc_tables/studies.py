"""Results of `shvit study`, with the paper's numbers."""

from statistics import mean, variance

from .results import command, latest, one_thread, table

ENGINES = ("onnx", "openvino", "torch", "executorch")
IN_PAPER = {"gpu": "paper, GPU", "cpu": "paper, CPU", "cpu-onnx": "paper, CPU, ONNX"}


def compared(what: str) -> str:
    """Cost and throughput of the compared networks, with the paper's numbers."""
    result = latest(f"study-{what}")
    reference = result["reference"]
    [base] = [row["entry"]["paper"] for row in result["rows"] if row["entry"]["label"] == reference]
    engines = [name for name in ENGINES if any(speed["engine"] == name for speed in result["rows"][0]["speeds"])]
    rows = []
    for row in result["rows"]:
        entry, ratios = row["entry"], {speed["engine"]: speed["ratio"] for speed in row["speeds"]}
        bound = next((f"{one['memory_bound']:.0%}" for one in row["breakdowns"] if one["engine"] == "onnx"), "-")
        costs = [f"{row['params'] / 1e6:.1f}", f"{row['macs'] / 1e6:.0f}", f"{row['activation_bytes'] / 1e6:.1f}"]
        paper = [f"{entry['paper'][k] / base[k]:.2f}" if k in entry["paper"] and k in base else "-" for k in IN_PAPER]
        measured = [f"{ratios[name]:.2f}" if ratios.get(name) else "-" for name in engines]
        rows.append([entry["label"], str(row["image_size"]), *costs, bound, *measured, *paper])
    costs = ("network", "pixels", "params, M", "MACs, M", "activations, MB", "memory-bound")
    return "\n".join(
        [
            *command(result),
            f"Measured on {one_thread(result)}, in fp32 at batch size {result['how']['batch_sizes'][0]}. The engine "
            f"columns (onnx …) show the median throughput relative to *{reference}*,",
            "from interleaved runs. The paper columns show the same ratio, computed from the paper's numbers. "
            "*Memory-bound* is the share of ONNX Runtime's time",
            "that is spent in depthwise convolutions, norms, copies, softmax and elementwise operations.",
            "",
            *table((*costs, *engines, *IN_PAPER.values()), rows),
        ]
    )


def stages() -> str:
    """Latency by stage, for the networks of the macro study."""
    names = ("stem", "stage 1", "stage 2", "stage 3", "stage 4", "head")
    rows = []
    for row in latest("study-macro")["rows"]:
        [one] = [one for one in row["breakdowns"] if one["engine"] == "onnx"]
        seconds = one["stage_seconds"]
        cells = (f"{1e3 * seconds[name] / one['batch_size']:.2f}" if seconds.get(name) else "-" for name in names)
        rows.append([row["entry"]["label"], *cells])
    return "\n".join(
        ["Milliseconds per image in each stage, from ONNX Runtime's profiler:", "", *table(("network", *names), rows)]
    )


def ablation_accuracy() -> str:
    """Accuracy of the networks of the ablation study."""
    result = latest("study-ablation-s1")
    how = result["training"]
    several = [row["top1"] for row in result["rows"] if len(row["top1"]) > 1]
    spread = 100 * mean(variance(tops) for tops in several) ** 0.5
    paper = {row["entry"]["label"]: row["entry"]["paper"].get("top1") for row in latest("study-ablation")["rows"]}
    rows = []
    for row in result["rows"]:
        each = ", ".join(f"{100 * top1:.2f}" for top1 in row["top1"]) or "-"
        average = f"{100 * row['mean_top1']:.2f} %" if row["mean_top1"] else "-"
        rows.append([row["entry"]["label"], each, average, f"{paper[row['entry']['label']]} %"])
    return "\n".join(
        [
            *command(result),
            f"S1 with each token mixer, trained from scratch with the same recipe for {how['epochs']} epochs on "
            f"imagenette160 at {how['image_size'] or result['how']['image_size']} pixels. "
            "Top-1 is that of the best epoch.",
            f"Measured on {one_thread(result)} on {result['date']}. The run folders no longer exist; the numbers were "
            "recorded in LOG.md on the same day.",
            "",
            *table(("network", "top-1 by seed, %", "mean", "paper, S3 on ImageNet-1K"), rows),
            "",
            f"The pooled standard deviation between seeds is {spread:.2f} points.",
        ]
    )


def breakdown() -> str:
    result = latest("study-breakdown")
    rows = (
        [
            row["model"],
            row["engine"],
            f"{1e3 * row['seconds'] / row['batch_size']:.2f}",
            f"{row['memory_bound']:.0%}",
            f"{row['attention_seconds'] / row['seconds']:.0%}",
            f"{row['attention_memory_bound']:.0%}",
        ]
        for row in result["rows"]
    )
    columns = (
        "network",
        "engine",
        "ms per image",
        "memory-bound",
        "time in attention layers",
        "memory-bound in attention layers",
    )
    return "\n".join(
        [
            *command(result),
            f"Measured by the engines' profilers on {one_thread(result)}, in fp32 at batch size "
            f"{result['rows'][0]['batch_size']}. *Memory-bound* is the share of the network's",
            "time that is spent in the operations listed under *Macro design*. In the last column, it is the share of "
            "the time in attention layers.",
            "",
            *table(columns, rows),
        ]
    )


def resolution() -> str:
    result = latest("study-resolution")
    sizes = result["sizes"]
    times = {(p["model"], p["engine"], p["image_size"]): p["milliseconds"] for p in result["points"]}
    rows = (
        [f"`{pair[0]}`", pair[1], *(f"{times[*pair, size]:.1f}" if (*pair, size) in times else "-" for size in sizes)]
        for pair in dict.fromkeys(key[:2] for key in times)
    )
    return "\n".join(
        [
            *command(result),
            f"Milliseconds per image on {one_thread(result)}, in fp32 at batch size "
            f"{result['how']['batch_sizes'][0]}. Runs are interleaved.",
            "",
            *table(("network", "engine", *(f"{size} px" for size in sizes)), rows),
        ]
    )


def sizes() -> str:
    """Accuracy of a trained network at other image sizes."""
    result, trained = latest("study-resolution-s1"), latest("study-trained")["rows"]["s1"]
    engine = result["points"][0]["engine"]
    times = {p["image_size"]: p["milliseconds"] for p in result["points"] if p["engine"] == engine}
    tops = {row["image_size"]: row["top1"] for row in result["accuracies"]}
    return "\n".join(
        [
            *command(result),
            f"S1 trained at {trained['image_size']} pixels on imagenette160 for {trained['epochs']} epochs, evaluated "
            f"at other sizes without further training. Latency is for one image with the engine {engine}:",
            "",
            *table(
                ("pixels", *map(str, tops)),
                [
                    ["top-1, %", *(f"{100 * top1:.1f}" for top1 in tops.values())],
                    ["ms", *(f"{times[size]:.2f}" for size in tops)],
                ],
            ),
        ]
    )


def redundancy() -> str:
    """Redundancy of the heads of trained transformers, by layer."""
    return "\n\n".join(_redundancy_of(what) for what in ("deit", "swin"))


def _redundancy_of(what: str) -> str:
    result, trained = latest(f"study-redundancy-{what}"), latest("study-trained")["rows"][what]
    layers, top1, saved = result["layers"], result["top1"], result["savings"]
    similar = [100 * value for value in result["mean_similarity"]]
    third = len(similar) // 3
    early, late = mean(similar[:third]), mean(similar[-third:])
    error = 100 * (top1 * (1 - top1) / result["images"]) ** 0.5

    def lost(key: str) -> list[str]:
        return [f"{100 * (top1 - max(layer[key])):.1f}" for layer in layers]

    summary = (
        f"{len(result['could_be_single'])} of the layers can each be reduced to one head, one layer at a time, at a "
        f"cost of at most 0.5 points of top-1. {len(result['single_together'])} of them can be reduced together within "
        "the same limit."
    )
    if saved:
        faster = ", ".join(f"{name} {ratio:.2f}" for name, ratio in saved["speed_ratio"].items())
        summary += (
            f" Removing the other heads of\nthese {len(result['single_together'])} layers changes top-1 by "
            f"{100 * (saved['top1'] - top1):+.2f} points and "
            f"saves {saved['params_saved']:.1%} of the parameters and {saved['macs_saved']:.1%} of the MACs.\n"
            f"Throughput relative to the full network: {faster}."
        )
    return "\n".join(
        [
            f"**`{result['model']}`**, trained from scratch for {trained['epochs']} epochs, with a top-1 of "
            f"{trained['top1']:.2%} on",
            f"{trained['images']:,} validation images of imagenette160.",
            "",
            f"Training: `{trained['command']}`",
            "",
            *command(result),
            f"Top-1 is {top1:.2%} on the {result['images']:,} images of this study (standard error {error:.1f} "
            f"points). The mean similarity of heads is {early:.1f} %",
            f"in the first {third} layers and {late:.1f} % in the last {third}. In the paper, heads are more similar "
            f"in late layers than in early ones; here, they are {'too' if late > early else 'not'}.",
            "",
            *table(
                ("layer", *(str(n) for n in range(1, len(layers) + 1))),
                [
                    ["mean similarity of heads, %", *(f"{value:.0f}" for value in similar)],
                    ["points lost without the least important head", *lost("without")],
                    ["points lost with only the most important head", *lost("alone")],
                ],
            ),
            "",
            summary,
        ]
    )
