"""Planted truth: what is known of constructed heads is what is found."""

import pytest
import torch
from torch import nn

from shvit.study.heads import AttentionLayer
from shvit.study.redundancy import redundancy

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
    return redundancy(network, [AttentionLayer("planted", network, len(maps), network.project)], batches())


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
    assert found.importance(0) == tuple(50.0 if head == carries else 0.0 for head in range(3))


def test_heads_that_all_carry_it_are_not_missed():
    found = study(torch.full((3, TOKENS, TOKENS), 1 / TOKENS))
    assert found.layers[0].without == found.layers[0].alone == (1.0, 1.0, 1.0)


def test_a_single_head_is_neither_alike_nor_switched_off():
    found = study(torch.full((1, TOKENS, TOKENS), 1 / TOKENS))
    assert (found.layers[0].similarity, found.layers[0].without) == ((), ())
    assert found.layers[0].alone == (1.0,)
    assert found.mean_similarity == (None,)
