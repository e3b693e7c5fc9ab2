"""Detection and segmentation: accuracy from few images, overfitting, transfer, exports and speed."""

from shvit.bench.peers import PAPER_BACKBONES
from shvit.provenance import hardware_in_words

from .classification import NOT_RUN
from .results import latest, machine, one_thread, table

NAMES = {"light": "light", "retinanet": "RetinaNet", "ssdlite320": "torchvision's SSDLite320"}
LEARNERS = {
    "light": ("light", "BCCD, 292 images"),
    "few": ("light", "BCCD, 50 images"),
    "retinanet": ("retinanet", "BCCD, 292 images"),
    "ssdlite": ("ssdlite320", "BCCD, 292 images"),
    "coco": ("light", "coco421, 215 images"),
    "overfit": ("light", "16 images of coco421, evaluated on the same images"),
}
"""The detector and the training images of each kind of row in the result of `benchmarks/detectors.py`."""


def learners() -> str:
    result = latest("detectors")
    rows = []
    for row in result["rows"]:
        detector, data = LEARNERS[row["kind"]]
        suppressed = f"{row['one_to_many_nms_AP']:.1%}" if "one_to_many_nms_AP" in row else "-"
        accuracies = f"{row['AP50']:.1%}", f"{row['AP']:.1%}", suppressed
        less = "< " if "suspended" in row else ""  # for other measurements, which its seconds include
        cost = f"{less}{row['seconds'] / 60:.1f}", str(row["cores"])
        rows.append([NAMES[detector], data, str(row["seed"]), *accuracies, *cost])
    columns = ("detector", "training images", "seed", "AP50", "AP", "AP, one-to-many with NMS", "minutes", "cores")
    return "\n".join([f"Trained on {hardware_in_words(result['hardware'])}:", "", *table(columns, rows)])


def detectors() -> str:
    result = latest("detector-latency")
    times: dict[tuple[str, str], list[str]] = {}
    for row in result["rows"]:
        times.setdefault((row["detector"], row["precision"]), []).append(f"{row['milliseconds']:.1f}")
    rows = [[NAMES[name], precision, *cells] for (name, precision), cells in times.items()]
    columns = ("detector", "precision", "network, ms", "with selection of objects, ms")
    return "\n".join([f"Measured on {one_thread(result)}, one image per call:", "", *table(columns, rows)])


def overfit() -> str:
    result = latest("by-heart")
    rows = []
    for task, run in result["runs"].items():
        masks = f"{run['segm']['AP50']:.1%}" if "segm" in run else "-"
        rows.append([task, f"{run['bbox']['AP50']:.1%}", masks, f"{run['seconds'] / 60:.1f}"])
    return "\n".join(
        [
            f"RetinaNet and Mask R-CNN with an S1 backbone overfit {len(result['photographs'])} photographs of "
            f"coco421 (a part of COCO) at 128 pixels. The photographs show {result['objects']} objects of "
            f"{result['classes']} classes, none of them small.",
            f"The backbone was trained on imagenette160. Measured by `benchmarks/detection.py` on {machine(result)}:",
            "",
            *table(("task", "box AP50", "mask AP50", "minutes"), rows),
        ]
    )


def transfer() -> str:
    result = latest("learn")
    flags = " ".join(result["pairs"][0]["trained"]["command"].split()[5:])
    minutes = [pair[start]["seconds"] / 60 for pair in result["pairs"] for start in ("trained", "fresh")]
    keys = [(start, metric) for metric in ("AP50", "AP") for start in ("trained", "fresh")]
    rows = [
        [str(pair["seed"]), *(f"{pair[start]['bbox'][metric]:.2%}" for start, metric in keys)]
        for pair in result["pairs"]
    ]
    columns = ("seed", "AP50, trained backbone", "AP50, from scratch", "AP, trained backbone", "AP, from scratch")
    return "\n".join(
        [
            "RetinaNet with an S1 backbone, trained on the 215 training images of coco421 and evaluated on its 206 "
            "validation images. The backbone was",
            "either trained on imagenette160 or has random weights (from scratch). Each run takes "
            f"{max(minutes):.0f} minutes on {machine(result)}.",
            f"Flags: `{flags}`.",
            "",
            *table(columns, rows),
            "",
            "There are too few images and epochs for a useful detector. The comparison shows only that AP is "
            "higher with the trained backbone than from scratch.",
        ]
    )


def exports() -> str:
    rows = []
    for task in ("detect", "segment"):
        for report in latest(f"parity-{task}")["reports"]:
            result, floor = report.get("parity"), report.get("floor")
            cells = [NOT_RUN, "-"]
            if "failed" in report:
                cells = [f"not kept: {report['failed']}", "-"]
            elif result:
                cells = [f"{result['matched']:.1%} of {result['objects']}", f"{result['score_difference']:.0e}"]
            ap = f"{floor['score']:.2%} / {floor['reference']:.2%}" if floor else "-"
            rows.append([task, report["engine"], report["precision"], *cells, ap])
    columns = ("task", "format", "precision", "matched objects", "max score difference", "AP, int8 / fp32")
    return "\n".join(table(columns, rows))


def speed() -> str:
    result = latest("bench-detect")
    times: dict[tuple[str, str, str], dict[int, float]] = {}
    for row in result["rows"]:
        key = row["part"], row["engine"], row["model"]
        times.setdefault(key, {})[row["batch_size"]] = 1e3 / row["images_per_second"]
    rows = [
        [f"`{model}`", part, engine, *(f"{cells[batch]:.0f}" if batch in cells else "-" for batch in (16, 1))]
        for (part, engine, model), cells in sorted(times.items())
    ]
    backbones = {"the paper (PyTorch, traced)": {model: cpu for model, (_, cpu) in PAPER_BACKBONES.items()}}
    for part, engine, model in sorted(times):
        if part == "backbone":
            backbones.setdefault(engine, {})[model] = times[part, engine, model][16]
    peers = ("timm/resnet50", "timm/mobilenetv3_large_100")
    ratios = (
        [engine, *(f"{took[name] / took['shvit_s4']:.2f}" for name in peers)] for engine, took in backbones.items()
    )
    return "\n".join(
        [
            f"Milliseconds per image on {one_thread(result)}, in fp32 at {result['rows'][0]['image_size']} pixels. "
            "Runs are interleaved. Backbones are timed up to the last feature map, whole detectors from pixels to "
            "boxes.",
            "",
            *table(("network", "part", "engine", "batch 16", "batch 1"), rows),
            "",
            "Time of each backbone, relative to the time of S4's backbone, at batch size 16:",
            "",
            *table(("engine", "ResNet-50", "MobileNetV3-Large"), ratios),
        ]
    )
