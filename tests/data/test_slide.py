"""Rows that slide, against Pillow's own transforms as timm calls them."""

import random

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import picture
from shvit.data.slide import FASTER, slide

FILL = (124, 116, 104)


@pytest.mark.parametrize("timms", FASTER, ids=lambda function: function.__name__)
@pytest.mark.parametrize("way", [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC])
@pytest.mark.parametrize("amount", [0.28, -0.3, 0.011, 0.0, 1.5])
def test_pixels_are_timms(timms, way, amount):
    image = picture(120, size=(40, 67))
    image.paste((255, 255, 255), (0, 0, 5, 5))
    image.paste((0, 0, 0), (60, 30, 67, 40))
    theirs, ours = (
        np.asarray(function(image, amount, fillcolor=FILL, resample=(way,))).astype(int)
        for function in (timms, FASTER[timms])
    )
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= 1
    assert (ours != theirs).mean() < 0.1  # where the exact value is a whole number, which Pillow does not round
    assert (ours == np.asarray(image)).all() == (amount == 0)


def test_one_of_the_ways_is_drawn_as_timm_does():
    image, both = picture(120), (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)
    [timms] = [function for function in FASTER if function.__name__ == "shear_x"]
    for seed in range(8):
        results = []
        for function in (timms, FASTER[timms]):
            random.seed(seed)
            results.append(np.asarray(function(image, 0.1, fillcolor=FILL, resample=both)).astype(int))
        assert np.abs(results[0] - results[1]).max() <= 1


def test_what_lies_outside_is_filled():
    result = slide(picture(120), torch.full((40,), 36.0), FILL, [Image.Resampling.BICUBIC])
    assert (np.asarray(result) == FILL).all()
