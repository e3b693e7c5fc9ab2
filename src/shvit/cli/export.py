"""`shvit export`."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..console import METRICS, say
from ..errors import counted
from ..requests.export import ExportRequest
from .app import NONE_TYPED, Flags, Json, console_for, finish

if TYPE_CHECKING:
    from ..tasks.base import Task


def export(request: ExportRequest, *, json: Json = False, typed: Flags = NONE_TYPED) -> dict[str, Any]:
    """Export a model to another runtime, and compare the file's outputs with PyTorch's in a new process.

    If the outputs differ, the file is not kept. Otherwise, a report of the comparison is written next to it.
    """
    from dataclasses import replace

    from ..engines import Shapes, format_of, writable_precisions
    from ..export.export import export as run
    from ..pretrained import load_model
    from ..tasks import kind_of
    from ..tasks.labelled_data import open_as_trained

    console = console_for(json)
    model_file = load_model(request.model)
    kind = format_of(request.format, model_file.task)
    if request.image_size is not None:
        fit = kind_of(model_file).new_fit(model_file.preprocess.fit)
        preprocess = replace(model_file.preprocess, image_size=request.image_size, fit=fit)
        model_file = replace(model_file, preprocess=preprocess)
    source = open_as_trained(request.calibrate, model_file) if request.calibrate else None
    default = writable_precisions(model_file.task, request.format)[0]
    precision = request.precision or default
    if precision != "int8":
        typed.refuse("max-drop", because=f"in {precision}, only in int8")
    if kind.unavailable("cpu"):
        typed.refuse("threads", because=f"with --format {request.format}, whose files cannot run here")
    out = request.out or beside_model(request.model, kind.suffix, precision if precision != default else None)
    shapes = Shapes(request.batch_size, request.dynamic_size)
    limits = request.max_drop, request.threads
    report = run(model_file, request.format, out, precision, shapes, source, *limits, lambda text: say(console, text))
    for line in exported(report, kind_of(model_file)):
        say(console, line)
    return finish(json, report)


def exported(report: dict[str, Any], task: "type[Task]") -> Iterator[str]:
    """Format the report of `export` as lines of text."""
    if held := report.get("floor"):
        metric, images = METRICS.get(held["metric"], held["metric"]), counted(held["images"], "image")
        yield (
            f"{metric} {held['score']:.2%} in int8, {held['reference']:.2%} in fp32, on {images}: {held['drop']:+.2f} "
            f"points lost, {held['max_drop']} allowed"
        )
        for name, share in held["given_back"].items():
            yield f"  kept in higher precision: {name}, which causes {share:.1%} of the quantization error"
    if report["ran"]:
        parity = report["parity"]
        yield f"compared with PyTorch on {counted(parity['images'], 'image')}: {task.compared(parity)}"
        yield (
            f"latency at batch size {parity['batch']}: {parity['latency_ms']:.2f} ms; PyTorch: "
            f"{parity['torch_latency_ms']:.2f} ms"
        )
    else:
        yield "not compared with PyTorch, because the file cannot run here; its specification matches the model"
    yield f"wrote {report['file']} ({report['bytes'] / 1e6:.1f} MB) and {report['file']}.parity.json"


def beside_model(model: str, suffix: str, precision: str | None) -> Path:
    """A path next to the model file, or in the current folder for published weights."""
    path = Path(model)
    stem = path.with_suffix("") if path.suffix == ".safetensors" else Path(path.name)
    return stem.with_name("".join([stem.name, f"_{precision}" if precision else "", suffix]))
