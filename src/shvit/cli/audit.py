"""`shvit audit`."""

from shlex import quote
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ..console import images_progress, say, show_table
from ..errors import counted
from ..redact import redacted
from ..requests.audit import NO_MODEL, AuditRequest
from .app import NONE_TYPED, Flags, Json, console_for, finish

if TYPE_CHECKING:
    from ..audit.run import Audit


def audit(request: AuditRequest, *, json: Json = False, typed: Flags = NONE_TYPED) -> dict[str, Any]:
    """Find probable label errors, near-duplicates, and unusable or odd images in a classification dataset.

    Writes audit.csv and report.html. Nothing in the data is changed.
    """
    if not request.with_model:
        typed.refuse("folds", "device", "threads", "batch-size", because=f"with --model {NO_MODEL}")
    from ..audit.run import audit as run

    with images_progress(shown=True) as progress:
        bar = progress.add_task("", total=None)
        result = run(request, lambda done, total: progress.update(bar, completed=done, total=total))
    show(console_for(json), result)
    return finish(json, result.to_dict())


def show(console: Console, result: "Audit") -> None:
    """Print the number of findings of each kind, the paths of the files, and the next step."""
    from ..audit.findings import FINDING_KINDS

    splits = result.to_dict()["images"]
    parts = ", ".join(f"{split} {images:,}" for split, images in splits.items())
    drawn = "; validation images are drawn at random" if result.dataset.drawn else ""
    classes = counted(len(result.dataset.classes), "class", "classes")
    images, speed = sum(splits.values()), sum(splits.values()) / sum(result.seconds.values())
    say(console, f"{counted(images, 'image')} ({parts}{drawn}), {classes}, {speed:.0f} images/s")
    rows = [[FINDING_KINDS[kind], f"{number:,}"] for kind, number in result.counts.items() if number]
    if rows:
        show_table(console, ["", "findings"], rows)
    else:
        say(console, "no problems found")
    for note in result.notes:
        say(console, note)
    for path in result.files:
        say(console, f"wrote {path}")
    if rows:
        report, data = quote(str(result.files[-1])), quote(redacted(result.request.data))
        say(console, f"next: open {report}, correct or remove images, then: shvit train {data} --out RUN")
