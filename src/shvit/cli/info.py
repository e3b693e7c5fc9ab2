"""`shvit info`."""

from collections.abc import Iterator
from typing import Any

from rich.console import Console

from ..console import METRICS, say, show_table
from .app import NONE_TYPED, Flags, Json, console_for, finish
from .eval import SHOWN_CLASSES


def info(name: str, /, *, image_size: int | None = None, json: Json = False, typed: Flags = NONE_TYPED) -> None:
    """Describe a network, a model file or a data set: its costs, its classes, its problems. At most ten lines of a
    model; --json has everything.

    Parameters
    ----------
    name
        shvit_s1 to shvit_s4, timm/NAME, a model file, an exported file, or published weights such as shvit_s1.in1k; or
        data, as for train, or a COCO folder.
    image_size
        Count a network's costs at this size instead of its own.
    """
    from ..data.sources import is_data
    from ..engines import is_exported
    from ..model.architecture import list_models

    console = console_for(json)
    if name not in list_models() and not is_exported(name) and is_data(name):
        from ..data.survey import survey

        typed.refuse("image-size", because=f"on data, which {name} is")
        facts = survey(name)
        surveyed(console, facts)
    else:
        from .describe import describe

        facts = describe(name, image_size)
        described(console, facts)
    finish(json, facts)


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
