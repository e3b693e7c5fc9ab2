"""Training images, against timm's own transform."""

import io
import pickle
import random

import numpy as np
import pytest
import timm.data
import torch
from PIL import Image
from timm.data.transforms import RandomResizedCropAndInterpolation

from conftest import picture
from shvit.data.augmentation import TrainReader, draw_crop, posterize_to_black
from shvit.data.decode import BadImage, decode
from shvit.data.loader import seeded
from shvit.data.transforms import MARGIN

PAPER = "rand-m9-mstd0.5-inc1"


def jpeg(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def timms_training(reader):
    return timm.data.create_transform(
        reader.image_size,
        is_training=True,
        scale=reader.crop_scale,
        hflip=reader.flip,
        color_jitter=reader.color_jitter,
        auto_augment=reader.rand_augment,
        interpolation=reader.interpolation,
        use_prefetcher=True,
    )


def training_difference(source, reader, seed):
    """Mean and greatest, in levels of 255, with the same random choices."""
    with seeded(seed):
        fast = reader(source)
    with seeded(seed):
        exact = timms_training(reader)(decode(source))
    assert fast.shape == exact.shape == (3, reader.image_size, reader.image_size)
    assert fast.dtype == torch.uint8
    levels = (fast.int() - exact.int()).abs().float()
    return float(levels.mean()), float(levels.max())


@pytest.mark.parametrize("size", [(64, 64), (8, 8), (90, 61), (1000, 40), (37, 300)])
@pytest.mark.parametrize("form", ["file", "array", "image"])
def test_training_pixels_are_those_of_timms_transform(size, form):
    image = picture(110, size=size)
    source = {"file": jpeg(image), "array": np.asarray(image), "image": image}[form]
    for seed in range(6):
        mean, most = training_difference(source, TrainReader(64), seed)
        assert mean < 0.3
        assert most <= 2


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_crops_and_randaugment_resample_as_asked(interpolation):
    reader = TrainReader(64, interpolation=interpolation, rand_augment=PAPER)
    crop, _, augment = timms_training(reader).transforms[:3]
    assert crop.interpolation.value == interpolation
    assert [change.hparams for change in reader.changes[0].ops] == [change.hparams for change in augment.ops]
    assert {change.kwargs["resample"] for change in reader.changes[0].ops} == {Image.Resampling[interpolation.upper()]}
    image = picture(110, size=(90, 61))
    for seed in range(6):
        mean, most = training_difference(image, TrainReader(64, interpolation=interpolation), seed)
        assert mean < 0.3
        assert most <= 2


def test_grey_arrays_are_read_for_training():
    digit = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    mean, most = training_difference(digit, TrainReader(32, crop_scale=(0.35, 1.0)), 1)
    assert mean < 0.3
    assert most <= 2


@pytest.mark.parametrize("reader", [TrainReader(64, flip=0.0), TrainReader(64, flip=1.0)], ids=["never", "always"])
def test_mirroring_is_as_often_as_asked(reader):
    ramp = np.linspace(0, 255, 100, dtype=np.uint8)[None].repeat(80, 0)
    for seed in range(5):
        with seeded(seed):
            tensor = reader(ramp).float()
        assert (tensor[..., 0].mean() > tensor[..., -1].mean()) == (reader.flip == 1.0)


@pytest.mark.parametrize("reader", [TrainReader(48, rand_augment=PAPER), TrainReader(48, color_jitter=0.4)])
def test_training_changes_are_timms(reader):
    """Not so pixel by pixel: equalize and the like make much of one level."""
    image = Image.fromarray(np.asarray(picture(110, size=(7, 9)).resize((120, 90), Image.Resampling.BICUBIC)))
    means = [training_difference(image, reader, seed)[0] for seed in range(24)]
    assert sorted(means)[20] < 1
    assert max(means) < 4
    unchanged = TrainReader(48)
    with seeded(3):
        one = reader(image)
    with seeded(3):
        assert not torch.equal(one, unchanged(image))


def test_posterizing_to_no_bits_is_black():
    assert np.asarray(posterize_to_black(picture(110), 0)).max() == 0
    assert np.asarray(posterize_to_black(picture(110), 8)).max() > 0
    assert posterize_to_black in {change.aug_fn for change in TrainReader(32, rand_augment=PAPER).changes[0].ops}


@pytest.mark.parametrize("size", [(375, 500), (160, 160), (40, 400)])
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.35, 1.0)])
def test_crops_are_drawn_as_timm_draws_them(size, scale):
    timms = RandomResizedCropAndInterpolation(64, scale)
    image = Image.new("L", size[::-1])
    random.seed(1)
    expected = [timms.get_params(image, timms.scale, timms.ratio) for _ in range(200)]
    random.seed(1)
    boxes = [draw_crop(*size, scale) for _ in range(200)]
    assert boxes == expected
    shares = [box.height * box.width / (size[0] * size[1]) for box in boxes]
    if max(size) < 2 * min(size):
        assert min(shares) > scale[0] - 0.01
        assert abs(np.mean(shares) - np.mean(scale)) < 0.1
        assert 0.74 < min(box.width / box.height for box in boxes) < 0.85
        assert 1.2 < max(box.width / box.height for box in boxes) < 1.35


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (1, 50), (50, 1)])
def test_crops_of_the_tiniest_images_have_pixels(size):
    for seed in range(30):
        random.seed(seed)
        box = draw_crop(*size, (0.08, 1.0))
        assert 0 <= box.top < box.top + box.height <= size[0]
        assert 0 <= box.left < box.left + box.width <= size[1]
        assert TrainReader(32)(np.full(size, 9, np.uint8)).unique().tolist() == [9]


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_training_images_decoded_at_a_part_of_their_size(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    smooth = picture(110, size=(9, 12)).resize((1200, 900), Image.Resampling.BICUBIC)
    smooth.paste((250, 10, 10), (0, 0, 600, 450))
    data = jpeg(smooth, quality=92, exif=exif)
    for seed in range(8):
        mean, _ = training_difference(data, TrainReader(48), seed)
        assert mean < 2  # edges that lie between the smaller image's pixels; it would be 40 and more the wrong way up


def test_training_decodes_no_smaller_than_its_result():
    """A part of 127 pixels at half its size would have one pixel less than the result."""
    noise = jpeg(picture(128, size=(127, 127)), quality=100, subsampling=0)
    with seeded(0):
        exact = TrainReader(64, crop_scale=(1.0, 1.0))(noise)
    with seeded(0):
        assert torch.equal(TrainReader(64, crop_scale=(1.0, 1.0))(np.asarray(decode(noise))), exact)


@pytest.mark.parametrize("data", [b"", b"hello", jpeg(picture(110, size=(64, 64)))[:900]], ids=["empty", "text", "cut"])
def test_bad_training_images(data):
    with pytest.raises(BadImage) as reason:
        TrainReader(32)(data)
    with pytest.raises(BadImage) as expected:
        decode(data)
    assert str(reason.value) == str(expected.value)


def test_training_images_beyond_the_limit():
    with pytest.raises(BadImage, match="64x64 is more than the limit of 100 pixels"):
        TrainReader(32, max_pixels=100)(jpeg(picture(110, size=(64, 64))))


def test_readers_go_to_workers_as_they_are():
    reader = TrainReader(32, rand_augment=PAPER)
    with seeded(4):
        expected = reader(picture(110))
    with seeded(4):
        assert torch.equal(pickle.loads(pickle.dumps(reader))(picture(110)), expected)


def long_image(height, width):
    """Gray, with a red left end and a blue right end, a tenth of the width each."""
    image = np.full((height, width, 3), 90, np.uint8)
    end = max(1, width // 10)
    image[:, :end], image[:, -end:] = (250, 0, 0), (0, 0, 250)
    return image


@pytest.mark.parametrize("size", [(60, 240), (61, 90), (20, 400)])
def test_letterbox_shows_both_ends_in_every_training_image(size):
    image, tall = long_image(*size), long_image(*size).transpose(1, 0, 2)
    for seed in range(30):
        for source in (image, tall, jpeg(Image.fromarray(image), quality=95)):
            with seeded(seed):
                red, _, blue = TrainReader(96, (0.3, 1.0), color_jitter=0.4, fit="letterbox")(source).float()
            assert (red - blue).amax() > 40 < (blue - red).amax()


def test_letterbox_keeps_every_row_and_column():
    """The image's area, aspect ratio and position vary, but all of it is on the square and the rest is margin."""
    image, found = np.full((60, 150, 3), 255, np.uint8), []
    for seed in range(300):
        with seeded(seed):
            tensor = TrainReader(80, (0.25, 1.0), fit="letterbox")(image)
        shown = (tensor == 255).all(0)
        rows, columns = shown.any(1).nonzero()[:, 0], shown.any(0).nonzero()[:, 0]
        assert shown.sum() == len(rows) * len(columns)  # one rectangle
        assert set(map(tuple, tensor[:, ~shown].T.tolist())) <= {MARGIN}
        found.append((len(rows), len(columns), int(rows[0]), int(columns[0])))
    heights, widths, tops, lefts = map(np.array, zip(*found, strict=True))
    areas, aspects = heights * widths / (32 * 80), widths / heights / 2.5
    assert areas.min() > 0.23
    assert areas.max() > 0.9
    assert 0.5 < areas.mean() < 0.7
    assert 0.7 < aspects.min() < 0.85
    assert 1.18 < aspects.max() < 1.4
    assert tops.min() == 0 == lefts.min()
    assert max(tops + heights) == 80 == max(lefts + widths)


def test_letterbox_without_random_sizes_is_the_largest_size():
    for seed in range(5):
        with seeded(seed):
            tensor = TrainReader(64, (1.0, 1.0), fit="letterbox")(np.full((20, 80), 255, np.uint8))
        assert (tensor == 255).all(0).sum() >= 15 * 63


def test_letterbox_resizes_the_drawn_image_as_torchvision_does():
    image = picture(110, size=(90, 61))
    for seed in range(6):
        with seeded(seed):
            tensor = TrainReader(64, flip=0.0, fit="letterbox", interpolation="bicubic")(image)
        inside = (tensor != torch.tensor(MARGIN)[:, None, None]).any(0)
        rows, columns = (inside.any(axis).nonzero()[:, 0] for axis in (1, 0))
        area = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        shown = tensor[:, *area].int()
        expected = image.resize((shown.shape[2], shown.shape[1]), Image.Resampling.BICUBIC)
        assert (shown - torch.from_numpy(np.array(expected)).permute(2, 0, 1).int()).abs().max() <= 2


def test_randaugment_leaves_out_what_moves_a_letterboxed_image():
    def names(fit):
        return {change.name for change in TrainReader(32, rand_augment=PAPER, fit=fit).changes[0].ops}

    moving = {"Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"}
    assert names("crop") - names("letterbox") == moving
    assert names("stretch") == names("crop")


def test_stretched_crops_have_the_aspect_ratio_of_the_image():
    random.seed(1)
    for height, width in ((100, 400), (300, 60)):
        boxes = [draw_crop(height, width, (0.2, 1.0), width / height) for _ in range(300)]
        aspects = [box.width / box.height / (width / height) for box in boxes]
        areas = [box.width * box.height / (height * width) for box in boxes]
        assert 0.72 < min(aspects) < 0.85
        assert 1.2 < max(aspects) < 1.38
        assert 0.18 < min(areas) < 0.3
        assert max(areas) > 0.8
    ramp = np.linspace(0, 255, 400, dtype=np.uint8)[None].repeat(100, 0)
    seen = []
    for seed in range(30):
        with seeded(seed):
            tensor = TrainReader(64, (0.3, 1.0), fit="stretch")(ramp).float()
        seen.append(float(tensor.max() - tensor.min()) / 255)
    assert min(seen) > 0.4  # square crops show at most a quarter of the width
    assert max(seen) > 0.85


@pytest.mark.parametrize("fit", ["letterbox", "stretch"])
@pytest.mark.parametrize("size", [(1, 1), (2, 2), (1, 50), (50, 1), (1, 3000), (3000, 1)])
def test_training_images_of_odd_sizes(size, fit):
    for seed in range(8):
        with seeded(seed):
            tensor = TrainReader(32, rand_augment=PAPER, fit=fit)(np.full(size, 9, np.uint8))
        assert tensor.shape == (3, 32, 32)
        with seeded(seed):
            plain = TrainReader(32, fit=fit)(np.full(size, 9, np.uint8))
        assert (plain == 9).all(0).any()
