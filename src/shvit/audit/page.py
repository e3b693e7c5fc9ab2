"""The page of an audit: the findings with their pictures."""

from collections import Counter
from collections.abc import Sequence
from io import BytesIO

from PIL import Image

from ..data.image_file import BadImage
from ..data.reduced import open_small
from ..errors import counted
from ..provenance import facts
from ..redact import redacted
from ..report.blocks import Column, Gallery, Picture, Section, Table
from ..report.page import Page
from ..requests.audit import AuditRequest
from .findings import FINDING_KINDS, AuditedImages, Finding

SHOWN = {"label_error": 60, "duplicate_other_label": 40, "duplicate_across_splits": 40, "duplicate": 20, "odd": 40}
"""Maximum number of findings of each kind that are shown as pictures."""
LISTED = 100
"""Maximum number of rows of a table."""
SIDE, GAP = 160, 6
"""Longer side of an image in the pictures, and the space between two images, in pixels."""
ADVICE = {
    "label_error": "The label of these images is probably wrong: a classifier that was fitted to the other images is "
    "confident that they belong to another class. Check them from the top; the share of real errors falls towards the "
    "end.",
    "duplicate_other_label": "The same picture has two different labels, so one is wrong. Correct the label, or "
    "remove both images.",
    "duplicate_across_splits": "Copies of a picture are in two splits: a model would be evaluated on an image that it "
    "was trained on. Remove one of them.",
    "duplicate": "Copies of a picture are in the same split. They count twice.",
    "unusable": "These images cannot be read. All commands skip them.",
    "odd": "These images differ from the others in brightness or size. Check whether they belong to the dataset.",
    "small_class": "A model hardly learns classes with so few images. Add images, or merge or remove the classes.",
}


def audit_page(
    request: AuditRequest, audited: AuditedImages, findings: Sequence[Finding], notes: Sequence[str]
) -> Page:
    """The page of an audit. `notes` are sentences without the capital letter that follow the numbers of findings."""
    by_kind = {kind: [finding for finding in findings if finding.kind == kind] for kind in FINDING_KINDS}
    images = Counter(audited.splits)
    parts = ", ".join(f"{split} {number:,}" for split, number in images.items())
    numbers = [f"{_title(kind)}: {len(found):,}" for kind, found in by_kind.items() if found]
    return Page(
        title=f"Audit of {redacted(request.data)}",
        lead=f"{counted(len(audited.splits), 'image')} ({parts}) of "
        f"{counted(len(audited.classes), 'class', 'classes')}. Nothing in the data was changed; audit.csv lists all "
        "findings.",
        findings=(*(numbers or ["No problems found"]), *(f"{note[:1].upper()}{note[1:]}." for note in notes)),
        sections=(
            *(_section(audited, kind, found, request.data) for kind, found in by_kind.items() if found),
            *([_by_class(audited, by_kind["label_error"])] if by_kind["label_error"] else []),
        ),
        about=facts(),
    )


def _section(audited: AuditedImages, kind: str, found: Sequence[Finding], folder: str) -> Section:
    title = f"{_title(kind)}: {len(found):,}"
    if kind not in SHOWN:
        columns = (Column("image" if found[0].image else "class"), Column("split"), Column("reason"))
        rows = [[finding.image or finding.label, finding.split, finding.reason] for finding in found[:LISTED]]
        return Section(title, [ADVICE[kind]], (Table(kind, title, columns, rows, _rest(found, LISTED)),))
    pictures = [picture for finding in found[: SHOWN[kind]] for picture in _pictures(audited, finding, folder)]
    return Section(title, [ADVICE[kind]], galleries=(Gallery("", pictures, _rest(found, SHOWN[kind])),))


def _title(kind: str) -> str:
    name = FINDING_KINDS[kind]
    return f"{name[:1].upper()}{name[1:]}"


def _rest(found: Sequence[Finding], shown: int) -> str:
    return f"The first {shown} of {len(found):,}. audit.csv lists all." if len(found) > shown else ""


def _by_class(audited: AuditedImages, errors: Sequence[Finding]) -> Section:
    """The number of probable label errors of each class, and the most frequent suggestion."""
    labels = Counter(audited.label(index) for index in range(len(audited.splits)))
    suggested = {label: Counter(error.suggested for error in errors if error.label == label) for label in labels}
    rows = [
        [label, labels[label], sum(counts.values()), sum(counts.values()) / labels[label], counts.most_common(1)[0][0]]
        for label, counts in sorted(suggested.items(), key=lambda item: -sum(item[1].values()))
        if counts
    ]
    columns = (
        Column("label"), Column("images", "{:,}"), Column("probable errors", "{:,}"), Column("share", "{:.1%}"),
        Column("most frequent suggestion"),
    )  # fmt: skip
    title = "Probable label errors by class"
    return Section(title, tables=(Table("by_class", title, columns, rows),))


def _pictures(audited: AuditedImages, finding: Finding, folder: str) -> list[Picture]:
    """The image of a finding, beside the image that it is compared with. Empty if an image cannot be read any more."""
    indices = [index for index in (finding.index, finding.other_index) if index is not None]
    try:
        images = [_small(audited, index) for index in indices]
    except BadImage:
        return []
    canvas = Image.new("RGB", (sum(image.width for image in images) + GAP * (len(images) - 1), SIDE), "white")
    left = 0
    for image in images:
        canvas.paste(image, (left, 0))
        left += image.width + GAP
    buffer = BytesIO()
    canvas.crop((0, 0, canvas.width, max(image.height for image in images))).save(buffer, "JPEG", quality=80)
    label = f"{finding.label} → {finding.suggested}?" if finding.suggested else ""
    ends = " | ".join(f"{audited.splits[index]}: {audited.label(index)}" for index in indices)
    reason = finding.reason if finding.other_index is None else ""  # the labels and the picture show it
    lines = [label or ends, reason, *(_short(audited, index, folder) for index in indices)]
    return [Picture(buffer.getvalue(), "\n".join(filter(None, lines)))]


def _short(audited: AuditedImages, index: int, folder: str) -> str:
    """The name of an image, without the folder of the dataset."""
    return audited.images.names[index].removeprefix(f"{folder.rstrip('/')}/")


def _small(audited: AuditedImages, index: int) -> Image.Image:
    """The image, at most `SIDE` pixels wide and high. Raises BadImage."""
    opened = open_small(audited.images.source(index))
    with opened.in_turn():
        image = Image.fromarray(opened.decode(max(opened.height, opened.width) / (2 * SIDE)).values)
        scale = SIDE / max(image.size)
        return image.resize([max(1, round(scale * side)) for side in image.size], Image.Resampling.BICUBIC)
