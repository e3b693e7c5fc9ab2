"""The report of `shvit study redundancy`."""

from collections.abc import Sequence
from statistics import mean
from typing import Any

from ...errors import counted
from ...report.blocks import Column, Plot, Section, Table
from .. import figures
from ..head_study import HeadStudy
from ..redundancy import Redundancy
from ..report import StudyReport

PAPER_SIMILARITY = {
    3: (49.5, 35.5, 18.4, 39.2, 53.2, 47.5, 52.1, 63.5, 69.0, 76.2, 91.6, 91.2),
    6: (63.9, 57.7, 34.8, 33.8, 46.2, 39.7, 41.3, 53.2, 64.2, 53.9, 81.2, 71.5),
}
"""Mean cosine similarity (%) of the heads in each layer of DeiT-T, on 128 ImageNet images. Key: number of heads."""


def redundancy_page(study: HeadStudy, about: dict[str, Any]) -> StudyReport:
    """Report the redundancy of a network's heads."""
    result, name = study.redundancy, study.name
    names = [layer.layer for layer in result.layers]
    counts = [len(layer.alone) for layer in result.layers]
    several = [index for index, count in enumerate(counts) if count > 1]
    sections = [
        Section(
            "The network",
            (
                f"{name}: {counted(len(names), 'attention layer')}. Heads per layer: "
                f"{', '.join(map(str, sorted(set(counts))))}. Top-1 with all heads: {result.top1:.2%} on "
                f"{counted(result.images, 'image')}.",
                *(() if study.complete else ("The study is not complete: some layers are missing.",)),
                *study.notes,
            ),
        )
    ]
    if study.pictures:
        sections.append(_maps_section(study))
    if several:
        sections += [_similarity_section(result, counts), _ablation_section(result)]
        sections.append(_single_section(study))
    data = {
        "what": f"{name}: mean similarity of the heads' attention maps over all layers",
        "value": mean(s for s in result.mean_similarity if s is not None) if several else None,
        "unit": "cosine similarity",
        "study": "redundancy",
        "model": name,
        **result.to_dict(),
        "tolerance": study.tolerance,
        "could_be_single": study.single,
        "single_together": study.together,
        "savings": study.savings,
        "notes": list(study.notes),
        "complete": study.complete,
        **about,
    }
    lead = (
        "Are the heads of multi-head attention redundant? This report shows where heads look, how similar their "
        "attention maps are, and how accurate the network is with some heads switched off."
    )
    return StudyReport(f"Head redundancy of {name}", lead, _redundancy_findings(study, several), tuple(sections), data)


def _redundancy_findings(study: HeadStudy, several: Sequence[int]) -> tuple[str, ...]:
    result = study.redundancy
    if not several:
        return ("Each attention layer has one head, so no head can be redundant.",)
    similarity = [100 * (result.mean_similarity[index] or 0.0) for index in several]
    off = [100 * (result.top1 - max(result.layers[index].without)) for index in several]
    alone = [100 * (result.top1 - max(result.layers[index].alone)) for index in several]
    gains = sum(loss < 0 for loss in off)
    findings = [
        _late_layers(similarity)
        if study.complete and len(several) >= 3
        else f"Mean similarity: {mean(similarity):.1f} %.",
        f"Removing the least important head of a layer costs {min(off):.2f} to {max(off):.2f} points of top-1"
        + (f"; in {gains} of {len(off)} layers, top-1 rises." if gains else "."),
        f"Keeping only the best head of a layer costs {min(alone):.2f} to {max(alone):.2f} points, on average "
        f"{mean(alone):.2f}.",
    ]
    if study.single:
        kept = ", ".join(study.single)
        findings.append(
            f"{len(study.single)} of {len(several)} layers can run with a single head if the other layers keep all "
            f"heads ({kept}); {len(study.together)} of them can do so at the same time."
        )
    if study.savings:
        saved = study.savings
        faster = "; ".join(f"{engine} {ratio:.2f}" for engine, ratio in saved["speed_ratio"].items())
        findings.append(
            "With a single head in all layers that can have one at the same time: "
            f"{100 * (saved['top1'] - result.top1):+.2f} points of top-1, {saved['params_saved']:.1%} fewer "
            f"parameters, {saved['macs_saved']:.1%} fewer MACs. Relative speed: {faster}."
        )
    return tuple(findings)


def _late_layers(similarity: Sequence[float]) -> str:
    """A sentence that says whether heads are more similar in the last third of the layers than in the first third."""
    third = len(similarity) // 3
    early, late = mean(similarity[:third]), mean(similarity[-third:])
    verdict = "more similar in late layers, as" if late > early else "NOT more similar in late layers, unlike"
    return (
        f"Heads are {verdict} in the paper: mean similarity {late:.1f} % in the last {third} layers, "
        f"{early:.1f} % in the first {third}, {mean(similarity):.1f} % over all layers."
    )


def _maps_section(study: HeadStudy) -> Section:
    assert study.pictures
    figure = figures.attention_over_images(study.pictures)
    text = (
        "Important: the head whose removal costs the most top-1. Redundant: the head whose removal costs the least; if "
        "several are equal, the head most similar to the others. Bright: high attention from the marked point. Each "
        "map has its own color scale. If attention is computed in windows, only the point's window is colored.",
    )
    return Section("Where heads look", text, (), (Plot("attention", figure, "Attention maps over the images."),))


def _similarity_section(result: Redundancy, counts: Sequence[int]) -> Section:
    rows: list[list[Any]] = []
    series: dict[str, list[tuple[float, float]]] = {"this network": []}
    for number, (layer, value) in enumerate(zip(result.layers, result.mean_similarity, strict=True), 1):
        heads = ", ".join(f"{100 * one:.1f}" for one in layer.similarity)
        rows.append([layer.layer, counts[number - 1], 100 * value if value is not None else None, heads])
        if value is not None:
            series["this network"].append((number, 100 * value))
    for count, values in PAPER_SIMILARITY.items():
        if len(counts) == len(values) and set(counts) == {count}:
            series[f"paper, DeiT-T, {count} heads"] = list(enumerate(values, 1))
    columns = (Column("layer"), Column("heads"), Column("mean similarity, %", "{:.1f}"), Column("each head, %"))
    figure = figures.lines(series, "layer", "mean cosine similarity of heads' maps, %")
    text = (
        "Cosine similarity, from 0 to 100 %, of each head's attention map to the maps of the other heads of its layer, "
        "averaged over these other heads and the images.",
    )
    return Section(
        "Similarity of heads",
        text,
        (Table("similarity", "Similarity", columns, rows),),
        (Plot("similarity", figure, "Mean similarity of the heads of each layer."),),
    )


def _ablation_section(result: Redundancy) -> Section:
    rows: list[list[Any]] = []
    for layer in result.layers:
        for head, (without, alone) in enumerate(zip(layer.without, layer.alone, strict=False)):
            rows.append([layer.layer, head, 100 * without, 100 * alone])
    best = [
        [
            layer.layer,
            100 * max(layer.without),
            100 * (result.top1 - max(layer.without)),
            100 * max(layer.alone),
            100 * (result.top1 - max(layer.alone)),
        ]
        for layer in result.layers
        if layer.without
    ]
    tables = (
        Table(
            "best",
            "Best score of each layer",
            (
                Column("layer"),
                Column("one head off, top-1 %", "{:.2f}"),
                Column("points lost", "{:+.2f}"),
                Column("one head alone, top-1 %", "{:.2f}"),
                Column("points lost", "{:+.2f}"),
            ),
            best,
        ),
        Table(
            "heads",
            "Every head",
            (Column("layer"), Column("head"), Column("off, top-1 %", "{:.2f}"), Column("alone, top-1 %", "{:.2f}")),
            rows,
        ),
    )
    scores = {
        "one head off": [layer.without for layer in result.layers],
        "one head alone": [layer.alone if layer.without else () for layer in result.layers],
    }
    figure = figures.heads([layer.layer for layer in result.layers], scores, result.top1)
    certain = 100 * (result.top1 * (1 - result.top1) / result.images) ** 0.5
    text = (
        "In one layer at a time, either one head or all heads but one are switched off. The other layers keep all "
        "heads. Each dot is a head. The colored dot is the best score, and the line is the score with all heads.",
        f"The standard error of top-1 on {counted(result.images, 'image')} is {certain:.2f} points. For differences on "
        "the same images, it is smaller. In the paper, DeiT-T loses 0.1 to 1.5 points with one of three heads off, and "
        "0.5 to 4.6 points with one head alone. Swin-T at half width loses 0.95 points on average with one head alone, "
        "and sometimes gains with one head off.",
    )
    return Section("Ablation of heads", text, tables, (Plot("heads", figure, "Top-1 with heads switched off."),))


def _single_section(study: HeadStudy) -> Section:
    text = [
        f"Layers that lose at most {study.tolerance:g} points of top-1 with only their best head: "
        f"{', '.join(study.single) or 'none'}."
    ]
    tables: tuple[Table, ...] = ()
    if study.savings:
        saved = study.savings
        text.append(
            "The table compares the full network with one in which some of these layers are pruned to their best head. "
            "Together, these layers stay within the same limit. The pruned network was not fine-tuned. Its top-1 is "
            "optimistic, because layers and heads were selected on the same images."
        )
        rows: list[list[Any]] = [
            ["top-1, %", 100 * study.redundancy.top1, 100 * saved["top1"]],
            ["parameters, M", saved["params"][0] / 1e6, saved["params"][1] / 1e6],
            ["MACs, M", saved["macs"][0] / 1e6, saved["macs"][1] / 1e6],
            *([f"images/s, {name}", *values] for name, values in saved["images_per_second"].items()),
        ]
        columns = (Column("what"), Column("all heads", "{:,.2f}"), Column("single heads", "{:,.2f}"))
        tables = (Table("single", "Savings with single heads", columns, rows),)
    return Section("Layers that can run with a single head", tuple(text), tables)
