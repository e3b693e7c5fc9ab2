"""The page of an audit: the findings with their pictures."""

from collections import Counter
from collections.abc import Callable, Sequence
from io import BytesIO

from PIL import Image, ImageOps

from ..data.image_file import BadImage
from ..data.reduced import open_small
from ..errors import counted
from ..provenance import facts
from ..redact import redacted
from ..report.blocks import Column, Gallery, Picture, Section, Table
from ..report.page import Page
from ..requests.audit import AuditRequest
from .findings import KINDS, AuditedImages, Finding

SHOWN = {"label_error": 60, "duplicate_other_label": 40, "duplicate_across_splits": 40, "duplicate": 20, "odd": 40}
"""Maximum number of findings of each kind that are shown as pictures."""
LISTED = 100
"""Maximum number of rows of a table."""
SIDE = 160
"""Longer side of a picture, in pixels."""
ADVICE = {
    "label_error": "The label of these images is probably wrong: a classifier that was fitted to the other images is "
    "confident that they belong to another class. Check them from the top; the share of real errors falls towards the "
    "end.",
    "duplicate_other_label": "The same picture has two labels, at least one of which is wrong. Correct one label, or "
    "remove both images.",
    "duplicate_across_splits": "Copies of a picture are in two splits, so that the model is evaluated on images that it "
    "was trained on. Remove one of them.",
    "duplicate": "Copies of a picture are in the same split. They count twice.",
    "unusable": "These images cannot be read. All commands skip them.",
    "odd": "These images differ from the others in brightness or size. Check whether they belong to the dataset.",
    "small_class": "A model hardly learns classes with so few images. Add images, or merge or remove the classes.",
}


def audit_page(
    request: AuditRequest, audited: AuditedImages, findings: Sequence[Finding], unchecked: str
) -> Page:
    """The page of an audit. `unchecked` is the reason why labels were not checked, if they were not."""
    by_kind = {kind: [finding for finding in findings if finding.kind == kind] for kind in KINDS}
    images = Counter(audited.splits)
    parts = ", ".join(f"{split} {number:,}" for split, number in images.items())
    sentences = [f"{len(found):,} {KINDS[kind]}" for kind, found in by_kind.items() if found] or ["No problems found"]
    return Page(
        title=f"Audit of {redacted(request.data)}",
        lead=f"{counted(len(audited.splits), 'image')} ({parts}) of "
        f"{counted(len(audited.classes), 'class', 'classes')}. Nothing in the data was changed; audit.csv lists all "
        "findings.",
        findings=(*sentences, *([unchecked[:1].upper() + unchecked[1:]] if unchecked else [])),
        sections=(
            *(_section(audited, kind, found) for kind, found in by_kind.items() if found),
            *([_by_class(audited, by_kind["label_error"])] if by_kind["label_error"] else []),
        ),
        about=facts(),
    )


def _section(audited: AuditedImages, kind: str, found: Sequence[Finding]) -> Section:
    title = f"{KINDS[kind][:1].upper()}{KINDS[kind][1:]}: {len(found):,}"
    if kind not in SHOWN:
        columns = (Column("image" if found[0].image else "class"), Column("split"), Column("reason"))
        rows = [[finding.image or finding.label, finding.split, finding.reason] for finding in found[:LISTED]]
        return Section(title, [ADVICE[kind]], (Table(kind, title, columns, rows, _rest(found, LISTED)),))
    pictures = [picture for finding in found[: SHOWN[kind]] for picture in _pictures(audited, finding)]
    return Section(title, [ADVICE[kind]], galleries=(Gallery("", pictures, _rest(found, SHOWN[kind])),))


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


def _pictures(audited: AuditedImages, finding: Finding) -> list[Picture]:
    """The image of a finding, beside the image that it is compared with. Empty if an image cannot be read any more."""
    assert finding.index is not None
    try:
        image = _small(audited, finding.index)
        if finding.other_index is not None:
            image = _beside(image, _small(audited, finding.other_index))
    except BadImage:
        return []
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=80)
    given = f"{finding.split}: {finding.label}"
    lines = {
        "label_error": [f"given: {finding.label}", f"suggested: {finding.suggested}", finding.reason],
        "odd": [given, finding.reason],
    }.get(finding.kind, [given, finding.reason])
    return [Picture(buffer.getvalue(), "\n".join([*lines, finding.image, *([finding.other_image] * bool(finding.other_image))]))]
