"""What the redundancy of heads says."""

from collections.abc import Sequence
from statistics import mean
from typing import Any

from .. import figures
from ..head_study import Studied
from ..redundancy import Redundancy
from ..report import Column, Picture, Report, Section, Table

PAPER_SIMILARITY = {
    3: (49.5, 35.5, 18.4, 39.2, 53.2, 47.5, 52.1, 63.5, 69.0, 76.2, 91.6, 91.2),
    6: (63.9, 57.7, 34.8, 33.8, 46.2, 39.7, 41.3, 53.2, 64.2, 53.9, 81.2, 71.5),
}
"""Of DeiT-T with so many heads, by layer, in %: mean cosine similarity of heads' maps on 128 ImageNet images."""


def redundancy_page(found: Studied, about: dict[str, Any]) -> Report:
    """Of the heads of one network."""
    result, name = found.result, found.name
    names = [layer.layer for layer in result.layers]
    counts = [len(layer.alone) for layer in result.layers]
    several = [place for place, count in enumerate(counts) if count > 1]
    sections = [
        Section(
            "The network",
            (
                f"{name}: {len(names)} attention layers of {', '.join(map(str, sorted(set(counts))))} heads. "
                f"Top-1 with all of them: {result.top1:.2%} of {result.images:,} images.",
                *(() if found.complete else ("These are not all: the study was stopped, or goes on.",)),
                *found.notes,
            ),
        )
    ]
    if found.pictures:
        sections.append(_looks_section(found))
    if several:
        sections += [_similarity_section(result, counts), _ablation_section(result)]
        sections.append(_single_section(found))
    data = {
        "what": f"{name}: mean similarity of heads' attention maps over layers",
        "value": mean(s for s in result.mean_similarity if s is not None) if several else None,
        "unit": "cosine similarity",
        "study": "redundancy",
        "model": name,
        **result.to_dict(),
        "tolerance": found.tolerance,
        "could_be_single": found.single,
        "single_together": found.together,
        "savings": found.savings,
        "notes": list(found.notes),
        "complete": found.complete,
        **about,
    }
    lead = (
        "Are the heads of multi-head attention redundant? Where they look, how alike their attention maps are, and "
        "what accuracy is left when some are switched off."
    )
    return Report(f"Head redundancy of {name}", lead, _redundancy_findings(found, several), tuple(sections), data)


def _redundancy_findings(found: Studied, several: Sequence[int]) -> tuple[str, ...]:
    result = found.result
    if not several:
        return ("Each attention layer has one head: there is nothing to be redundant.",)
    similarity = [100 * (result.mean_similarity[place] or 0.0) for place in several]
    off = [100 * (result.top1 - max(result.layers[place].without)) for place in several]
    alone = [100 * (result.top1 - max(result.layers[place].alone)) for place in several]
    gains = sum(loss < 0 for loss in off)
    said = [
        _late_said(similarity)
        if found.complete and len(several) >= 3
        else f"Mean similarity: {mean(similarity):.1f} %.",
        f"A layer without its least important head costs {min(off):.2f} to {max(off):.2f} points (best score of each)"
        + (f"; in {gains} of {len(off)} layers it gains." if gains else "."),
        f"With its best head alone, {min(alone):.2f} to {max(alone):.2f} points, {mean(alone):.2f} on average.",
    ]
    if found.single:
        kept = ", ".join(found.single)
        said.append(
            f"{len(found.single)} of {len(several)} layers could do with a single head while the others keep theirs "
            f"({kept}); all at once {len(found.together)}."
        )
    if found.savings:
        saved = found.savings
        faster = "; ".join(f"{engine} {ratio:.2f}" for engine, ratio in saved["speed_ratio"].items())
        said.append(
            f"All of the latter at once, the other heads taken out: {100 * (saved['top1'] - result.top1):+.2f} points "
            f"of top-1, {saved['params_saved']:.1%} fewer parameters, {saved['macs_saved']:.1%} fewer operations, and "
            f"as a multiple of the speed: {faster}."
        )
    return tuple(said)


def _late_said(similarity: Sequence[float]) -> str:
    """Whether the last third of the layers is more alike than the first, as found."""
    third = len(similarity) // 3
    early, late = mean(similarity[:third]), mean(similarity[-third:])
    verdict = "more alike than early ones, as" if late > early else "NOT more alike than early ones, other than"
    return (
        f"Late layers' heads are {verdict} in the paper: mean similarity {late:.1f} % in the last {third} layers, "
        f"{early:.1f} % in the first {third}, {mean(similarity):.1f} % over all."
    )


def _looks_section(found: Studied) -> Section:
    looked = found.pictures
    assert looked
    figure = figures.attention_over_images(looked.images, looked.queries, looked.columns, looked.maps)
    text = (
        "Important: the head whose absence costs most top-1. Redundant: the one whose absence costs least; of equal "
        "ones, the one most like the others. Bright is where the marked place looks, each map on its own scale; "
        "places outside its window are left out.",
    )
    return Section("Where heads look", text, (), (Picture("attention", figure, "Attention maps over the images."),))


def _similarity_section(result: Redundancy, counts: Sequence[int]) -> Section:
    rows: list[list[Any]] = []
    series: dict[str, list[tuple[float, float]]] = {"this network": []}
    for place, (layer, value) in enumerate(zip(result.layers, result.mean_similarity, strict=True), 1):
        heads = ", ".join(f"{100 * one:.1f}" for one in layer.similarity)
        rows.append([layer.layer, counts[place - 1], 100 * value if value is not None else None, heads])
        if value is not None:
            series["this network"].append((place, 100 * value))
    for count, values in PAPER_SIMILARITY.items():
        if len(counts) == len(values) and set(counts) == {count}:
            series[f"paper, DeiT-T, {count} heads"] = list(enumerate(values, 1))
    columns = (Column("layer"), Column("heads"), Column("mean similarity, %", "{:.1f}"), Column("of each head, %"))
    figure = figures.lines(series, "layer", "mean cosine similarity of heads' maps, %")
    text = (
        "Cosine similarity, from 0 to 100 %, of each head's attention map with the map of each other head of its "
        "layer, a mean over these and over the images.",
    )
    return Section(
        "How alike heads are",
        text,
        (Table("similarity", "Similarity", columns, rows),),
        (Picture("similarity", figure, "Mean similarity of the heads of each layer."),),
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
        "The output of one head of one layer, or of all but one, is zero; all other layers are whole. Dots are heads, "
        "the filled one is the best score, the line is the whole network.",
        f"Top-1 of {result.images:,} images is certain to {certain:.2f} points (one standard error), differences on "
        "the same images to less. The paper's DeiT-T loses 0.1 to 1.5 points with one head of three off, 0.5 to 4.6 "
        "with one alone; Swin-T at half width 0.95 on average with one alone, and sometimes gains with one off.",
    )
    return Section("What heads are worth", text, tables, (Picture("heads", figure, "Top-1 with heads switched off."),))


def _single_section(found: Studied) -> Section:
    text = [
        f"Layers that lose at most {found.tolerance:g} points of top-1 with their best head alone: "
        f"{', '.join(found.single) or 'none'}."
    ]
    tables: tuple[Table, ...] = ()
    if found.savings:
        saved = found.savings
        text.append(
            "Measured: the network with the other heads of all these layers taken out of its weights, beside the whole "
            "one, timed in turn. It was not trained further. Top-1 is of the same "
            "images that layers and heads were chosen by, so it flatters."
        )
        rows: list[list[Any]] = [
            ["top-1, %", 100 * found.result.top1, 100 * saved["top1"]],
            ["parameters, M", saved["params"][0] / 1e6, saved["params"][1] / 1e6],
            ["MACs, M", saved["macs"][0] / 1e6, saved["macs"][1] / 1e6],
            *([f"images/s, {name}", *values] for name, values in saved["images_per_second"].items()),
        ]
        columns = (Column("what"), Column("all heads", "{:,.2f}"), Column("single heads", "{:,.2f}"))
        tables = (Table("single", "What single heads would save", columns, rows),)
    return Section("Which layers could do with a single head", tuple(text), tables)
