"""The fast ways from file to tensor, against timm's own transforms."""

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from torchvision.transforms.v2 import InterpolationMode, Resize
from torchvision.transforms.v2.functional import center_crop, pil_to_tensor, resize

from conftest import memory_taken, picture
from shvit.data.decode import BadImage
from shvit.data.transforms import (
    MARGIN,
    SHRINK_UNTIL,
    EvalReader,
    Normalize,
    Preprocess,
    fast_eval_decoder,
    letterboxed,
)
from shvit.errors import InputError


def difference(source, preprocess):
    """Mean and greatest, in levels of 255."""
    fast, exact = fast_eval_decoder(preprocess)(source), EvalReader(preprocess)(source)
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


@pytest.mark.parametrize("size", [(400, 30), (7, 150), (2, 333), (1, 200)])
@pytest.mark.parametrize(
    ("crop", "interpolation"), [(0.875, "bicubic"), (1.0, "lanczos"), (0.9, "nearest"), (0.1, "bilinear")]
)
def test_long_images_are_cropped_first_and_keep_their_pixels(size, crop, interpolation):
    """They are those of torchvision's own resizing and cropping."""
    preprocess, image = Preprocess(32, crop, interpolation), picture(100, size=size)
    shorter, method = math.floor(32 / crop), InterpolationMode(interpolation)
    expected = pil_to_tensor(center_crop(resize(image, [shorter], method), [32])).int()
    for read in (EvalReader(preprocess), fast_eval_decoder(preprocess)):
        assert (read(image).int() - expected).abs().max() <= 1


THIN = """
import torch
from shvit.data.augmentation import TrainReader
from shvit.data.letterbox import read_whole
from shvit.data.loader import seeded
from shvit.data.augmentation import TrainReader
from shvit.data.transforms import EvalReader, Preprocess, fast_eval_decoder
fits = "crop", "letterbox", "stretch"
seen = [Preprocess(256, fit=fit) for fit in fits]
readers = [*map(EvalReader, seen), *map(fast_eval_decoder, seen), fast_eval_decoder(Preprocess(256, 0.1))]
readers += [TrainReader(256, rand_augment="rand-m9-mstd0.5-inc1", fit=fit) for fit in fits]
whole, shorter = (Preprocess(256, fit=fit) for fit in ("whole", "shorter"))
readers += [lambda path: read_whole(path, whole)[0], lambda path: read_whole(path, shorter)[0]]
print([tuple(read(path).shape) for path in sys.argv[1:] for read in readers])
"""


def test_thin_images_take_bounded_memory(tmp_path):
    """In prediction, evaluation, training, and as detectors see them."""
    for number, size in enumerate([(2, 20_000), (1, 1_000_000), (1_000_000, 1)]):
        Image.new("L", size, 90).save(tmp_path / f"{number}.png")
    Image.new("RGB", (65_000, 1), (90, 90, 90)).save(tmp_path / "4.jpg")
    taken, printed = memory_taken(THIN, *sorted(tmp_path.iterdir()))
    assert printed.count("(3, 256, 256)") == 4 * 11
    assert taken < 250


@pytest.mark.parametrize("size", [(64, 64), (65, 200), (1000, 40), (37, 38), (500, 333)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_stretched_images_are_whole_and_resized_to_the_square(size, interpolation):
    preprocess = Preprocess(64, 0.875, interpolation, fit="stretch")
    image = picture(100, size=size)
    resize = Resize((64, 64), InterpolationMode(interpolation))
    expected = torch.from_numpy(np.array(resize(image))).permute(2, 0, 1)
    assert torch.equal(EvalReader(preprocess)(image), expected)
    for source in (image, jpeg(image)):
        mean, most = difference(source, preprocess)
        assert mean < 0.3
        assert most <= 2


def test_large_photographs_are_stretched_fast_to_nearly_the_same_pixels():
    smooth = picture(110, size=(9, 12)).resize((1600, 900), Image.Resampling.BICUBIC)
    assert difference(jpeg(smooth), Preprocess(64, fit="stretch"))[0] < 1


def boxed(image, side, height, width, method):
    """The image resized to this size in the middle of a square, by Pillow alone."""
    square = Image.new("RGB", (side, side), MARGIN)
    square.paste(image.resize((width, height), method), ((side - width) // 2, (side - height) // 2))
    return torch.from_numpy(np.array(square)).permute(2, 0, 1)


@pytest.mark.parametrize(
    ("size", "resized"),
    [
        ((64, 64), (64, 64)),
        ((65, 200), (21, 64)),
        ((200, 65), (64, 21)),
        ((1000, 40), (64, 3)),
        ((37, 38), (62, 64)),
        ((3, 128), (2, 64)),  # 1.5 and 2.5 are rounded to the even 2
        ((5, 128), (2, 64)),
        ((12, 5), (64, 27)),
        ((1, 200), (1, 64)),
        ((200, 1), (64, 1)),
        ((1, 1), (64, 64)),
        ((500, 333), (64, 43)),
    ],
)
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_letterboxed_images_are_whole_and_padded_evenly(size, resized, interpolation):
    """`crop` has no effect. An odd margin has its additional pixel at the bottom or at the right."""
    preprocess, image = Preprocess(64, 0.875, interpolation, fit="letterbox"), picture(100, size=size)
    expected = boxed(image, 64, *resized, Image.Resampling[interpolation.upper()])
    assert torch.equal(EvalReader(preprocess)(image), expected)
    for source in (image, jpeg(image)):
        mean, most = difference(source, preprocess)
        assert mean < 0.3
        assert most <= 2


@pytest.mark.parametrize("interpolation", ["nearest", "lanczos"])
def test_every_interpolation_is_letterboxed(interpolation):
    image, preprocess = picture(100, size=(90, 60)), Preprocess(33, 0.5, interpolation, fit="letterbox")
    expected = boxed(image, 33, 33, 22, Image.Resampling[interpolation.upper()])
    for read in (EvalReader(preprocess), fast_eval_decoder(preprocess)):
        assert torch.equal(read(image), expected)


@pytest.mark.parametrize("size", [(64, 64), (65, 200), (200, 65), (37, 38), (90, 61)])
def test_letterboxed_pixels_are_those_of_timms_border_mode(size):
    image, preprocess = picture(100, size=size), Preprocess(64, fit="letterbox")
    timms = create_transform(64, interpolation="bicubic", crop_pct=1.0, crop_mode="border", use_prefetcher=True)
    assert torch.equal(EvalReader(preprocess)(image), timms(image))


def test_letterboxed_sides_never_exceed_the_square_or_vanish():
    random = np.random.default_rng(0)
    for height, width, side in random.integers(1, [1500, 1500, 600], (5000, 3)).tolist():
        new = letterboxed(height, width, side)
        assert max(new) == side
        exact = side * min(height, width) / max(height, width)
        assert min(new) >= 1
        assert abs(min(new) - exact) <= 0.5 or min(new) == 1 > exact


@pytest.mark.parametrize("fit", ["letterbox", "stretch"])
def test_whole_images_show_both_ends(fit):
    """A red and a blue end, a tenth of a long image each, in the readers that ignore and that use reduced JPEGs."""
    image = Image.new("RGB", (2000, 250), "gray")
    image.paste("red", (0, 0, 200, 250))
    image.paste("blue", (1800, 0, 2000, 250))
    for source in (image, jpeg(image), jpeg(image.transpose(Image.Transpose.ROTATE_90))):
        for read in (EvalReader(Preprocess(64, fit=fit)), fast_eval_decoder(Preprocess(64, fit=fit))):
            red, _, blue = read(source).float()
            assert (red - blue).amax() > 200 < (blue - red).amax()


def test_large_photographs_are_letterboxed_fast_to_nearly_the_same_pixels():
    smooth = picture(110, size=(9, 12)).resize((1603, 902), Image.Resampling.BICUBIC)
    assert difference(jpeg(smooth), Preprocess(64, fit="letterbox"))[0] < 1


def test_fits_are_read_under_their_old_names():
    old = Preprocess(64, fit="stretch").to_dict() | {"fit": "squash"}
    assert Preprocess.from_dict(old) == Preprocess(64, fit="stretch")
    del old["fit"]
    assert Preprocess.from_dict(old) == Preprocess(64)
    for wrong in ("squish", None, []):
        with pytest.raises(InputError):
            Preprocess.from_dict(old | {"fit": wrong})


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


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_normalised_images(memory_format):
    preprocess = Preprocess()
    images = torch.randint(0, 256, (3, 3, 32, 40), dtype=torch.uint8).to(memory_format=memory_format)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (preprocess.mean, preprocess.std))
    normalised = Normalize(preprocess)(images)
    torch.testing.assert_close(normalised, (images / 255 - mean) / std)
    assert normalised.is_contiguous(memory_format=torch.channels_last)
