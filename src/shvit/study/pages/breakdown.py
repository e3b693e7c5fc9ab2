"""What the breakdown of time says."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .. import figures
from ..breakdown import KINDS, MEMORY_BOUND, Breakdown
from ..compare import breakdown_dict
from ..report import LABEL, Column, Picture, Report, Section, Table

Within = Callable[[str], bool]
"""Whether a part of the network is looked at."""


def breakdown_page(
    found: Sequence[Breakdown], layers: Mapping[str, Sequence[str]], omitted: Sequence[str], about: Mapping[str, Any]
) -> Report:
    """Of time by kind of operation.

    Args:
        found: Networks in engines.
        layers: Of each network, its attention layers' names.
        omitted: What has no number, and why.
        about: How and where it was measured.
    """
    whole: list[tuple[Breakdown, Within]] = [(one, lambda part: True) for one in found]
    attention = [(one, _within(layers[one.model])) for one in found]
    attention = [(one, inside) for one, inside in attention if one.shares(inside)]
    sections = [
        _section(
            "whole",
            "The whole network",
            f"Memory-bound are {', '.join(MEMORY_BOUND)}: they do few operations for each byte that they read.",
            whole,
        )
    ]
    if attention:
        text = "The token mixers with their norms and projections, without the residual sum."
        sections.append(_section("attention", "The attention layers alone", text, attention))
    claim = "Most of a multi-head layer's time is memory-bound work: reshaping, normalisation."
    sections.append(Section("What the paper says", (claim,)))
    if omitted:
        sections.append(Section("What has no number, and why", tuple(omitted)))
    data = {
        "what": "the largest share of time that is bound by memory",
        "value": max((one.memory_bound() or 0.0 for one in found), default=None),
        "unit": "share",
        "study": "breakdown",
        "rows": [{"model": one.model, **breakdown_dict(one, _within(layers[one.model]))} for one in found],
        "omitted": list(omitted),
        **about,
    }
    lead = (
        "What kind of operation the time of a call goes to, as each engine's own profiler tells, in fp32 on this "
        "processor. What an engine fuses into a convolution or product costs no time of its own and is not seen."
    )
    said = tuple(_said(one, _within(layers[one.model])) for one in found) or ("Nothing could be measured: see below.",)
    return Report("Where the time goes", lead, said, tuple(sections), data)


def _within(layers: Sequence[str]) -> Within:
    return lambda part: any(f"{part}.".startswith(f"{layer}.") for layer in layers)


def _said(one: Breakdown, inside: Within) -> str:
    bound, bound_inside = one.memory_bound() or 0.0, one.memory_bound(inside)
    if bound_inside is None:
        return f"{one.model} in {one.engine}: {bound:.0%} of the time is bound by memory."
    share = one.seconds(within=inside) / one.seconds()
    return (
        f"{one.model} in {one.engine}: its attention layers take {share:.0%} of the time, {bound_inside:.0%} of that "
        f"bound by memory; of the whole network {bound:.0%}."
    )


def _section(name: str, title: str, text: str, found: Sequence[tuple[Breakdown, Within]]) -> Section:
    shares = [one.shares(inside) for one, inside in found]
    rows = [
        [
            one.model,
            one.engine,
            1e3 * one.seconds(within=inside) / one.batch_size,
            one.memory_bound(inside),
            *(share.get(kind) for kind in KINDS),
        ]
        for (one, inside), share in zip(found, shares, strict=True)
    ]
    columns = (
        LABEL,
        Column("engine"),
        Column("ms an image", "{:.3f}"),
        Column("memory-bound", "{:.1%}"),
        *(Column(kind, "{:.1%}") for kind in KINDS),
    )
    parts = {kind: [share.get(kind, 0.0) for share in shares] for kind in KINDS}
    names = [f"{one.model}, {one.engine}" for one, _ in found]
    caption = "Share of time by kind of operation; cool colours: arithmetic."
    picture = Picture(name, figures.stacks(names, parts, "share of the time", percent=True), caption)
    return Section(title, (text,), (Table(name, "Share of time by kind of operation", columns, rows),), (picture,))
