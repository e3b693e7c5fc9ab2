"""Measure how redundant attention heads are: the similarity of their attention maps, and accuracy with heads off.

Source: Yun and Ro, "SHViT" (CVPR 2024), section 2.2 and its supplementary tables.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from ..bench.run import OnProgress
from ..errors import InputError
from .heads import AttentionLayer, HeadMaps, heads_off, record_attention

Batches = Iterable[tuple[Float[Tensor, "b 3 h w"], Int64[Tensor, " b"]]]
"""Batches of normalized images, on the network's device, and their labels. Must be iterable more than once."""
TOP1_ROUNDING = 1e-9
"""A loss of top-1 may exceed the tolerance by this many points, to allow for rounding errors."""


@dataclass(frozen=True)
class LayerHeads:
    """Results of one layer. Each tuple has one entry per head."""

    layer: str
    similarity: tuple[float, ...]
    """Mean cosine similarity (0 to 1) of a head's map to the maps of the layer's other heads. Empty for one head."""
    without: tuple[float, ...]
    """Top-1 with only this head off. Empty if the layer has a single head."""
    alone: tuple[float, ...]
    """Top-1 with all other heads of the layer off."""


@dataclass(frozen=True)
class Redundancy:
    """Results of a network, or of its first layers while the measurement runs."""

    top1: float
    """Top-1 (0 to 1) with all heads on."""
    images: int
    layers: tuple[LayerHeads, ...]

    @property
    def mean_similarity(self) -> tuple[float | None, ...]:
        """Mean similarity of the heads of each layer. None for a layer with one head."""
        return tuple(sum(each.similarity) / len(each.similarity) if each.similarity else None for each in self.layers)

    def ranked(self) -> list[tuple[int, int]]:
        """Indices (layer, head), from the most important to the most redundant. If tied, less similar heads come first.

        As in the paper, the importance of a head is the top-1 that is lost with the head off.
        """
        scores = {
            (index, head): (layer.without[head], layer.similarity[head])
            for index, layer in enumerate(self.layers)
            for head in range(len(layer.without))
        }
        return sorted(scores, key=scores.__getitem__)

    def could_be_single(self, tolerance: float) -> dict[int, int]:
        """Find the multi-head layers that lose at most `tolerance` points of top-1 with only their best head on.

        Returns a dict from the index of each such layer to its best head. Layers with the smallest loss come first.
        """
        best = [
            (100 * (self.top1 - max(layer.alone)), index, layer.alone.index(max(layer.alone)))
            for index, layer in enumerate(self.layers)
            if len(layer.alone) > 1
        ]
        return {index: head for lost, index, head in sorted(best) if lost <= tolerance + TOP1_ROUNDING}

    def to_dict(self) -> dict[str, Any]:
        """Convert to JSON data."""
        return {**asdict(self), "mean_similarity": self.mean_similarity}


def measure_redundancy(
    network: nn.Module,
    layers: Sequence[AttentionLayer],
    batches: Batches,
    similarity_batches: Batches,
    progress: OnProgress = lambda what, done, total: None,
    on_update: Callable[[Redundancy], None] = lambda result: None,
) -> Redundancy:
    """Measure every head of every layer. Runs the network on all images up to 1 + 2 x (number of heads) times.

    The network must be in eval mode. Attention maps are compared on `similarity_batches`. `on_update` is called with
    the results so far after each layer.

    Raises:
        InputError: A layer is described incorrectly: its module computes no attention, or its projection is not called.
    """
    variants = {layer: _variants(layer.heads) if layer.heads > 1 else () for layer in layers}
    total, done = 1 + sum(map(len, variants.values())), 1
    progress("attention maps", 0, total)
    similarity = _similarity(network, layers, similarity_batches)
    correct, images = count_correct(network, batches)
    whole, results = correct / images, []
    for layer in layers:
        every = frozenset(range(layer.heads))
        top1 = {every: whole}
        for kept in variants[layer]:
            progress(f"{layer.name} with {len(kept)} of {layer.heads} heads", done, total)
            with heads_off({layer: every - kept}):
                top1[kept] = count_correct(network, batches)[0] / images
            done += 1
        without = [top1[every - {head}] for head in every] if layer.heads > 1 else []
        alone = [top1[frozenset({head})] for head in every]
        results.append(LayerHeads(layer.name, similarity[layer], tuple(without), tuple(alone)))
        on_update(Redundancy(whole, images, tuple(results)))
    return Redundancy(whole, images, tuple(results))


def _similarity(
    network: nn.Module, layers: Sequence[AttentionLayer], batches: Batches
) -> dict[AttentionLayer, tuple[float, ...]]:
    """Similarity of each head to the layer's other heads, averaged over all images. Empty for layers with one head."""
    sums: dict[AttentionLayer, Tensor] = {}
    images: Counter[AttentionLayer] = Counter()
    called: set[AttentionLayer] = set()

    def add(layer: AttentionLayer, maps: HeadMaps) -> None:
        flat = nn.functional.normalize(maps.detach().flatten(2).to("cpu", torch.float64), dim=2)
        pairs = (flat @ flat.transpose(1, 2)).sum(0)
        sums[layer] = sums.get(layer, torch.zeros_like(pairs)) + pairs
        images[layer] += len(maps)

    with record_attention(layers, add), ExitStack() as stack:
        for layer in layers:
            hook = layer.project.register_forward_pre_hook(lambda *_, layer=layer: called.add(layer))
            stack.callback(hook.remove)
        count_correct(network, batches)
    similarity: dict[AttentionLayer, tuple[float, ...]] = {}
    for layer in layers:
        if layer not in sums:
            raise InputError(f"{layer.name}: its module called neither softmax nor fused attention")
        if layer not in called:
            raise InputError(f"{layer.name}: its projection, which should read the heads' outputs, is never called")
        pairs = sums[layer] / images[layer]
        others = pairs.sum(1) - pairs.diagonal()
        similarity[layer] = tuple((others / (layer.heads - 1)).tolist()) if layer.heads > 1 else ()
    return similarity


def single_together(
    network: nn.Module,
    layers: Sequence[AttentionLayer],
    redundancy: Redundancy,
    batches: Batches,
    tolerance: float,
    progress: OnProgress = lambda what, done, total: None,
) -> dict[int, int]:
    """Find layers that can all run with a single head at the same time within the tolerance. Returns the heads to keep.

    The search is greedy: layers from `could_be_single` are added one by one, smallest loss first. A layer is left out
    if adding it would exceed the tolerance.
    """
    kept: dict[int, int] = {}
    candidates = redundancy.could_be_single(tolerance)
    for done, (index, head) in enumerate(candidates.items()):
        progress(f"combining layers with a single head: {layers[index].name}", done, len(candidates))
        tried = {**kept, index: head}
        off = {layers[one]: set(range(layers[one].heads)) - {keep} for one, keep in tried.items()}
        with heads_off(off):
            correct, images = count_correct(network, batches)
        if 100 * (redundancy.top1 - correct / images) <= tolerance + TOP1_ROUNDING:
            kept = tried
    return kept


@torch.inference_mode()
def count_correct(network: nn.Module, batches: Batches) -> tuple[int, int]:
    """Count the correct top-1 predictions and the images."""
    correct = images = 0
    for inputs, labels in batches:
        correct += int((network(inputs).argmax(1).cpu() == labels).sum())
        images += len(labels)
    return correct, images


def _variants(heads: int) -> Collection[frozenset[int]]:
    """The sets of heads to keep: all sets without one head, then each head alone. With two heads, both are the same."""
    every = frozenset(range(heads))
    return dict.fromkeys([*(every - {head} for head in every), *(frozenset({head}) for head in every)])
