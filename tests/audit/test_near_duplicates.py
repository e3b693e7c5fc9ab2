"""Planted copies of photographs are found, and nothing else."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_images

from shvit.audit.near_duplicates import Pairs, find_pairs
from shvit.audit.views import ViewReader


def tiles() -> list[Image.Image]:
    """Different parts of two photographs, 96x96 pixels, without those that show only sky."""
    parts = [
        photo[top : top + 96, left : left + 96]
        for photo in load_sample_images().images
        for top in range(0, 320, 96)
        for left in range(0, 540, 96)
    ]
    return [Image.fromarray(part) for part in parts if part.std() > 25]


def recompressed(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


def thumbnail(image: Image.Image) -> np.ndarray:
    _, (small, size) = ViewReader(None)(np.asarray(image))
    assert size == (image.height, image.width)
    return small


CHANGES = {
    "recompressed": lambda image: recompressed(image, 30),
    "half": lambda image: image.resize((48, 48), Image.Resampling.BICUBIC),
    "double": lambda image: image.resize((192, 192), Image.Resampling.BILINEAR),
    "other aspect ratio": lambda image: image.resize((96, 120)),
    "mirrored": ImageOps.mirror,
    "mirrored and recompressed": lambda image: recompressed(ImageOps.mirror(image), 40),
}


@pytest.mark.parametrize("change", CHANGES)
def test_copies_are_found_and_nothing_else(change):
    images = tiles()
    thumbnails = np.stack([thumbnail(image) for image in [*images, *map(CHANGES[change], images)]])
    pairs = find_pairs(thumbnails, np.ones(len(thumbnails), bool))
    count = len(images)
    found = set(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))
    assert found == {(index, index + count) for index in range(count)}
    assert (pairs.mirrored == change.startswith("mirrored")).all()


def test_pairs_across_tiles_of_the_comparison(monkeypatch):
    monkeypatch.setattr("shvit.audit.near_duplicates.TILE", 5)
    monkeypatch.setattr("shvit.audit.near_duplicates.VERIFIED", 3)
    one = np.stack([thumbnail(image) for image in tiles()])
    thumbnails, usable = np.concatenate([one, one, one]), np.ones(3 * len(one), bool)
    usable[1] = False
    pairs = find_pairs(thumbnails, usable)
    count = len(one)
    expected = {(i + a * count, i + b * count) for i in range(count) for a, b in ((0, 1), (0, 2), (1, 2))}
    assert set(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)) == {
        pair for pair in expected if 1 not in pair
    }
    assert (pairs.differences == 0).all()


def test_two_images_alone_and_uniform_images():
    gray = np.full((3, 32, 32, 3), 90, np.uint8)
    gray[1] += 2  # uniform images look alike, but are no copies of a picture
    photo = thumbnail(tiles()[0])[None]
    pairs = find_pairs(np.concatenate([gray, photo, photo]), np.ones(5, bool))
    assert (pairs.first.tolist(), pairs.second.tolist()) == ([3], [4])
    assert not len(find_pairs(gray, np.ones(3, bool)).first)
    colors = np.tile(np.array([[[90, 0, 0]], [[0, 46, 0]]], np.uint8), (16, 32, 1))[None]  # equally bright stripes
    assert not len(find_pairs(np.concatenate([colors, photo]), np.ones(2, bool)).first)


def test_groups_are_connected_images():
    pairs = Pairs(np.array([0, 2]), np.array([2, 5]), np.zeros(2, np.float32), np.zeros(2, bool))
    groups = pairs.groups(6)
    assert groups[0] == groups[2] == groups[5]
    assert len(set(groups[[0, 1, 3, 4]].tolist())) == 4
