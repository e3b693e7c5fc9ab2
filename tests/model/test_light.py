"""The light detector: assignment and losses against arithmetic by hand, folding, and what each branch trains."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import binary_cross_entropy

from conftest import randomize_norms, tiny_architecture
from shvit.errors import InputError
from shvit.model.architecture import Architecture
from shvit.model.assignment import assign, box_loss, class_loss, quality_focal_loss, selection_loss
from shvit.model.detector import Target
from shvit.model.fuse import fuse
from shvit.model.light import TransposedConv, boxes_at, neck_width, positions

NONE = torch.zeros(0, 4)


def target(boxes, labels, crowds=NONE) -> Target:
    return Target(torch.tensor(boxes, dtype=torch.float32).view(-1, 4), torch.tensor(labels, dtype=torch.int64), crowds)


def light(classes: int = 3):
    return randomize_norms(tiny_architecture(classes, detector="light").build()).eval()


def test_assignment_by_hand():
    """The object overlaps the boxes of positions 0 and 1, where its class has score 0.5 and 0.9; 2 lies outside."""
    centers = torch.tensor([[20.0, 20], [30, 30], [90, 90]])
    boxes = torch.tensor([[0.0, 0, 40, 40], [0, 0, 40, 20], [0, 0, 40, 40]])
    scores = torch.tensor([[0.5, 0.1], [0.9, 0.1], [0.9, 0.9]])
    given = assign(scores, boxes, centers, target([[0, 0, 40, 40]], [0]), count=2, least_side=8)
    assert given.objects.tolist() == [0, 0, -1]
    assert given.quality.tolist() == pytest.approx([1.0, 0.5, 0.0])
    alone = assign(scores, boxes, centers, target([[0, 0, 40, 40]], [0]), count=1, least_side=8)
    assert alone.objects.tolist() == [0, -1, -1]  # alignment 0.5 * 1 is more than 0.9 * (1/2)^3
    scores[0, 0] = 0.1  # 0.1 * 1 is less
    assert assign(scores, boxes, centers, target([[0, 0, 40, 40]], [0]), 1, 8).objects.tolist() == [-1, 0, -1]


def test_a_position_learns_the_object_that_its_box_overlaps_most():
    centers, boxes = torch.tensor([[20.0, 20]]), torch.tensor([[0.0, 0, 40, 40]])
    given = assign(torch.ones(1, 1), boxes, centers, target([[0, 0, 30, 40], [0, 0, 40, 38]], [0, 0]), 1, 8)
    assert given.objects.tolist() == [1]
    assert given.quality.tolist() == pytest.approx([38 / 40])


def test_objects_smaller_than_the_finest_stride_are_learned():
    centers, _ = positions([torch.zeros(1, 1, side, side) for side in (8, 4, 2)])
    boxes = torch.cat([centers - 4, centers + 4], 1)
    given = assign(torch.full((len(centers), 1), 0.5), boxes, centers, target([[31, 31, 33, 33]], [0]), 1, 8)
    [place] = (given.objects >= 0).nonzero()[:, 0].tolist()
    assert (centers[place] - 32).abs().max() <= 4


def test_the_nearest_position_learns_an_object_before_any_box_overlaps_it():
    centers = torch.tensor([[10.0, 10], [50, 50], [90, 90]])
    boxes = torch.tensor([[200.0, 200, 210, 210]]).repeat(3, 1)
    given = assign(torch.full((3, 1), 0.01), boxes, centers, target([[0, 0, 100, 104]], [0]), 1, 8)
    assert given.objects.tolist() == [-1, 0, -1]
    assert given.quality.tolist() == [0, 0, 0]


def test_crowds_are_ignored_and_images_without_objects_are_background():
    centers, boxes = torch.tensor([[5.0, 5], [50, 50]]), torch.tensor([[0.0, 0, 10, 10], [45, 45, 55, 55]])
    crowd = torch.tensor([[40.0, 40, 60, 60]])
    empty = assign(torch.ones(2, 1), boxes, centers, target([], [], crowd), 10, 8)
    assert (empty.objects.tolist(), empty.ignored.tolist()) == ([-1, -1], [False, True])
    found = assign(torch.ones(2, 1), boxes, centers, target([[45, 45, 55, 55]], [0], crowd), 10, 8)
    assert (found.objects.tolist(), found.ignored.tolist()) == ([-1, 0], [False, False])


def test_quality_focal_loss_by_hand():
    logits, quality = torch.tensor([0.3, -2.0, 1.0]), torch.tensor([0.8, 0.0, 1.0])
    scores = logits.sigmoid()
    expected = (scores - quality).abs() * binary_cross_entropy(scores, quality, reduction="none")
    torch.testing.assert_close(quality_focal_loss(logits, quality), expected)


def test_losses_by_hand():
    """One image with one object and one position, whose box has IoU 1/2 and GIoU 1/2 with the object."""
    logits, boxes = torch.tensor([[[0.4, -1.0]]]), torch.tensor([[[0.0, 0, 40, 20]]])
    objects = target([[0, 0, 40, 40]], [0])
    given = assign(logits[0].sigmoid(), boxes[0], torch.tensor([[20.0, 10]]), objects, 1, 8)
    score, other = 1 / (1 + math.exp(-0.4)), 1 / (1 + math.exp(1.0))
    right, wrong = -(0.5 * math.log(score) + 0.5 * math.log(1 - score)), -math.log(1 - other)
    # qualities below 1 are divided by 1
    focused = float(class_loss(logits, [objects], [given]))
    assert focused == pytest.approx(abs(score - 0.5) * right + other * wrong, abs=1e-6)
    assert float(selection_loss(logits, [objects], [given])) == pytest.approx(right, abs=1e-6)
    assert float(box_loss(boxes, [objects], [given])) == pytest.approx(2 * (1 - 0.5), abs=1e-6)


def test_one_score_of_each_position_selects():
    """Position 0 has the object, 1 is background, where the highest score counts, and 2 lies in a crowd."""
    logits = torch.tensor([[[0.4, 1.0], [-1.0, -2.0], [3.0, 3.0]]])
    boxes, centers = torch.tensor([[0.0, 0, 40, 20], [50, 50, 60, 60], [90, 90, 99, 99]]), torch.tensor([20.0, 55, 95])
    objects = target([[0, 0, 40, 40]], [0], torch.tensor([[80.0, 80, 110, 110]]))
    given = assign(logits[0].sigmoid(), boxes, torch.stack([centers, centers - 10], 1), objects, 1, 8)
    expected = binary_cross_entropy(torch.tensor([0.4, -1.0]).sigmoid(), torch.tensor([0.5, 0.0]), reduction="sum")
    assert float(selection_loss(logits, [objects], [given])) == pytest.approx(float(expected), abs=1e-6)


def test_every_position_is_the_center_of_its_cell():
    centers, strides = positions([torch.zeros(1, 1, 8, 12), torch.zeros(1, 1, 4, 6), torch.zeros(1, 1, 2, 3)])
    assert len(centers) == 8 * 12 + 4 * 6 + 2 * 3
    assert centers[1].tolist() == [12, 4]
    assert centers[-1].tolist() == [80, 48]
    boxes = boxes_at(centers, strides, torch.zeros(1, len(centers), 4))
    torch.testing.assert_close((boxes[0, :, 2:] - boxes[0, :, :2]) / 2, strides.expand(-1, 2))


def test_folding_keeps_the_outputs():
    model, images = light(), torch.randn(2, 3, 128, 192)
    folded = fuse(model)
    torch.testing.assert_close(folded(images), model(images), rtol=1e-4, atol=1e-3)
    assert not any(isinstance(part, torch.nn.BatchNorm2d) for part in folded.modules())
    assert model(images).shape == (2, 16 * 24 + 8 * 12 + 4 * 6, 4 + 3)


def test_the_one_to_one_branch_trains_only_its_tower():
    model, images, objects = light().train(), torch.randn(2, 3, 64, 64), [target([[8, 8, 40, 40]], [1])] * 2
    _, one, boxes, _, centers = model.predicted(model.features(images))
    selection_loss(
        one, objects, [model._assigned(*row, centers, 1) for row in zip(one, boxes, objects, strict=True)]
    ).backward()
    trained = {name.split(".")[1] for name, weight in model.named_parameters() if weight.grad is not None}
    assert trained == {"compare", "select_tower", "select"}
    model.zero_grad()
    model(images, [target([[8, 8, 40, 40]], [1]), target([], [])]).backward()
    assert all(weight.grad is not None for name, weight in model.named_parameters() if "backbone.head" not in name)


def test_weights_of_other_classes_are_not_transferred():
    model = light()
    assert {name for name in model.state_dict() if name.startswith(model.class_layers)} == {
        "head.classes.weight",
        "head.classes.bias",
    }


def test_the_one_to_one_branch_keeps_the_order_of_the_classes():
    """Few images of a class cannot spoil its scores: all classes of a position are lowered alike."""
    model, images = light(), torch.randn(1, 3, 128, 128)
    many, one, *_ = model.predicted(model.features(images))
    lowered = one - many
    torch.testing.assert_close(lowered, lowered[..., :1].expand_as(lowered), rtol=0, atol=1e-5)


def test_a_transposed_convolution_folds_to_a_1x1_convolution():
    layer, images = TransposedConv(3, 5).double(), torch.randn(2, 3, 4, 6, dtype=torch.float64)
    folded = layer.fold()
    torch.testing.assert_close(folded(images), layer(images))
    assert not any(isinstance(part, torch.nn.ConvTranspose2d) for part in fuse(light()).modules())


@pytest.mark.parametrize("name", ["timm/mobilenetv3_small_050", "timm/resnet18"])
def test_timms_networks_are_backbones(name):
    model = Architecture(name, 2, detector="light").build().eval()
    assert model(torch.randn(1, 3, 128, 128)).shape == (1, 16**2 + 8**2 + 4**2, 6)


def test_a_backbone_with_other_strides_is_refused():
    config = tiny_architecture().config
    assert config is not None
    coarse = replace(config, stem=5)
    with pytest.raises(InputError, match=r"strides 8, 16 and 32, or 16, 32 and 64; got 32, 64, 128"):
        Architecture("coarse", 2, config=coarse, detector="light").build()


def test_the_neck_grows_with_the_backbone():
    widths = [neck_width([width for width, _ in Architecture(f"shvit_s{n}").build().maps]) for n in (1, 2, 3, 4)]
    assert widths == sorted(widths)
    assert (widths[0], widths[-1]) == (64, 128)
