"""What each study says: its numbers as tables, figures and sentences, next to the paper's own."""

from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any

from . import figures
from .breakdown import KINDS, MEMORY_BOUND, Breakdown
from .compare import Compared, Measured, breakdown_dict, in_mixer, stage_seconds
from .redundancy import Redundancy
from .report import Column, Picture, Report, Section, Table
from .resolution import AgainstSize
from .single import Studied

PAPER_SIMILARITY = {
    3: (49.5, 35.5, 18.4, 39.2, 53.2, 47.5, 52.1, 63.5, 69.0, 76.2, 91.6, 91.2),
    6: (63.9, 57.7, 34.8, 33.8, 46.2, 39.7, 41.3, 53.2, 64.2, 53.9, 81.2, 71.5),
}
"""Of DeiT-T with so many heads, by layer, in %: the mean cosine similarity of its heads' maps on 128 ImageNet images."""
PAPER_ENGINES = {"torch": "cpu", "torch-traced": "cpu", "onnx": "cpu-onnx", "cuda": "gpu"}
"""With which of the paper's speeds an engine's are compared."""
PAPER_NAMES = {"gpu": "A100", "cpu": "PyTorch on a Xeon", "cpu-onnx": "ONNX Runtime on a Xeon"}

LABEL, PARAMS, MACS = Column("network"), Column("parameters, M", "{:.2f}"), Column("MACs, M", "{:.0f}")


# -- comparisons ------------------------------------------------------------------------------------------------------


def compared_page(found: Compared, about: dict[str, Any]) -> Report:
    """Of macro, ablation and designs."""
    comparison = found.comparison
    sections = [_costs_section(found)]
    if found.pairs():
        sections.append(_speed_section(found))
    if any(row.breakdowns for row in found.rows):
        sections.append(_time_section(found))
    if any(row.top1 for row in found.rows):
        sections.append(_accuracy_section(found))
    sections.append(Section("What the paper says", comparison.claims))
    if found.omitted:
        sections.append(Section("What has no number, and why", found.omitted))
    value = max((s.ratio for row in found.rows for s in row.speeds if s.ratio), default=None)
    data = {
        "what": f"{comparison.title}: the highest speed on any engine, as a multiple of {comparison.reference}",
        "value": value,
        "unit": "ratio",
        "threads": found.how.threads,
        **found.to_dict(),
        "claims": list(comparison.claims),
        **about,
    }
    return Report(comparison.title, comparison.question, _compared_findings(found), tuple(sections), data)


def _compared_findings(found: Compared) -> tuple[str, ...]:
    said = []
    for engine, precision, batch in found.pairs():
        ratios = [(row.entry, _ratio(row, engine, precision, batch)) for row in found.rows]
        parts = [
            f"{entry.label} {ratio:.2f}{_paper_ratio_said(found, entry.label, engine)}"
            for entry, ratio in ratios
            if ratio is not None and entry.label != found.comparison.reference
        ]
        if parts:
            said.append(
                f"{engine} {precision}, batches of {batch}: as a multiple of the speed of "
                f"{found.comparison.reference}: {'; '.join(parts)}."
            )
    trained = [row for row in found.rows if row.top1]
    if len(trained) > 1 and found.training:
        best = max(trained, key=lambda row: row.mean_top1 or 0)
        order = ", ".join(f"{row.entry.label} {_top1_said(row)}" for row in trained)
        said.append(
            f"Top-1 after {found.training.epochs} epochs: {order}. The highest is {best.entry.label}. {_noise(trained)}"
        )
    return tuple(said) or ("Nothing could be measured: see below why.",)


def _top1_said(row: Measured) -> str:
    return f"{100 * (row.mean_top1 or 0):.2f} %"


def _noise(rows: Sequence[Measured]) -> str:
    """What differences mean, by how far seeds of one network are apart."""
    several = [row for row in rows if len(row.top1) > 1]
    if not several:
        return "One seed each: differences of a point or so mean nothing on a data set of this size."
    spread = (mean(stdev(row.top1) ** 2 for row in several)) ** 0.5
    seeds = min(len(row.top1) for row in several)
    certain = 2 * spread * (2 / seeds) ** 0.5
    return (
        f"Seeds of one network are {100 * spread:.2f} points apart (standard deviation), so means over {seeds} seeds that "
        f"differ by less than {100 * certain:.1f} points are not told apart."
    )


def _ratio(row: Measured, engine: str, precision: str, batch: int) -> float | None:
    found = [s for s in row.speeds if (s.engine, s.precision, s.batch_size) == (engine, precision, batch)]
    return found[0].ratio if found else None


def _paper_ratio(found: Compared, label: str, kind: str) -> float | None:
    """The paper's speed of an entry as a multiple of that of the reference."""
    [entry] = [row.entry for row in found.rows if row.entry.label == label]
    reference = found.reference.entry.paper.get(kind)
    speed = entry.paper.get(kind)
    return speed / reference if speed and reference else None


def _paper_ratio_said(found: Compared, label: str, engine: str) -> str:
    ratio = _paper_ratio(found, label, PAPER_ENGINES.get(engine, ""))
    return f" (paper {ratio:.2f})" if ratio else ""


def _costs_section(found: Compared) -> Section:
    columns = (LABEL, Column("name"), Column("pixels"), PARAMS, MACS, Column("activations, MB", "{:.2f}"))
    paper = any("params" in row.entry.paper for row in found.rows)
    rows = []
    for row in found.rows:
        costs: list[Any] = [row.params / 1e6, row.macs / 1e6, row.activation_bytes / 1e6]
        cells: list[Any] = [row.entry.label, row.entry.model, row.image_size, *costs]
        rows.append([*cells, row.entry.paper.get("params")] if paper else cells)
    if paper:
        columns = (*columns, Column("paper's parameters, M", "{:.1f}"))
    note = "Activations: what convolutions, linear layers and attention's products write for one image, in fp32."
    return Section("What they cost", (), (Table("costs", "Costs of one image", columns, rows, note),))


def _speed_section(found: Compared) -> Section:
    columns = [LABEL]
    rows: list[list[Any]] = [[row.entry.label] for row in found.rows]
    pictured: dict[str, list[float | None]] = {}
    for engine, precision, batch in found.pairs():
        title = f"{engine} {precision}, batch {batch}"
        columns += [Column(f"{title}: images/s", "{:,.0f}"), Column("ratio", "{:.2f}"), Column("spread", "{:.1%}")]
        for cells, row in zip(rows, found.rows, strict=True):
            [speed] = [
                s for s in row.speeds if (s.engine, s.precision, s.batch_size) == (engine, precision, batch)
            ] or [None]
            cells += [speed.images_per_second, speed.ratio, speed.spread] if speed else [None, None, None]
        pictured[title] = [_ratio(row, engine, precision, batch) for row in found.rows]
    for kind, name in PAPER_NAMES.items():
        ratios = [_paper_ratio(found, row.entry.label, kind) for row in found.rows]
        if any(ratios):
            columns.append(Column(f"paper, {name}: ratio", "{:.2f}"))
            for cells, ratio in zip(rows, ratios, strict=True):
                cells.append(ratio)
            pictured[f"paper, {name}"] = ratios
    labels = [row.entry.label for row in found.rows]
    axis = f"images/s, as a multiple of {found.comparison.reference}"
    figure = figures.bars(labels, pictured, axis, 1.0)
    note = (
        "Networks are timed in turn, round by round, on one engine after the other; ratios are of medians. Half of the "
        "rounds lie within the spread. Weights are random: they do not change the speed."
    )
    return Section(
        "How fast they run",
        (f"Ratios are to {found.comparison.reference}, timed in the same rounds.",),
        (Table("speed", "Speed", tuple(columns), rows, note),),
        (Picture("speed", figure, "Speed of each network on each engine; grey: the paper's, on its hardware."),),
    )


def _time_section(found: Compared) -> Section:
    tables, pictures = [], []
    for engine in dict.fromkeys(one.engine for row in found.rows for one in row.breakdowns):
        here = [(row, one) for row in found.rows for one in row.breakdowns if one.engine == engine]
        stages = list(dict.fromkeys(name for _, one in here for name in stage_seconds(one)))
        stages.sort(key=lambda name: (name != "pixels to floats", name != "stem", name == "head", name))
        batch = here[0][1].batch_size
        times = {row.entry.label: stage_seconds(one) for row, one in here}
        milliseconds = {
            stage: [1e3 * found_seconds.get(stage, 0.0) / batch for found_seconds in times.values()] for stage in stages
        }
        pictures.append(
            Picture(
                f"stages_{engine}",
                figures.stacks(list(times), milliseconds, "milliseconds an image"),
                f"{engine}: where the time of an image goes, by stage.",
            )
        )
        rows = []
        for row, one in here:
            seconds = stage_seconds(one)
            cells: list[Any] = [1e3 * seconds[name] / batch if name in seconds else None for name in stages]
            mixers = one.seconds(within=in_mixer)
            rows.append([row.entry.label, *cells, one.memory_bound(), 1e3 * mixers / batch, one.memory_bound(in_mixer)])
        columns = (
            LABEL,
            *(Column(f"{name}, ms", "{:.3f}") for name in stages),
            Column("memory-bound", "{:.1%}"),
            Column("token mixers, ms", "{:.3f}"),
            Column("memory-bound in these", "{:.1%}"),
        )
        tables.append(Table(f"stages_{engine}", f"{engine} fp32: milliseconds an image by stage", columns, rows))
    text = (
        "By each engine's own profiler, in fp32; profiled runs are somewhat slower than the ones above. Memory-bound is "
        f"the share of time in {', '.join(MEMORY_BOUND)}; what a fused kernel does beside a product counts as product.",
    )
    return Section("Where the time goes", text, tuple(tables), tuple(pictures))


def _accuracy_section(found: Compared) -> Section:
    training = found.training
    assert training
    rows: list[list[Any]] = []
    seeds = max(len(row.top1) for row in found.rows)
    for row in found.rows:
        each = [100 * value for value in row.top1] + [None] * (seeds - len(row.top1))
        rows.append(
            [row.entry.label, 100 * row.mean_top1 if row.mean_top1 else None, *each, row.entry.paper.get("top1")]
        )
    columns = (
        LABEL,
        Column("top-1, mean, %", "{:.2f}"),
        *(Column(f"seed {seed}, %", "{:.2f}") for seed in range(seeds)),
        Column("paper, ImageNet-1K, %", "{:.1f}"),
    )
    trained = [row for row in found.rows if row.top1]
    pictures = []
    if found.pairs():
        engine, precision, batch = found.pairs()[0]
        marks = []
        for row in trained:
            for speed in row.speeds:
                if (speed.engine, speed.precision, speed.batch_size) == (engine, precision, batch):
                    marks.append((speed.images_per_second, 100 * (row.mean_top1 or 0), row.entry.label))
        if marks:
            figure = figures.points({"": marks}, f"images/s, {engine} {precision}, batch {batch}", "top-1, %")
            pictures.append(Picture("accuracy", figure, "Accuracy against speed."))
    size = training.image_size or found.how.image_size
    text = (
        f"Each network from fresh weights on {training.data}, {training.epochs} epochs at {size} pixels, by the recipe "
        "scratch, all alike; top-1 of best.safetensors, on the validation images that chose it.",
        _noise(trained),
    )
    return Section("How well they learn", text, (Table("accuracy", "Top-1", tuple(columns), rows),), tuple(pictures))


# -- breakdown --------------------------------------------------------------------------------------------------------


def breakdown_page(found: Sequence[Breakdown], layers: dict[str, tuple[str, ...]], about: dict[str, Any]) -> Report:
    """Of time by kind of operation.

    Args:
        found: Networks in engines.
        layers: Of each network, its attention layers' names.
        about: How and where it was measured.
    """

    def within(one: Breakdown) -> Any:
        return lambda part: any(f"{part}.".startswith(f"{layer}.") for layer in layers[one.model])

    def table(name: str, title: str, attention: bool) -> Table:
        rows = []
        for one in found:
            inside = within(one) if attention else lambda part: True
            shares = one.shares(inside)
            spent = 1e3 * one.seconds(within=inside) / one.batch_size
            cells = [shares.get(kind) for kind in KINDS]
            rows.append([one.model, one.engine, spent, one.memory_bound(inside), *cells])
        columns = (
            LABEL,
            Column("engine"),
            Column("ms an image", "{:.3f}"),
            Column("memory-bound", "{:.1%}"),
            *(Column(kind, "{:.1%}") for kind in KINDS),
        )
        return Table(name, title, columns, rows)

    def picture(name: str, attention: bool, caption: str) -> Picture:
        seen = [one for one in found if not attention or one.shares(within(one))]
        shares = [one.shares(within(one)) if attention else one.shares() for one in seen]
        parts = {kind: [share.get(kind, 0.0) for share in shares] for kind in KINDS}
        names = [f"{one.model}, {one.engine}" for one in seen]
        return Picture(name, figures.stacks(names, parts, "share of the time", percent=True), caption)

    attentive = any(one.shares(within(one)) for one in found)
    said = []
    for one in found:
        bound, inside = one.memory_bound(), one.memory_bound(within(one))
        if bound is not None and inside is not None:
            spent = one.seconds(within=within(one)) / one.seconds()
            said.append(
                f"{one.model} in {one.engine}: its attention layers take {spent:.0%} of the time, {inside:.0%} of that "
                f"bound by memory; of the whole network {bound:.0%}."
            )
        elif bound is not None:
            said.append(f"{one.model} in {one.engine}: {bound:.0%} of the time is bound by memory.")
    sections = [
        Section(
            "The whole network",
            (f"Memory-bound are {', '.join(MEMORY_BOUND)}: they do few operations for each byte that they read.",),
            (table("whole", "Share of time by kind of operation", False),),
            (picture("whole", False, "Share of time by kind of operation; cool colours: arithmetic."),),
        )
    ]
    if attentive:
        sections.append(
            Section(
                "The attention layers alone",
                ("The token mixers with their norms and projections, without the residual sum.",),
                (table("attention", "Share of the attention layers' time", True),),
                (picture("attention", True, "The same, of the attention layers alone."),),
            )
        )
    sections.append(
        Section(
            "What the paper says",
            ("Most of a multi-head layer's time is memory-bound work: reshaping, normalisation.",),
        )
    )
    top = max((one.memory_bound() or 0.0 for one in found), default=None)
    rows = [{"model": one.model, **breakdown_dict(one)} for one in found]
    data = {
        "what": "the largest share of time that is bound by memory",
        "value": top,
        "unit": "share",
        "study": "breakdown",
        "rows": rows,
        **about,
    }
    lead = (
        "What kind of operation the time of a call goes to, as each engine's own profiler tells, in fp32 on this "
        "processor. What an engine fuses into a convolution or product costs no time of its own and is not seen."
    )
    return Report("Where the time goes", lead, tuple(said), tuple(sections), data)


# -- resolution -------------------------------------------------------------------------------------------------------


def resolution_page(found: AgainstSize, about: dict[str, Any]) -> Report:
    """Of latency and accuracy against size."""
    pairs = list(dict.fromkeys((p.engine, p.precision, p.batch_size) for p in found.points))
    tables, pictures, said = [], [], []
    tops = {(row.model, row.image_size): 100 * row.top1 for row in found.accuracies}
    for engine, precision, batch in pairs:
        here = {
            (p.model, p.image_size): p.milliseconds
            for p in found.points
            if (p.engine, p.precision, p.batch_size) == (engine, precision, batch)
        }
        title = f"{engine} {precision}, batch {batch}"
        rows = [[name, *(here.get((name, size)) for size in found.sizes)] for name in found.models]
        columns = (LABEL, *(Column(f"{size} px", "{:.2f}") for size in found.sizes))
        name = f"latency_{engine}_{precision}_{batch}"
        tables.append(Table(name, f"{title}: milliseconds an image", columns, rows))
        series = {
            name: [(size, here[name, size]) for size in found.sizes if (name, size) in here] for name in found.models
        }
        series = {name: values for name, values in series.items() if values}
        figure = figures.lines(series, "side of the image, pixels", "milliseconds an image", log=True)
        pictures.append(Picture(name, figure, f"Latency against size, {title}."))
        largest = found.sizes[-1]
        fastest = sorted((here[name, largest], name) for name in found.models if (name, largest) in here)
        if fastest:
            order = ", ".join(f"{name} {spent:.1f}" for spent, name in fastest)
            said.append(f"{title}, at {largest} pixels, milliseconds an image: {order}.")
    sections = [
        Section("Latency", ("Networks and sizes are timed in turn, round by round.",), tuple(tables), tuple(pictures))
    ]
    if tops:
        rows = [[name, *(tops.get((name, size)) for size in found.sizes)] for name in found.models]
        columns = (LABEL, *(Column(f"{size} px", "{:.2f}") for size in found.sizes))
        series = {
            name: [(size, tops[name, size]) for size in found.sizes if (name, size) in tops] for name in found.models
        }
        series = {name: values for name, values in series.items() if values}
        shown = [
            Picture("accuracy", figures.lines(series, "side of the image, pixels", "top-1, %"), "Top-1 against size.")
        ]
        if pairs:
            engine, precision, batch = pairs[0]
            spent = {
                (p.model, p.image_size): p.milliseconds
                for p in found.points
                if (p.engine, p.precision, p.batch_size) == pairs[0]
            }
            against = {
                name: [(spent[name, size], top, f"{size}") for size, top in values if (name, size) in spent]
                for name, values in series.items()
            }
            figure = figures.points(
                {name: values for name, values in against.items() if values},
                f"milliseconds an image, {engine} {precision}, batch {batch}",
                "top-1, %",
            )
            shown.append(Picture("tradeoff", figure, "Top-1 against latency; the points are sizes, in pixels."))
        text = ("The same weights at each size, as they are: trained at one of them. Norms are not measured anew.",)
        sections.append(Section("Accuracy", text, (Table("accuracy", "Top-1, %", columns, rows),), tuple(shown)))
        for name, values in series.items():
            size, top = max(values, key=lambda value: value[1])
            said.append(f"{name} is most accurate at {size} pixels, {top:.2f} %.")
    published = [
        [name, size, top.percent, "yes" if top.distilled else "no"]
        for name in found.models
        for size in found.sizes
        if (top := found.published(name, size))
    ]
    if published:
        columns = (LABEL, Column("pixels"), Column("top-1, %", "{:.1f}"), Column("distilled"))
        table = Table("published", "Published top-1 on ImageNet-1K, as timm lists it", columns, published)
        sections.append(Section("Published accuracy", (), (table,)))
    sections.append(
        Section(
            "What the paper says",
            (
                "S4 at 384 pixels is 77.4 % faster on a GPU than EfficientViT-M5 at 512; S4 fine-tuned at 512 has 82.0 % "
                "and runs at 3,957 images/s on an A100. At 1024x1024 on a phone, S4's latency is 34.4 % below FastViT's "
                "and 69.7 % below EfficientFormer's.",
            ),
        )
    )
    if found.omitted:
        sections.append(Section("What has no number, and why", found.omitted))
    data = {
        "what": "the least milliseconds an image",
        "value": min((p.milliseconds for p in found.points), default=None),
        "unit": "ms",
        "threads": found.how.threads,
        **found.to_dict(),
        **about,
    }
    lead = "How latency and accuracy change with the size of the images, SHViT beside networks of about its accuracy."
    return Report("Latency and accuracy against resolution", lead, tuple(said), tuple(sections), data)


# -- redundancy -------------------------------------------------------------------------------------------------------


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
                f"{name}: {len(names)} attention layers of {', '.join(map(str, sorted(set(counts))))} heads. Top-1 with "
                f"all of them: {result.top1:.2%} of {result.images:,} images.",
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
        "threads": None,
        "study": "redundancy",
        "model": name,
        **result.to_dict(),
        "could_be_single": found.single,
        "single_together": found.together,
        "savings": found.savings,
        **about,
    }
    lead = (
        "Are the heads of multi-head attention redundant? Where they look, how alike their attention maps are, and what "
        "accuracy is left when some are switched off."
    )
    return Report(f"Head redundancy of {name}", lead, _redundancy_findings(found, several), tuple(sections), data)


def _redundancy_findings(found: Studied, several: Sequence[int]) -> tuple[str, ...]:
    result = found.result
    if not several:
        return ("Each attention layer has one head: there is nothing to be redundant.",)
    similarity = [100 * (result.mean_similarity[place] or 0.0) for place in several]
    third = max(1, len(several) // 3)
    early, late = mean(similarity[:third]), mean(similarity[-third:])
    verdict = (
        "more alike than early ones, as in the paper" if late > early else "NOT more alike than early ones, other "
    )
    verdict += "" if late > early else "than in the paper"
    off = [100 * (result.top1 - max(result.layers[place].without)) for place in several]
    alone = [100 * (result.top1 - max(result.layers[place].alone)) for place in several]
    gains = sum(loss < 0 for loss in off)
    said = [
        f"Late layers' heads are {verdict}: mean similarity {late:.1f} % in the last {third} layers, {early:.1f} % in the "
        f"first {third}, {mean(similarity):.1f} % over all.",
        f"Without its least important head a layer costs {min(off):.2f} to {max(off):.2f} points (best score of each layer)"
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
            f"All of the latter at once, the other heads taken out: {100 * (saved['top1'] - result.top1):+.2f} points of top-1, "
            f"{saved['params_saved']:.1%} of the parameters, {saved['macs_saved']:.1%} of the operations, and as a "
            f"multiple of the speed: {faster}."
        )
    return tuple(said)


def _looks_section(found: Studied) -> Section:
    looked = found.pictures
    assert looked
    figure = figures.attention_over_images(looked.images, looked.queries, looked.columns, looked.maps)
    text = (
        "Important: the head whose absence costs most top-1. Redundant: the one whose absence costs least; of equal ones, "
        "the one most like the others. Bright is where the marked place looks; places outside its window are left out.",
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
        "Cosine similarity, from 0 to 100 %, of each head's attention map with the map of each other head of its layer, a "
        "mean over these and over the images.",
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
        "The output of one head of one layer, or of all but one, is zero; all other layers are whole. Dots are heads, the "
        "filled one is the best score, the line is the whole network.",
        f"Top-1 of {result.images:,} images is certain to {certain:.2f} points (one standard error), differences on the "
        "same images to less. The paper's DeiT-T loses 0.1 to 1.5 points with one head of three off, 0.5 to 4.6 with one "
        "alone; Swin-T at half width 0.95 on average with one alone, and sometimes gains with one off.",
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
            "one, timed in turn. It was not trained further, which would win back some of what it loses."
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
