"""The fast ways from file to tensor, against timm's own transforms."""

import io
import math
import pickle
import random

import numpy as np
import pytest
import timm.data
import torch
from PIL import Image
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision.transforms.v2 import InterpolationMode, Resize
from torchvision.transforms.v2.functional import center_crop, pil_to_tensor, resize

from conftest import memory_taken, picture
from shvit.data.decode import BadImage, decode
from shvit.data.loader import seeded
from shvit.data.transforms import (
    SHRINK_UNTIL,
    EvalReader,
    Normalize,
    Preprocess,
    TrainReader,
    draw_crop,
    fast_eval_decoder,
    posterize_to_black,
)

PAPER = "rand-m9-mstd0.5-inc1"


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
from shvit.data.letterbox import read_whole
from shvit.data.loader import seeded
from shvit.data.transforms import EvalReader, Preprocess, TrainReader, fast_eval_decoder
crop, squash, whole, shorter = (Preprocess(256, fit=fit) for fit in ("crop", "squash", "whole", "shorter"))
readers = [*(EvalReader(one) for one in (crop, squash)), *map(fast_eval_decoder, (crop, squash))]
readers += [TrainReader(256, rand_augment="rand-m9-mstd0.5-inc1"), lambda path: read_whole(path, whole)[0]]
readers += [lambda path: read_whole(path, shorter)[0], fast_eval_decoder(Preprocess(256, 0.1))]
print([tuple(read(path).shape) for path in sys.argv[1:] for read in readers])
"""


def test_thin_images_take_bounded_memory(tmp_path):
    """In prediction, evaluation, training, and as detectors see them."""
    for number, size in enumerate([(2, 20_000), (1, 1_000_000), (1_000_000, 1)]):
        Image.new("L", size, 90).save(tmp_path / f"{number}.png")
    Image.new("RGB", (65_000, 1), (90, 90, 90)).save(tmp_path / "4.jpg")
    taken, printed = memory_taken(THIN, *sorted(tmp_path.iterdir()))
    assert printed.count("(3, 256, 256)") == 4 * 7
    assert taken < 250


@pytest.mark.parametrize("size", [(64, 64), (65, 200), (1000, 40), (37, 38), (500, 333)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_squashed_images_are_whole_and_resized_to_the_square(size, interpolation):
    preprocess = Preprocess(64, 0.875, interpolation, fit="squash")
    image = picture(100, size=size)
    resize = Resize((64, 64), InterpolationMode(interpolation))
    expected = torch.from_numpy(np.array(resize(image))).permute(2, 0, 1)
    assert torch.equal(EvalReader(preprocess)(image), expected)
    for source in (image, jpeg(image)):
        mean, most = difference(source, preprocess)
        assert mean < 0.3
        assert most <= 2


def test_large_photographs_are_squashed_fast_to_nearly_the_same_pixels():
    smooth = picture(110, size=(9, 12)).resize((1600, 900), Image.Resampling.BICUBIC)
    assert difference(jpeg(smooth), Preprocess(64, fit="squash"))[0] < 1


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


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_normalised_images(memory_format):
    preprocess = Preprocess()
    images = torch.randint(0, 256, (3, 3, 32, 40), dtype=torch.uint8).to(memory_format=memory_format)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (preprocess.mean, preprocess.std))
    normalised = Normalize(preprocess)(images)
    torch.testing.assert_close(normalised, (images / 255 - mean) / std)
    assert normalised.is_contiguous(memory_format=torch.channels_last)
