"""`shvit info`."""

from collections.abc import Iterator
from typing import Any

from rich.console import Console

from ..console import main_metrics, say, show_table
from ..errors import counted
from .app import NONE_TYPED, Flags, Json, console_for, finish
from .eval import SHOWN_CLASSES


def info(name: str, /, *, image_size: int | None = None, json: Json = False, typed: Flags = NONE_TYPED) -> None:
    """Show a model's cost and metadata, or a dataset's contents and problems.

    Text output is a summary; --json prints everything.

    Parameters
    ----------
    name
        A model (shvit_s1 to shvit_s4, timm/NAME, published weights such as shvit_s1.in1k, a model file or an exported
        file), or a dataset in any form that train accepts.
    image_size
        Image size in pixels for computing the costs of a model. Default: the model's own size.
    """
    from ..data.sources import is_data
    from ..engines import is_exported
    from ..model.architecture import list_models

    console = console_for(json)
    if name not in list_models() and not is_exported(name) and is_data(name):
        from ..data.survey import survey

        typed.refuse("image-size", because=f"on datasets, and {name} is a dataset")
        facts = survey(name)
        _show_dataset(console, facts)
    else:
        from .describe import describe

        facts = describe(name, image_size)
        _show_model(console, facts)
    finish(json, facts)


def _show_model(console: Console, facts: dict[str, Any]) -> None:
    """Print the costs and, for a file, a summary of its header, in at most ten lines."""
    size = facts["image_size"]
    units = (("params", "parameters", 2), ("macs", "MACs", 1), ("activations", "activations", 2))
    known = [f"{facts[key] / 1e6:.{digits}f} M {unit}" for key, unit, digits in units if facts[key] is not None]
    costs = ", ".join(known) or "costs unknown, because the file does not name its architecture"
    say(console, f"{facts['name']} at {size}x{size}: {costs}")
    if facts["stages"]:
        rows = [[r["name"], f"{r['params']:,}", f"{r['macs']:,}", f"{r['activations']:,}"] for r in facts["stages"]]
        show_table(console, ["part", "parameters", "MACs", "activations"], rows)
    if "file" in facts:
        file = facts["file"]
        runs = f"{file['engine']} {file['precision']} · " if "engine" in file else ""
        runs += "end to end · " if file.get("end_to_end") else ""
        classes = file["classes"]
        shown = "; ".join(classes[:3]) + ("; …" if len(classes) > 3 else "")
        about = f"{runs}task: {file['task']} · fit: {file['preprocess']['fit']}"
        say(console, f"{about} · {counted(len(classes), 'class', 'classes')}: {shown}")
        if shown := " · ".join(_confidence(file["calibration"])):
            say(console, shown)
        say(console, " · ".join([*_origin(file), "--json prints the rest"]))


def _confidence(calibration: dict[str, Any]) -> Iterator[str]:
    """Temperature, calibration error and threshold, as far as the file has them."""
    if calibration["images"]:
        own = calibration["temperature"] != 1  # exported networks contain it
        how = f"temperature {calibration['temperature']:.3f}, fitted" if own else "calibrated"
        yield f"{how} on {counted(calibration['images'], 'image')}"
    if "ece_after" in calibration:
        yield f"expected calibration error {calibration['ece_after']:.2%} on these images"
    if "threshold" in calibration:
        target = (
            f" (for an accuracy of {calibration['target_accuracy']:.2%})" if "target_accuracy" in calibration else ""
        )
        yield f"scores below {calibration['threshold']:g} are uncertain{target}"


def _origin(file: dict[str, Any]) -> Iterator[str]:
    """Accuracy, recipe, training date and source of a model file, as far as its header has them."""
    metrics, provenance = file["metrics"], file["provenance"]
    if scores := main_metrics(metrics):
        yield scores + (f" on {counted(metrics['images'], 'image')}" if "images" in metrics else "")
    elif "published_top1" in metrics:
        yield f"published top-1 {metrics['published_top1']:.2%}"
    if {"name", "epochs"} <= set(provenance.get("recipe", ())):
        yield f"recipe {provenance['recipe']['name']}, {counted(provenance['recipe']['epochs'], 'epoch')}"
    if "date" in provenance:
        yield f"trained {provenance['date'][:10]}"
    if "source" in provenance:
        yield f"from {provenance['source']}"


def _show_dataset(console: Console, facts: dict[str, Any]) -> None:
    """Print the splits, classes and problems."""
    drawn = "; validation images are drawn at random" if facts["drawn"] else ""
    say(console, f"{facts['data']}: {counted(len(facts['classes']), 'class', 'classes')}{drawn}")
    parts = facts["splits"].values()
    counts = [key for key in facts["splits"]["train"] if key not in ("height", "width")]
    rows = [[key.replace("_", " "), *(f"{part[key]:,}" for part in parts)] for key in counts]
    for key in ("height", "width"):
        sizes = ["–" if part[key] is None else " / ".join(map(str, part[key])) for part in parts]
        rows.append([f"{key}: minimum / median / maximum", *sizes])
    show_table(console, ["", *facts["splits"]], rows)
    classes = sorted(facts["classes"], key=lambda row: -row["train"])
    table = [[row["name"], *(f"{row[split]:,}" for split in facts["splits"])] for row in classes]
    if hidden := max(0, len(table) - SHOWN_CLASSES):
        half = SHOWN_CLASSES // 2
        table[half : half + hidden] = [[f"… {hidden} more (--json prints all)", *[""] * len(facts["splits"])]]
    unit = "objects" if "objects" in counts else "images"
    show_table(console, [f"{unit} per class", *facts["splits"]], table)
    for line in facts["problems"]:
        say(console, line, style="yellow")
    if not facts["problems"]:
        say(console, "no problems found")
