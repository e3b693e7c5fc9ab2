"""Planted truth: what is known of constructed heads is what is found."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from timm.models.swin_transformer import window_partition
from torch import nn

from shvit.errors import InputError
from shvit.study.heads import AttentionLayer, Grid, Windows, record_attention
from shvit.study.redundancy import LayerHeads, Redundancy, measure_redundancy, single_together

TOKENS, WIDTH = 4, 2


class Planted(nn.Module):
    """Three heads whose maps are given; the label is which half of the channels is larger, and one head carries it."""

    def __init__(self, maps: torch.Tensor, carries: int | None) -> None:
        super().__init__()
        self.maps, heads = maps, len(maps)
        self.value = nn.Parameter(torch.zeros(heads))
        self.project = nn.Linear(heads * WIDTH, 2, bias=False)
        nn.init.zeros_(self.project.weight)
        for head in range(heads) if carries is None else [carries]:
            self.project.weight.data[:, head * WIDTH : (head + 1) * WIDTH] = torch.eye(WIDTH)

    def forward(self, images):
        tokens = images.mean((2, 3))[:, None, :WIDTH].expand(-1, TOKENS, -1)  # b, tokens, channels
        weights = (self.maps.clamp(min=1e-30).log().expand(len(images), -1, -1, -1)).softmax(-1)
        mixed = weights @ tokens[:, None]  # b, heads, tokens, channels
        return self.project(mixed.transpose(1, 2).flatten(2)).mean(1)


def batches(images: int = 12):
    labels = torch.arange(images) % 2
    pictures = torch.zeros(images, 3, 4, 4)
    pictures[torch.arange(images), labels] = 1
    return [(pictures[:8], labels[:8]), (pictures[8:], labels[8:])]


def study(maps, carries=None):
    network = Planted(maps, carries)
    layers = [AttentionLayer("planted", network, len(maps), network.project)]
    return measure_redundancy(network, layers, batches(), batches())


def one_hot(*keys: int) -> torch.Tensor:
    """A map of which every query looks at the key that is named for it."""
    return torch.eye(TOKENS)[list(keys)]


def test_the_same_maps_read_1_and_orthogonal_ones_0():
    first, other = one_hot(0, 1, 2, 3), one_hot(1, 2, 3, 0)
    assert study(torch.stack([first, first])).layers[0].similarity == pytest.approx((1, 1))
    assert study(torch.stack([first, other])).layers[0].similarity == pytest.approx((0, 0), abs=1e-12)
    mixed = study(torch.stack([first, first, other]))
    assert mixed.layers[0].similarity == pytest.approx((0.5, 0.5, 0))
    assert mixed.mean_similarity == pytest.approx((1 / 3,))


def test_half_alike_maps_read_a_half():
    assert study(torch.stack([one_hot(0, 1, 2, 3), one_hot(0, 1, 3, 2)])).layers[0].similarity == pytest.approx(
        (0.5, 0.5)
    )


@pytest.mark.parametrize("carries", [0, 2])
def test_the_only_head_that_carries_the_label_matters_most(carries):
    uniform = torch.full((3, TOKENS, TOKENS), 1 / TOKENS)
    found = study(uniform, carries)
    assert (found.top1, found.images) == (1.0, 12)
    expected = tuple(0.5 if head == carries else 1.0 for head in range(3))
    assert found.layers[0].without == expected
    assert found.layers[0].alone == tuple(1.5 - top1 for top1 in expected)


def test_heads_that_all_carry_it_are_not_missed():
    found = study(torch.full((3, TOKENS, TOKENS), 1 / TOKENS))
    assert found.layers[0].without == found.layers[0].alone == (1.0, 1.0, 1.0)


def test_a_single_head_is_neither_alike_nor_switched_off():
    found = study(torch.full((1, TOKENS, TOKENS), 1 / TOKENS))
    assert (found.layers[0].similarity, found.layers[0].without) == ((), ())
    assert found.layers[0].alone == (1.0,)
    assert found.mean_similarity == (None,)


def test_heads_are_ranked_by_what_their_absence_costs_then_by_likeness():
    first = LayerHeads("one", (0.1, 0.9), (0.8, 0.8), (0.5, 0.5))
    second = LayerHeads("two", (0.2, 0.2), (0.2, 0.9), (0.85, 0.6))
    found = Redundancy(0.9, 10, (first, second))
    assert found.ranked() == [(1, 0), (0, 0), (0, 1), (1, 1)]
    assert found.could_be_single(6) == {1: 0}
    assert found.could_be_single(50) == {1: 0, 0: 0}
    assert found.could_be_single(1) == {}


def test_the_head_that_carries_the_label_is_ranked_first():
    assert study(torch.full((3, TOKENS, TOKENS), 1 / TOKENS), 1).ranked()[0] == (0, 1)


class Twice(nn.Module):
    """Two layers that both carry the label: either can lose heads, both cannot."""

    def __init__(self) -> None:
        super().__init__()
        uniform = torch.full((2, TOKENS, TOKENS), 1 / TOKENS)
        self.first, self.second = Planted(uniform, 0), Planted(uniform, 0)

    def forward(self, images):
        return self.first(images) + self.second(images) + torch.tensor([0.0, 1e-3])


def test_layers_that_could_be_single_alone_but_not_together():
    network = Twice()
    layers = [AttentionLayer(str(n), part, 2, part.project) for n, part in enumerate((network.first, network.second))]
    found = measure_redundancy(network, layers, batches(), batches())
    assert [layer.alone for layer in found.layers] == [(1, 1), (1, 1)]
    assert single_together(network, layers, found, batches(), 1.0) == {0: 0, 1: 0}
    empty = tuple(replace(layer, alone=(0.99, 1.0)) for layer in found.layers)  # so that the other heads are chosen
    assert replace(found, layers=empty).could_be_single(1.0) == {0: 1, 1: 1}
    assert single_together(network, layers, replace(found, layers=empty), batches(), 1.0) == {0: 1}


def test_a_place_sees_the_map_row_by_row_after_the_prefix():
    maps = torch.rand(1, 2, 1 + 16, 1 + 16)
    seen = Grid(prefix=1).attention_from(maps, x=0.5, y=0.25)
    query = 1 + 1 * 4 + 2
    torch.testing.assert_close(torch.from_numpy(seen), maps[0, :, query, 1:].view(2, 4, 4))


@pytest.mark.parametrize("shift", [(0, 0), (1, 1), (2, 1)])
def test_a_place_sees_its_window_where_timm_cut_it(shift):
    rows = columns = 8
    places = torch.arange(rows * columns).view(1, rows, columns, 1)
    moved = places.roll((-shift[0], -shift[1]), (1, 2))
    keys = window_partition(moved, (4, 4)).flatten(1)  # windows, the places in each
    maps = torch.rand(len(keys), 2, 16, 16)
    for row, column in ((0, 0), (3, 5), (7, 7), (1, 6)):
        seen = Windows((4, 4), shift, (rows, columns)).attention_from(maps, column / columns, row / rows)
        [[window, query]] = (keys == row * columns + column).nonzero().tolist()
        expected = torch.full((2, rows * columns), torch.nan)
        expected[:, keys[window]] = maps[window, :, query]
        torch.testing.assert_close(torch.from_numpy(seen), expected.view(2, rows, columns), equal_nan=True)


def test_looks_are_the_maps_of_every_layer():
    maps = torch.stack([one_hot(1, 0, 3, 2), one_hot(3, 2, 1, 0)])
    network, seen = Planted(maps, None), {}
    layer = AttentionLayer("planted", network, 2, network.project)
    with torch.no_grad(), record_attention([layer], seen.__setitem__):
        network(torch.zeros(1, 3, 4, 4))
    found = layer.layout.attention_from(seen[layer], x=0.5, y=0.0)  # the second token
    assert found == pytest.approx(np.array([[[1, 0], [0, 0]], [[0, 0], [1, 0]]]), abs=1e-12)


def test_a_layer_that_is_described_wrongly_is_refused_at_once():
    network = Planted(torch.full((2, TOKENS, TOKENS), 1 / TOKENS), 0)
    unread = AttentionLayer("unread", network, 2, nn.Linear(4, 2))
    blind = AttentionLayer("blind", network.project, 2, network.project)
    with pytest.raises(
        InputError, match="unread: its projection, which should read the heads' outputs, is never called"
    ):
        measure_redundancy(network, [unread], batches(), batches())
    with pytest.raises(InputError, match="blind: its module called neither softmax nor fused attention"):
        measure_redundancy(network, [blind], batches(), batches())


def test_a_loss_of_just_the_tolerance_is_within_it():
    found = Redundancy(0.723, 1000, (LayerHeads("one", (0.1, 0.1), (0.7, 0.7), (0.718, 0.6)),))
    assert found.could_be_single(0.5) == {0: 0}


def test_tokens_that_are_no_map_cannot_be_drawn():
    with pytest.raises(InputError, match="are not a square grid"):
        Grid().attention_from(torch.rand(1, 2, 15, 15), 0.5, 0.5)
    pooled = Grid().attention_from(torch.rand(1, 2, 16, 4), 0.9, 0.9)  # keys on a coarser map, as in PVT
    assert pooled.shape == (2, 2, 2)
