"""`shvit export`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..console import METRICS, say
from .app import NONE_TYPED, Flags, Json, console_for, finish


def export(
    model: str,
    *,
    format: str,
    precision: str | None = None,
    out: Path | None = None,
    calibrate: str | None = None,
    max_drop: float = 0.5,
    image_size: int | None = None,
    batch_size: int | None = None,
    dynamic_size: bool = False,
    threads: int | None = None,
    json: Json = False,
    typed: Flags = NONE_TYPED,
) -> None:
    """Write a model for another runtime; the file is read back in a new process and compared with PyTorch.

    A file that disagrees is not kept. Otherwise a report of the comparison is written beside it.

    Parameters
    ----------
    model
        A model file, or published weights such as shvit_s1.in1k.
    format
        onnx (.onnx), openvino (.xml and .bin), coreml (.mlpackage), executorch (.pte), torch (.pt2), or timm: a folder
        (.timm) that timm.create_model("local-dir:FOLDER", pretrained=True) loads.
    precision
        fp32, fp16, bf16 or int8, as far as the format has it; default: the format's own.
    out
        The file; default: beside the model file, under its name.
    calibrate
        Labelled images, as for train: int8 is calibrated on them, and any file compared with PyTorch on them.
    max_drop
        Points of top-1, or of AP, that int8 may lose on the validation images; costly layers go back to higher
        precision.
    image_size
        Side of the images in pixels; default: the model's own. A detector's images then fit into that square.
    batch_size
        Images at once; default: any number, where the format can.
    dynamic_size
        Take images of any height and width: onnx and torch from 65 pixels, openvino from 32. Not of detectors.
    threads
        CPU threads for the comparison of speed.
    """
    from dataclasses import replace

    from ..engines import format_of, writable_precisions
    from ..engines.base import Shapes
    from ..evaluate import open_as_trained
    from ..export.export import export as run
    from ..pretrained import load_model

    console = console_for(json)
    model_file = load_model(model)
    kind = format_of(format, model_file.task)
    if image_size is not None:
        fit = model_file.preprocess.fit if model_file.task == "classify" else "whole"
        model_file = replace(model_file, preprocess=replace(model_file.preprocess, image_size=image_size, fit=fit))
    source = open_as_trained(calibrate, model_file) if calibrate else None
    usual = writable_precisions(model_file.task, format)[0]
    if (precision or usual) != "int8":
        typed.refuse("max-drop", because=f"in {precision or usual}, only in int8")
    if kind.unavailable("cpu"):
        typed.refuse("threads", because=f"with --format {format}, whose files cannot be run and timed here")
    target = out or beside_model(model, kind.suffix, precision if precision != usual else None)
    report = run(
        model_file,
        format,
        target,
        precision,
        Shapes(batch_size, dynamic_size),
        source,
        max_drop,
        threads,
        lambda text: say(console, text),
    )
    for line in exported(report):
        say(console, line)
    finish(json, report)


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


def beside_model(model: str, suffix: str, precision: str | None) -> Path:
    """Beside the model file; for a published name, in the current folder."""
    path = Path(model)
    stem = path.with_suffix("") if path.suffix == ".safetensors" else Path(path.name)
    return stem.with_name("".join([stem.name, f"_{precision}" if precision else "", suffix]))
