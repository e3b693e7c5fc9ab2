"""Mosaics and color changes: objects stay on their pixels, and a bad image spoils only its own part."""

import numpy as np
import pytest
import torch
from PIL import Image

from shvit.data.coco import CocoSplit, Objects
from shvit.data.decode import BadImage
from shvit.data.letterbox import Letterbox, targets_of
from shvit.data.loader import Loader, seeded
from shvit.data.object_augmentation import DetectionTrainReader, jitter_hsv
from shvit.data.transforms import Preprocess

WHOLE = Preprocess(64, fit="whole")
FOUR = DetectionTrainReader(WHOLE, (0.5, 1.5), mosaic=1.0, masks=True)


def white_boxes(folder, count: int = 6) -> CocoSplit:
    """Black images, each with one white box at another place."""
    images, objects = [], []
    for number in range(count):
        pixels = np.zeros((60, 90, 3), np.uint8)
        left, top = 10 + 8 * number, 5 + 3 * number
        pixels[top : top + 25, left : left + 20] = 255
        Image.fromarray(pixels).save(folder / f"{number}.png")
        images.append(folder / f"{number}.png")
        box = np.array([[left, top, left + 20, top + 25]], np.float32)
        polygon = (np.array([left, top, left + 20, top, left + 20, top + 25, left, top + 25], float),)
        objects.append(Objects(box, np.array([number]), np.zeros(1, bool), np.array([500], np.float32), [polygon]))
    return CocoSplit(images, list(range(count)), np.array([[60, 90]] * count), objects)


def test_objects_of_mosaics_stay_on_their_pixels(tmp_path):
    split, seen, labels = white_boxes(tmp_path), 0, set()
    for view in range(40):
        with seeded(0, view):
            image, targets = FOUR(split, 2)
        assert image.shape == (3, 64, 64)
        white = (image.float().mean(0) > 128).numpy()
        drawn = np.zeros_like(white)
        for box, mask in zip(targets.boxes, targets.masks, strict=True):
            left, top, right, bottom = box.round().astype(int)
            assert white[top + 1 : bottom - 1, left + 1 : right - 1].all()
            assert (mask.astype(bool) & ~white).sum() <= 2 * (right - left + bottom - top)
            drawn |= mask.astype(bool)
        assert (white & ~drawn).sum() <= 0.15 * white.sum() + 60  # parts that are too small are not objects
        seen += len(targets.boxes)
        labels |= set(targets.labels.tolist())
    assert seen > 60
    assert labels == set(range(6))


def test_a_crowd_is_kept_however_little_of_it_is_visible():
    objects = Objects(
        np.array([[0, 0, 400, 400], [0, 0, 400, 400]], np.float32),
        np.array([0, 1]),
        np.array([True, False]),
        np.array([160_000, 160_000], np.float32),
        (None, None),
    )
    targets = targets_of(objects, Letterbox(400, 400, 1.0, 1.0), (64, 64), (0, 0, 64, 32), masks=False)
    assert (targets.crowds.tolist(), len(targets.boxes)) == ([[0, 0, 32, 64]], 0)


def test_the_last_epochs_have_no_mosaics(tmp_path):
    split = white_boxes(tmp_path)
    reader = DetectionTrainReader(WHOLE, flip=0.0, mosaic=1.0, mosaic_epochs=2)
    plain = DetectionTrainReader(WHOLE, flip=0.0)
    loader = Loader(split, reader, 6, shuffle=True)
    for epoch, same in ((1, False), (2, True)):
        [batch] = loader.epoch(epoch)
        [expected] = Loader(split, plain, 6, shuffle=True).epoch(epoch)
        assert torch.equal(batch.images, expected.images) == same


def test_a_bad_image_spoils_only_its_own_place(tmp_path):
    split = white_boxes(tmp_path, 2)
    (tmp_path / "1.png").write_bytes(b"not an image")
    for view in range(10):
        with seeded(0, view):
            _, targets = FOUR(split, 0)
        assert set(targets.labels.tolist()) <= {0}
    with seeded(0), pytest.raises(BadImage):
        FOUR(split, 1)


def test_a_loader_makes_the_same_mosaics_with_and_without_workers(tmp_path):
    split = white_boxes(tmp_path)
    [one], [two] = (Loader(split, FOUR, 6, workers, shuffle=True).epoch(3) for workers in (0, 1))
    assert torch.equal(one.images, two.images)
    for some, others in zip(one.targets, two.targets, strict=True):
        np.testing.assert_array_equal(some.boxes, others.boxes)


def test_colors_change_and_grey_stays_grey():
    colors = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8)
    grey = torch.full((3, 8, 8), 100, dtype=torch.uint8)
    with seeded(1):
        assert not torch.equal(jitter_hsv(colors, 1.0), colors)
        changed = jitter_hsv(grey, 1.0).float()
    assert (changed.amax(0) - changed.amin(0)).max() <= 1
    assert (jitter_hsv(colors, 0.0).float() - colors.float()).abs().max() <= 1
