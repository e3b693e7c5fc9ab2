"""The fast way from file to tensor, against timm's own transform."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import picture
from shvit.data.decode import BadImage, decode
from shvit.data.transforms import SHRINK_UNTIL, Preprocess, eval_transform, fast_eval_decoder


def difference(source, preprocess):
    """Mean and greatest, in levels of 255."""
    fast, exact = fast_eval_decoder(preprocess)(source), eval_transform(preprocess)(decode(source))
    assert fast.shape == exact.shape == (3, preprocess.image_size, preprocess.image_size)
    assert fast.dtype == torch.uint8
    levels = (fast.int() - exact.int()).abs().float()
    return float(levels.mean()), float(levels.max())


def jpeg(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


@pytest.mark.parametrize("size", [(64, 64), (65, 200), (200, 65), (1000, 40), (37, 38), (224, 223)])
@pytest.mark.parametrize(("crop", "interpolation"), [(0.875, "bicubic"), (1.0, "bicubic"), (0.95, "bilinear")])
def test_pixels_are_those_of_timms_transform(size, crop, interpolation):
    for source in (picture(100, size=size), jpeg(picture(100, size=size))):
        mean, most = difference(source, Preprocess(64, crop, interpolation))
        assert mean < 0.3  # noise, which rounding between the two directions moves more than photographs
        assert most <= 2


@pytest.mark.parametrize("interpolation", ["nearest", "lanczos"])
def test_other_interpolations_are_timms_own(interpolation):
    assert difference(picture(100, size=(90, 60)), Preprocess(64, interpolation=interpolation)) == (0, 0)


def test_photographs(photos):
    differences = [difference(path, Preprocess()) for path in sorted(photos.iterdir())[::4]]
    assert np.mean([mean for mean, _ in differences]) < 0.01
    assert max(most for _, most in differences) <= 3


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("subsampling", [0, 2])
def test_large_photographs_decoded_at_a_part_of_their_size(photos, orientation, subsampling):
    preprocess = Preprocess(64)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.open(sorted(photos.iterdir())[1])
    least = 2 * SHRINK_UNTIL * 64 / 0.875
    scale = (least + 7) / min(image.size)
    large = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    mean, most = difference(jpeg(large, quality=92, subsampling=subsampling, exif=exif), preprocess)
    assert 0.05 < mean < 0.5
    assert most < 20


def test_bad_images():
    with pytest.raises(BadImage, match="no such file"):
        fast_eval_decoder(Preprocess())("nowhere.jpg")
