"""Warped images are where timm's are."""

import random

import numpy as np
import pytest
from PIL import Image, ImageFilter
from timm.data import auto_augment

from conftest import picture
from shvit.data.opencv import MATRICES, OPENCV, warp

FILL = (124, 116, 104)
AMOUNTS = {"rotate": 27.0, "shear_x": 0.25, "shear_y": -0.3, "translate_x_rel": 0.13, "translate_y_rel": -0.21}


@pytest.mark.skipif(not OPENCV, reason="OpenCV is not installed")
@pytest.mark.parametrize("resample", [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC], ids=["linear", "cubic"])
@pytest.mark.parametrize("operation", MATRICES, ids=lambda operation: operation.__name__)
@pytest.mark.parametrize("size", [(80, 60), (64, 64)])
def test_warps_are_timms(operation, resample, size):
    image = picture(120, 3, size).filter(ImageFilter.GaussianBlur(2))
    image.paste((250, 20, 90), (20, 15, 45, 40))  # edges say where it went
    amount = AMOUNTS[operation.__name__]
    theirs = operation(image, amount, fillcolor=FILL, resample=resample)
    ours = warp(operation, image, amount, fillcolor=FILL, resample=resample)
    assert ours.size == theirs.size
    apart = np.abs(np.asarray(ours, np.int16) - np.asarray(theirs, np.int16))
    still = np.abs(np.asarray(ours, np.int16) - np.asarray(image, np.int16))
    assert apart.mean() < 2 < still.mean()
    assert (np.asarray(ours)[0, 0] == FILL).all() == (np.asarray(theirs)[0, 0] == FILL).all()


@pytest.mark.skipif(not OPENCV, reason="OpenCV is not installed")
def test_the_way_between_pixels_is_drawn_as_timm_draws_it():
    image, ways = picture(120), (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)
    for seed in range(4):
        random.seed(seed)
        drawn = warp(auto_augment.rotate, image, 13.0, fillcolor=FILL, resample=ways)
        state = random.getstate()
        random.seed(seed)
        way = random.choice(ways)
        assert random.getstate() == state
        assert drawn == warp(auto_augment.rotate, image, 13.0, fillcolor=FILL, resample=way)
