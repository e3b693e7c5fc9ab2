"""What the verbs say to people: plain data and results in, sentences and tables out."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ..console import BESIDE, CONTROL, METRICS, say, show_table
from ..redact import redacted

if TYPE_CHECKING:
    from ..calibrate import Calibration
    from ..data.shards.writer import Written
    from ..engines.base import Engine
    from ..evaluate import Report
    from ..predict.predictor import Prediction
    from ..train.loop import Result
    from ..train.profile import Profile

SHOWN_CLASSES = 20
"""Where there are more, the table of classes is left to --out."""
SPLITS = {"val": "validation ", "train": "training "}
"""What the images of a split are called."""


def trained(console: Console, result: "Result", data: str) -> None:
    """Where the run's best is, or how to go on with it."""
    best = quote(str(result.out / "best.safetensors"))
    if result.interrupted:
        say(console, f"stopped in epoch {result.epochs + 1}; {going_on(data, result.out)}")
    if result.best:
        key = next(key for key in METRICS if key in result.best)
        beside = "".join(f", {name} {result.best[name]:.2%}" for name in BESIDE.get(key, ()) if name in result.best)
        say(console, f"best {METRICS[key]} {result.best[key]:.2%}{beside} in epoch {result.best['epoch']}: {best}")
        say(console, f"try it: shvit predict {best} IMAGES…")


def going_on(data: str, out: Path) -> str:
    """How a run that was stopped is resumed."""
    return f"go on with: shvit train {quote(redacted(data))} --out {quote(str(out))} --resume"


def profiling(console: Console) -> None:
    """Said before the first slow step of `train --profile`."""
    from ..train.profile import STEPS

    say(
        console,
        f"profiling: {STEPS} steps each of reading alone, learning alone and both together; nothing is saved. "
        "Where the network is compiled, the first step takes minutes.",
    )


def profiled(console: Console, profile: "Profile") -> None:
    """Both rates, the slower one, and what to do about it."""
    rows = [
        ["reading alone", f"{profile.data:.0f}"],
        ["learning alone", f"{profile.compute:.0f}"],
        ["together", f"{profile.together:.0f}"],
    ]
    show_table(console, [f"batch {profile.batch_size}, {profile.workers} workers", "images/s"], rows)
    advice = {
        "data": "more --workers, or smaller files once and for all: shvit shard",
        "compute": "reading has time to spare; a larger machine, --precision or --compile on would tell",
    }
    say(
        console,
        f"{profile.bottleneck} is the bottleneck; {profile.data_wait:.0%} of the time goes by waiting for data. "
        f"{advice[profile.bottleneck]}",
    )


def calibrated(console: Console, result: "Calibration", path: Path) -> None:
    """What it brought."""
    before, after = result.before["top1"], result.after["top1"]
    say(
        console,
        f"top-1 at {result.model_file.preprocess.image_size} pixels: {before:.2%} before, {after:.2%} after, on "
        f"{result.after['images']} images; statistics of {result.images} training images",
    )
    say(console, f"wrote {path}")


def evaluated(console: Console, report: "Report", engine: "Engine", files: Sequence[Path]) -> None:
    """Accuracy, in all and of each class where they are few; what was left out, and what was written."""
    result = report.to_dict()
    of_objects = "bbox" in result
    if of_objects:
        accuracy, more = f"AP {_share(result['AP'])}, AP50 {_share(result['AP50'])}", ""
    else:
        accuracy, more = f"top-1 {result['top1']:.2%}", f"top-5 {result['top5']:.2%} · "
    images = f"{result['images']:,} {SPLITS.get(report.split, '')}images"
    say(console, f"{accuracy} of {images} ({engine.name}, {engine.precision})")
    say(console, f"{more}{result['images_per_second']:.0f} images/s")
    if of_objects:
        _show_objects(console, result)
    if result["bad_images"]:
        say(console, f"{result['bad_images']} images could not be used" + ("" if files else "; --out lists them"))
    if not of_objects and len(result["per_class"]) <= SHOWN_CLASSES:
        rows = [[name, f"{share:.1%}"] for name, share in result["per_class"].items()]
        show_table(console, ["class", "top-1"], rows)
    for path in files:
        say(console, f"wrote {path}")


def _show_objects(console: Console, result: dict[str, Any]) -> None:
    """COCO's numbers, a row for boxes and one for masks."""
    rows = [
        [name, *map(_share, result[kind].values())]
        for kind, name in (("bbox", "boxes"), ("segm", "masks"))
        if kind in result
    ]
    show_table(console, ["", *result["bbox"]], rows)


def _share(value: float) -> str:
    """Of COCO's numbers, which are -1 where there is no such object."""
    return "–" if value < 0 else f"{value:.1%}"


def sharded(console: Console, written: "Written") -> None:
    """What lies in the folder, what was left out, and what to do with it."""
    result = written.to_dict()
    out = quote(str(written.out))
    images, shards = (sum(result[key].values()) for key in ("images", "shards"))
    kept = f" ({written.found} of them were there)" if written.found else ""
    left_out = f" · {result['bad_images']} images left out, see bad_images.csv" if result["bad_images"] else ""
    done = "" if written.made else "nothing was to be done, all checksums are right: "
    say(
        console,
        f"{done}{images:,} images in {shards} shards{kept} · {result['bytes'] / 1e6:,.1f} MB{left_out} · "
        f"train on them: shvit train {out} --out RUN",
    )


def prediction(prediction: "Prediction") -> str:
    """One image's line."""
    if prediction.error is not None:
        return f"{prediction.path}  {prediction.error}"
    if prediction.boxes is not None:
        found = zip(prediction.labels, prediction.scores, prediction.boxes, strict=True)
        objects = [f"{name} {score:.0%} ({', '.join(f'{side:.0f}' for side in box)})" for name, score, box in found]
        return f"{prediction.path}  {'  '.join(objects) or 'nothing found'}"
    labels = "  ".join(f"{name} {score:.1%}" for name, score in zip(prediction.labels, prediction.scores, strict=True))
    return f"{prediction.path}  {labels}"


def exported(report: dict[str, Any]) -> Iterator[str]:
    """The lines of a report of `export`."""
    if held := report.get("floor"):
        yield (
            f"{METRICS[held['metric']]} {held['score']:.2%} in int8, {held['reference']:.2%} in fp32, on "
            f"{held['images']} images: {held['drop']:+.2f} points lost of {held['max_drop']} allowed"
        )
        for name, share in held["given_back"].items():
            yield f"  in higher precision: {name}, worth {share:.1%} of int8's error"
    if report["ran"]:
        parity = report["parity"]
        yield f"as PyTorch on {parity['images']} images: {_agreement(parity)}"
        yield (
            f"a batch of {parity['batch']}: {parity['latency_ms']:.2f} ms, PyTorch {parity['torch_latency_ms']:.2f} ms"
        )
    else:
        yield "converted, not run: its runtime is not on this machine; its specification is the model's"
    yield f"wrote {report['file']} ({report['bytes'] / 1e6:.1f} MB) and {report['file']}.parity.json"


def _agreement(parity: dict[str, Any]) -> str:
    if "top1_agreement" in parity:
        return (
            f"logits within {parity['relative_difference']:.1e} of their size (allowed {parity['bound']:g}), first "
            f"label alike on {parity['top1_agreement']:.1%}"
        )
    if not parity["objects"]:
        return "no object in any of them, so little is proved; --calibrate DATA gives images that have some"
    masks = f", masks overlap by {parity['mask_overlap']:.3f}" if parity["mask_overlap"] is not None else ""
    return (
        f"{parity['matched']:.1%} of {parity['objects']} objects found by both, scores within "
        f"{parity['score_difference']:.1e} (allowed {parity['bound']:g}){masks}"
    )


def models(console: Console, rows: Sequence[dict[str, Any]]) -> None:
    """The networks and their published weights."""
    table = [
        [r["name"], str(r["image_size"]), f"{r['params'] / 1e6:.1f} M", f"{r['macs'] / 1e6:.0f} M",
         r["published_weights"], f"{r['published_top1']:.1%}"]
        for r in rows
    ]  # fmt: skip
    show_table(console, ["name", "pixels", "params", "MACs", "published weights", "their top-1"], table)
    say(console, "timm/NAME gives any model of timm; top-1 is on ImageNet-1K, as timm lists it.")


def described(console: Console, facts: dict[str, Any]) -> None:
    """What a network costs; of a file also the most important of what its header says. Ten lines at most."""
    size = facts["image_size"]
    costs = (
        f"{facts['params'] / 1e6:.2f} M parameters, {facts['macs'] / 1e6:.1f} M MACs, "
        f"{facts['activations'] / 1e6:.2f} M activations"
        if facts["params"] is not None
        else "the file does not name its network"
    )
    say(console, f"{facts['name']} at {size}x{size}: {costs}")
    if facts["stages"]:
        rows = [[r["name"], f"{r['params']:,}", f"{r['macs']:,}", f"{r['activations']:,}"] for r in facts["stages"]]
        show_table(console, ["part", "parameters", "MACs", "activations"], rows)
    if "file" in facts:
        file = facts["file"]
        runs = f"{file['engine']} {file['precision']} · " if "engine" in file else ""
        classes = file["classes"]
        shown = "; ".join(classes[:3]) + ("; …" if len(classes) > 3 else "")
        say(console, f"{runs}task: {file['task']} · {len(classes)} classes: {shown}")
        say(console, " · ".join([*_trained_as(file), "--json has the rest"]))


def _trained_as(file: dict[str, Any]) -> Iterator[str]:
    """How good the model is, and where it comes from, as far as its file says."""
    metrics, provenance = file["metrics"], file["provenance"]
    names = {**METRICS, "published_top1": "published top-1"}
    scores = [f"{name} {metrics[key]:.2%}" for key, name in names.items() if key in metrics]
    if scores:
        yield scores[0] + (f" of {metrics['images']:,} images" if "images" in metrics else "")
    if {"name", "epochs"} <= set(provenance.get("recipe", ())):
        yield f"recipe {provenance['recipe']['name']}, {provenance['recipe']['epochs']} epochs"
    if "date" in provenance:
        yield f"trained {provenance['date'][:10]}"
    if "source" in provenance:
        yield f"from {provenance['source']}"


def surveyed(console: Console, facts: dict[str, Any]) -> None:
    """A data set: its splits, its classes, and each problem in a line."""
    unit = "objects" if facts["task"] == "detect" else "images"
    drawn = ", the validation images drawn from one pile" if facts["drawn"] else ""
    say(console, f"{facts['data']}: {len(facts['classes'])} classes{drawn}")
    names = [key for key in facts["splits"]["train"] if key not in ("height", "width")]
    rows = [[key.replace("_", " "), *(f"{part[key]:,}" for part in facts["splits"].values())] for key in names]
    for key in ("height", "width"):
        cells = ["–" if part[key] is None else " / ".join(map(str, part[key])) for part in facts["splits"].values()]
        rows.append([f"{key}: least / median / greatest", *cells])
    show_table(console, ["", *facts["splits"]], rows)
    classes = sorted(facts["classes"], key=lambda row: -row["train"])
    shown = (
        classes if len(classes) <= SHOWN_CLASSES else [*classes[: SHOWN_CLASSES // 2], *classes[-SHOWN_CLASSES // 2 :]]
    )
    table = [[row["name"], f"{row['train']:,}", f"{row['val']:,}"] for row in shown]
    if len(shown) < len(classes):
        table.insert(SHOWN_CLASSES // 2, [f"… {len(classes) - len(shown)} more (--json has all)", "", ""])
    show_table(console, [f"{unit} by class", *facts["splits"]], table)
    for line in facts["problems"]:
        say(console, line, style="yellow")
    if not facts["problems"]:
        say(console, "no problems found")


def as_json(document: Any, encoding: str = "utf-8") -> str:
    """Text that this encoding can write: outside UTF-8, and for what a terminal obeys, with JSON's own escapes."""
    escaped = not encoding.lower().startswith("utf")
    text = json.dumps(document, indent=2, ensure_ascii=escaped, default=str)
    return "\n".join(CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", line) for line in text.split("\n"))
