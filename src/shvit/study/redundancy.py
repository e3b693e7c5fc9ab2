"""Are attention heads redundant? How alike their maps are, and what accuracy is left when some are switched off.

Source: Yun and Ro, "SHViT" (CVPR 2024), section 2.2 and its supplementary tables.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from ..bench.run import Progress
from ..errors import InputError
from .heads import AttentionLayer, Maps, watching, without

Batches = Iterable[tuple[Float[Tensor, "b 3 h w"], Int64[Tensor, " b"]]]
"""Images as the network takes them, where it is, and their labels; gone through more than once."""
NO_MORE = 1e-9
"""Points of top-1 that rounding may add to a loss."""


@dataclass(frozen=True)
class LayerHeads:
    """What was found of one layer; each tuple has an entry for each head."""

    layer: str
    similarity: tuple[float, ...]
    """Mean cosine similarity, from 0 to 1, of the head's attention map with those of the others; empty for one head."""
    without: tuple[float, ...]
    """Top-1 where the head alone is switched off."""
    alone: tuple[float, ...]
    """Top-1 where all other heads of the layer are."""


@dataclass(frozen=True)
class Redundancy:
    """Of a network."""

    top1: float
    """With all heads."""
    images: int
    layers: tuple[LayerHeads, ...]

    @property
    def mean_similarity(self) -> tuple[float | None, ...]:
        """Of each layer; None where it has one head."""
        found = [layer.similarity for layer in self.layers]
        return tuple(sum(heads) / len(heads) if heads else None for heads in found)

    def importance(self, layer: int) -> tuple[float, ...]:
        """Points of top-1 that each head's absence costs: the paper's measure of how much it matters."""
        return tuple(100 * (self.top1 - top1) for top1 in self.layers[layer].without)

    def ranked(self) -> list[tuple[int, int]]:
        """(layer, head) from the most important to the most redundant; of equal ones, those more alike come later."""
        heads = [(layer, head) for layer, found in enumerate(self.layers) for head in range(len(found.without))]
        return sorted(
            heads, key=lambda one: (self.layers[one[0]].without[one[1]], self.layers[one[0]].similarity[one[1]])
        )

    def could_be_single(self, tolerance: float) -> dict[int, int]:
        """The layers of several heads that lose at most so many points of top-1 with one alone; and which to keep.

        Those that lose the least come first.
        """
        best = {
            place: max(range(len(layer.alone)), key=lambda head: layer.alone[head])
            for place, layer in enumerate(self.layers)
            if len(layer.alone) > 1
        }
        lost = {place: 100 * (self.top1 - self.layers[place].alone[head]) for place, head in best.items()}
        return {
            place: best[place] for place in sorted(lost, key=lambda p: lost[p]) if lost[place] <= tolerance + NO_MORE
        }

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "mean_similarity": self.mean_similarity}


def redundancy(
    network: nn.Module,
    layers: Sequence[AttentionLayer],
    batches: Batches,
    told: Progress = lambda what, done, total: None,
    looked_at: Batches | None = None,
    so_far: Callable[[Redundancy], None] = lambda found: None,
) -> Redundancy:
    """Every head of every layer, on these images: 1 + twice the heads' number of passes over them.

    Args:
        network: In evaluation mode, from images to logits.
        layers: Of the network.
        batches: To judge accuracy by.
        told: Of progress.
        looked_at: Those whose attention maps are compared; default: all.
        so_far: Given what is known after each layer.

    Raises:
        InputError: A layer's maps are not seen, or its projection is not called: it is described wrongly.
    """
    alike = _Similarity()
    variants = {layer: _variants(layer.heads) if layer.heads > 1 else () for layer in layers}
    total, done = 1 + sum(map(len, variants.values())), 1
    told("attention maps", 0, total)
    with watching(layers, alike.add), _called(layers) as called:
        right, images = count_right(network, batches if looked_at is None else looked_at)
    for layer in layers:
        if not alike.saw(layer):
            raise InputError(f"{layer.name}: no softmax and no fused attention was seen in its module")
        if layer not in called:
            raise InputError(f"{layer.name}: the module that should read the heads' outputs is never called")
    if looked_at is not None:
        right, images = count_right(network, batches)
    whole, found = right / images, []
    for layer in layers:
        every = frozenset(range(layer.heads))
        top1 = {every: whole}
        for kept in variants[layer]:
            told(f"{layer.name} with {len(kept)} of {layer.heads} heads", done, total)
            with without({layer: every - kept}):
                top1[kept] = count_right(network, batches)[0] / images
            done += 1
        switched_off = [top1[every - {head}] for head in every] if layer.heads > 1 else []
        left = [top1[frozenset({head})] for head in every]
        found.append(LayerHeads(layer.name, alike.of(layer), tuple(switched_off), tuple(left)))
        so_far(Redundancy(whole, images, tuple(found)))
    return Redundancy(whole, images, tuple(found))


@contextmanager
def _called(layers: Iterable[AttentionLayer]) -> Iterator[set[AttentionLayer]]:
    """The layers whose projection was called in here."""
    called: set[AttentionLayer] = set()
    with ExitStack() as stack:
        for layer in layers:
            hook = layer.project.register_forward_pre_hook(lambda *_, layer=layer: called.add(layer))
            stack.callback(hook.remove)
        yield called


def single_together(
    network: nn.Module,
    layers: Sequence[AttentionLayer],
    found: Redundancy,
    batches: Batches,
    tolerance: float,
    told: Progress = lambda what, done, total: None,
) -> dict[int, int]:
    """The layers that can have a single head all at once, within the tolerance; and the head that each keeps.

    Those that could alone are tried one after another, the cheapest first; one that costs too much with the ones taken
    before keeps its heads.
    """
    kept: dict[int, int] = {}
    alone = found.could_be_single(tolerance)
    for done, (place, head) in enumerate(alone.items()):
        told(f"single heads together: {layers[place].name}", done, len(alone))
        tried = {**kept, place: head}
        off = {layers[one]: set(range(layers[one].heads)) - {keep} for one, keep in tried.items()}
        with without(off):
            right, images = count_right(network, batches)
        if 100 * (found.top1 - right / images) <= tolerance + NO_MORE:
            kept = tried
    return kept


@torch.inference_mode()
def looks(
    network: nn.Module, layers: Sequence[AttentionLayer], image: Float[Tensor, "1 3 h w"], x: float, y: float
) -> list[Float[np.ndarray, "heads h2 w2"]]:
    """Where each layer's heads look from one place of an image; NaN where they cannot.

    Args:
        network: In evaluation mode.
        layers: Of the network.
        image: As the network takes it.
        x: From the left, as a share of the width, from 0 to below 1.
        y: From above.
    """
    seen: dict[AttentionLayer, Maps] = {}
    with watching(layers, seen.__setitem__):
        network(image)
    return [layer.layout.seen_from(seen[layer].cpu(), x, y) for layer in layers]


@torch.inference_mode()
def count_right(network: nn.Module, batches: Batches) -> tuple[int, int]:
    """How many images the network labels rightly, and how many there are."""
    right = images = 0
    for inputs, labels in batches:
        right += int((network(inputs).argmax(1).cpu() == labels).sum())
        images += len(labels)
    return right, images


def _variants(heads: int) -> Collection[frozenset[int]]:
    """The sets of heads to keep: all but one, and one alone; of two heads these are the same."""
    every = frozenset(range(heads))
    return dict.fromkeys([*(every - {head} for head in every), *(frozenset({head}) for head in every)])


class _Similarity:
    """Adds up, image by image, how alike the maps of each pair of heads are."""

    def __init__(self) -> None:
        self._sums: dict[AttentionLayer, Float[Tensor, "heads heads"]] = {}
        self._images: dict[AttentionLayer, int] = {}

    def add(self, layer: AttentionLayer, maps: Maps) -> None:
        flat = nn.functional.normalize(maps.detach().flatten(2).to("cpu", torch.float64), dim=2)
        pairs = (flat @ flat.transpose(1, 2)).sum(0)
        self._sums[layer] = self._sums.get(layer, torch.zeros_like(pairs)) + pairs
        self._images[layer] = self._images.get(layer, 0) + len(maps)

    def saw(self, layer: AttentionLayer) -> bool:
        return layer in self._sums

    def of(self, layer: AttentionLayer) -> tuple[float, ...]:
        """Of each head with the others, a mean over these and the images; empty for one head."""
        if layer.heads == 1:
            return ()
        pairs = self._sums[layer] / self._images[layer]
        return tuple(((pairs.sum(1) - pairs.diagonal()) / (layer.heads - 1)).tolist())
