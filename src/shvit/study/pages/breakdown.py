"""The report of `shvit study breakdown`."""

from collections.abc import Mapping, Sequence
from typing import Any

from ...report.blocks import Column, Plot, Section, Table
from .. import figures
from ..breakdown import KINDS, MEMORY_BOUND, Breakdown
from ..report import NETWORK_COLUMN, NOTHING_MEASURED, StudyReport


def breakdown_page(breakdowns: Sequence[Breakdown], omitted: Sequence[str], about: Mapping[str, Any]) -> StudyReport:
    """Report time by kind of operation, for each network and engine.

    `omitted` lists what was not measured, and why. `about` says where and how the rest was measured.
    """
    kinds = (
        f"Memory-bound (few FLOPs per byte): {', '.join(MEMORY_BOUND)}. Fused attention combines matrix products and "
        "softmax in one operation. The last kind, the engine's own, is overhead of the engine, mostly dispatch."
    )
    sections = [_section("whole", "The whole network", kinds, breakdowns)]
    attention = [one.attention for one in breakdowns if one.attention.spent]
    if attention:
        text = "The token mixers, including their norms and projections but not the residual addition."
        sections.append(_section("attention", "Attention layers only", text, attention))
    claim = "A multi-head layer spends most of its time on memory-bound operations: reshaping and normalization."
    sections.append(Section("What the paper says", (claim,)))
    if omitted:
        sections.append(Section("Not measured", tuple(omitted)))
    data = {
        "what": "largest share of time in memory-bound operations",
        "value": max((one.memory_bound() or 0.0 for one in breakdowns), default=None),
        "unit": "share",
        "study": "breakdown",
        "rows": [{"model": one.model, **one.to_dict()} for one in breakdowns],
        "omitted": list(omitted),
        **about,
    }
    lead = (
        "Time by kind of operation, from each engine's own profiler, in fp32 on this CPU. Operations that an engine "
        "fuses into a convolution or matrix product count as part of that convolution or product."
    )
    findings = tuple(map(_finding, breakdowns)) or (NOTHING_MEASURED,)
    return StudyReport("Where the time goes", lead, findings, tuple(sections), data)


def _finding(one: Breakdown) -> str:
    text = f"{one.model} in {one.engine}: {one.memory_bound() or 0.0:.0%} of the time is memory-bound."
    bound = one.attention.memory_bound()
    if bound is None:
        return text
    share = one.attention.seconds() / one.seconds()
    return f"{text} Attention layers take {share:.0%} of the time; {bound:.0%} of that time is memory-bound."


def _section(name: str, title: str, text: str, parts: Sequence[Breakdown]) -> Section:
    shares = [one.shares() for one in parts]
    rows = [
        [
            one.model,
            one.engine,
            1e3 * one.seconds() / one.batch_size,
            one.memory_bound(),
            *(share.get(kind) for kind in KINDS),
        ]
        for one, share in zip(parts, shares, strict=True)
    ]
    columns = (
        NETWORK_COLUMN,
        Column("engine"),
        Column("ms/image", "{:.3f}"),
        Column("memory-bound", "{:.1%}"),
        *(Column(kind, "{:.1%}") for kind in KINDS),
    )
    stacked = {kind: [share.get(kind, 0.0) for share in shares] for kind in KINDS}
    names = [f"{one.model}, {one.engine}" for one in parts]
    caption = "Share of time by kind of operation. Cool colors: compute-bound. Warm: memory-bound. Gray: overhead."
    picture = Plot(name, figures.stacks(names, stacked, "share of the time", percent=True), caption)
    return Section(title, (text,), (Table(name, "Share of time by kind of operation", columns, rows),), (picture,))
