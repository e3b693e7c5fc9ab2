"""Masks of the light detector: sampling against PyTorch's grid_sample, and the loss by hand."""

import math

import pytest
import torch
from torch.nn.functional import grid_sample

from conftest import randomize_norms, tiny_architecture
from shvit.data.letterbox import Letterbox
from shvit.model.detector import Target
from shvit.model.fuse import FuseError, fuse
from shvit.model.light_masks import _reduced, mask_loss, masks_inside
from shvit.tasks.segment import SegmentLight


def masks_detector(classes: int = 3):
    return randomize_norms(tiny_architecture(classes, detector="light_masks").build()).eval()


def test_masks_are_sampled_as_by_grid_sample():
    torch.manual_seed(0)
    prototypes, coefficients = torch.randn(2, 5, 16, 24), torch.randn(2, 3, 5)
    corners = torch.rand(2, 3, 2) * torch.tensor([60.0, 30])
    boxes = torch.cat([corners, corners + 4 + torch.rand(2, 3, 2) * 30], 2)
    boxes[0, 0] = torch.tensor([-20.0, -8, 120, 80])  # reaches beyond the image
    shares = (torch.arange(28) + 0.5) / 28
    x = boxes[..., 0:1] + (boxes[..., 2:3] - boxes[..., 0:1]) * shares
    y = boxes[..., 1:2] + (boxes[..., 3:4] - boxes[..., 1:2]) * shares
    grid = torch.stack([x[:, :, None].expand(-1, -1, 28, -1) / 48 - 1, y[..., None].expand(-1, -1, -1, 28) / 32 - 1], 4)
    whole = torch.einsum("bnp,bphw->bnhw", coefficients, prototypes)
    expected = grid_sample(
        whole.flatten(0, 1)[:, None], grid.flatten(0, 1), padding_mode="border", align_corners=False
    )[:, 0].view(2, 3, 28, 28)
    torch.testing.assert_close(masks_inside(boxes, coefficients, prototypes), expected, rtol=1e-4, atol=1e-4)


def test_mask_loss_by_hand():
    """A box of two by two pixels of a prototype, of which the object covers the left half."""
    logits = torch.zeros(1, 6, 6)
    expected = torch.zeros(1, 6, 6)
    expected[0, 2:4, 2] = 1
    [loss] = mask_loss(logits, expected, torch.tensor([[9.0, 9, 15, 15]])).tolist()
    dice = 1 - (2 * 2 * 0.5 + 1) / (4 * 0.25 + 2 + 1)
    assert loss == pytest.approx(math.log(2) + dice)
    right = torch.where(expected > 0, 20.0, -20.0)
    assert mask_loss(right, expected, torch.tensor([[9.0, 9, 15, 15]])).item() == pytest.approx(0, abs=1e-4)


def test_the_best_hundred_objects_are_returned():
    model, images = masks_detector(), torch.randn(2, 3, 128, 192)
    with torch.no_grad():
        model.head.classes.weight.normal_()  # otherwise scores are so similar that rounding decides their order
        rows = model(images)
        _, one, boxes, _, _ = model.predicted(model.features(images))
        torch.testing.assert_close(fuse(model)(images)[..., 4], rows[..., 4], rtol=1e-4, atol=1e-4)
    assert rows.shape == (2, 100, 6 + 28 * 28)
    scores = one.sigmoid().flatten(1).sort(descending=True)
    torch.testing.assert_close(rows[..., 4], scores.values[:, :100])
    place, label = divmod(int(scores.indices[1, 7]), 3)
    assert rows[1, 7, 5] == label
    torch.testing.assert_close(rows[1, 7, :4], boxes[1, place])
    small = masks_detector(1)(torch.randn(1, 3, 64, 64))
    assert small.shape == (1, 8 * 8 + 4 * 4 + 2 * 2, 790)
    for one_row, side in ((small[0], 64), (rows[0], 128)):
        [found] = SegmentLight("abc").decode(one_row[None].detach(), [Letterbox(side, side, 1.0, 1.0)], 0.0)
        assert found.masks is not None
        assert len(found.masks) == len(found)


def test_masks_train_the_prototypes_even_without_objects():
    model, none = masks_detector().train(), torch.zeros(0, 4)
    masks = torch.zeros(1, 64, 64, dtype=torch.uint8)
    masks[0, 8:40, 8:40] = 1
    full = Target(torch.tensor([[8.0, 8, 40, 40]]), torch.tensor([1]), none, masks)
    empty = Target(none, torch.zeros(0, dtype=torch.int64), none, masks[:0])
    for targets in ([full, empty], [empty, empty]):
        model.zero_grad()
        loss = model(torch.randn(2, 3, 64, 64), targets)
        loss.backward()
        assert loss.isfinite()
        assert all(weight.grad is not None for weight in model.prototypes.parameters())


@pytest.mark.parametrize("kind", ["light", "light_masks"])
def test_training_in_mixed_precision(kind):
    model = randomize_norms(tiny_architecture(2, detector=kind).build()).train()
    masks = torch.zeros(1, 64, 64, dtype=torch.uint8)
    masks[0, 8:40, 8:40] = 1
    targets = [Target(torch.tensor([[8.0, 8, 40, 40]]), torch.tensor([1]), torch.zeros(0, 4), masks)] * 2
    torch.manual_seed(0)
    images = torch.randn(2, 3, 64, 64)
    exact = model(images, targets)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(images, targets)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=0.1)
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in model.parameters())


def test_masks_of_images_that_are_padded_in_a_batch_stay_in_place():
    """An image of 64 x 128 pixels in a batch that is padded to 128 x 192."""
    masks = torch.zeros(2, 64, 128, dtype=torch.uint8)
    masks[1, 16:32, 64:128] = 1
    small = _reduced(masks[torch.tensor([1])], 32, 48)
    expected = torch.zeros(1, 32, 48)
    expected[0, 4:8, 16:32] = 1
    assert torch.equal(small, expected)


def test_folding_checks_the_prototypes():
    model = masks_detector()
    width = model.prototypes[1].in_channels

    class Wrong(torch.nn.Identity):
        def fold(self):
            return torch.nn.Conv2d(width, width, 1).double()

    model.prototypes.insert(1, Wrong())
    with pytest.raises(FuseError):
        fuse(model)
