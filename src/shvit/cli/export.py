"""`shvit export`."""

import sys
from collections.abc import Iterator
from typing import Any

from ..console import METRICS, say
from ..errors import counted
from ..requests.export import ExportRequest
from .app import Json, console_for, finish


def export(request: ExportRequest, *, json: Json = False) -> dict[str, Any]:
    """Export a model to another runtime, and compare the file's outputs with PyTorch's in a new process.

    If the outputs differ, the file is not kept. Otherwise, a report of the comparison is written next to it.
    """
    from ..export.export import export as run

    console = console_for(json or request.snippet is not None)
    report = run(request, lambda text: say(console, text))
    for line in exported(report):
        say(console, line)
    if "snippet" in report and not json:
        sys.stdout.write(report["snippet"])
    return finish(json, report)


def exported(report: dict[str, Any]) -> Iterator[str]:
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
        from ..tasks import kind_of

        parity = report["parity"]
        compared = kind_of(report["task"]).compared(parity)
        yield f"compared with PyTorch on {counted(parity['images'], 'image')}: {compared}"
        yield (
            f"latency at batch size {parity['batch']}: {parity['latency_ms']:.2f} ms; PyTorch: "
            f"{parity['torch_latency_ms']:.2f} ms"
        )
    else:
        yield "not compared with PyTorch, because the file cannot run here; its specification matches the model"
    file = report["file"]
    yield f"wrote {file} ({report['bytes'] / 1e6:.1f} MB), {file}.parity.json and {file}.sample.png"
