"""Objects stay on what they are of, however an image is made to fit."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import SHARED, picture
from shvit.data.coco import NOTHING, CocoSplit, Objects, open_coco
from shvit.data.decode import BadImage
from shvit.data.letterbox import (
    DetectionEvalReader,
    Letterbox,
    check_fit,
    fitted,
    rasterize,
    read_whole,
    targets_of,
)
from shvit.data.loader import Loader, seeded
from shvit.data.object_augmentation import DetectionTrainReader
from shvit.data.transforms import Preprocess
from shvit.errors import InputError

WHOLE = Preprocess(64, fit="whole")
SHORTER = Preprocess(64, fit="shorter")


def scenes(tmp_path, size=(60, 90), box=(20, 10, 50, 40), crowd=False, segment=None, stated=None) -> CocoSplit:
    """One image, black but for one white box."""
    pixels = np.zeros((*size, 3), np.uint8)
    left, top, right, bottom = box
    pixels[top:bottom, left:right] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    polygon = (np.array([left, top, right, top, right, bottom, left, bottom], float),)
    objects = Objects(
        np.array([box], np.float32), np.array([1]), np.array([crowd]), np.array([900], np.float32), [segment or polygon]
    )
    return CocoSplit([tmp_path / "a.png"], [7], np.array([stated or size]), [objects])


def white_box(image: torch.Tensor, margin_is_dark: bool = True) -> list[int]:
    rows, columns = (image.float().mean(0) > 200).nonzero(as_tuple=True)
    return [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]


@pytest.mark.parametrize(("preprocess", "size"), [(WHOLE, (64, 64)), (SHORTER, (64, 128))])
def test_evaluation_sees_the_whole_image(tmp_path, preprocess, size):
    image, truth = DetectionEvalReader(preprocess)(scenes(tmp_path), 0)
    assert image.shape[1:] == size
    seen = torch.from_numpy(truth.letterbox.to_input(truth.objects.boxes))
    assert (seen[0] - torch.tensor(white_box(image))).abs().max() < 1
    torch.testing.assert_close(truth.letterbox.to_image(seen), torch.from_numpy(truth.objects.boxes))
    assert truth.image_id == 7


def test_boxes_of_the_margin_are_cut_off():
    frame = Letterbox(60, 90, 0.5, 0.5)
    boxes = torch.tensor([[-5.0, 2, 50, 40]])
    assert frame.to_image(boxes).tolist() == [[0, 4, 90, 60]]


@pytest.mark.parametrize("preprocess", [WHOLE, SHORTER])
@pytest.mark.parametrize("masks", [False, True])
def test_marks_stay_on_their_objects(tmp_path, preprocess, masks):
    read = DetectionTrainReader(preprocess, (0.6, 1.5), flip=0.5, masks=masks)
    given, seen = scenes(tmp_path), 0
    for view in range(40):
        with seeded(0, view):
            image, marks = read(given, 0)
        for box in marks.boxes:
            assert np.abs(box - np.array(white_box(image))).max() <= 1.5
            seen += 1
        if masks:
            assert marks.masks.shape == (len(marks.boxes), *image.shape[1:])
            bright = (image.float().mean(0) > 128).to(torch.uint8).numpy()
            for mask in marks.masks:
                assert (mask != bright).sum() <= 0.15 * mask.sum() + 10
    assert seen > 20


def test_what_is_hardly_seen_is_not_learnt():
    objects = Objects(
        np.array([[0, 0, 40, 40], [50, 50, 60, 60], [62, 0, 90, 10]], np.float32),
        np.array([0, 1, 2]), np.zeros(3, bool), np.ones(3, np.float32), [None] * 3,
    )  # fmt: skip
    marks = targets_of(objects, Letterbox(90, 90, 1, 1, -30, 0), (64, 64), (0, 0, 60, 64), masks=False)
    assert marks.labels.tolist() == [0, 1]
    assert marks.boxes.tolist() == [[0, 0, 40, 10], [50, 20, 60, 30]]


@pytest.mark.parametrize("size", [(50, 77), (77, 50), (60, 90)])
@pytest.mark.parametrize("preprocess", [WHOLE, SHORTER])
@pytest.mark.parametrize("crowd", [False, True])
def test_nothing_reaches_into_the_margin(tmp_path, size, preprocess, crowd):
    """An object as large as the image, whose polygon reaches beyond it, ends where the image does."""
    beyond = (np.array([-9, -9, 99, -9, 99, 99, -9, 99], float),)
    given = scenes(tmp_path, size, (0, 0, size[1], size[0]), crowd, beyond)
    read, margins = DetectionTrainReader(preprocess, (0.6, 2.0), masks=True), 0
    for view in range(30):
        with seeded(0, view):
            image, marks = read(given, 0)
        left, top, right, bottom = white_box(image)
        [box] = marks.crowds if crowd else marks.boxes
        assert box.tolist() == pytest.approx([left, top, right, bottom], abs=1e-4)
        margins += (right - left, bottom - top) != (image.shape[2], image.shape[1])
        for mask in marks.masks:
            assert mask.sum() == mask[top:bottom, left:right].sum() == (right - left) * (bottom - top)
    assert margins > 5


def test_crowds_and_objects_without_masks_are_set_apart(tmp_path):
    given = scenes(tmp_path, crowd=True)
    _, marks = DetectionTrainReader(WHOLE)(given, 0)
    assert (len(marks.boxes), len(marks.crowds)) == (0, 1)
    bare = replace(given.objects[0], crowd=np.array([False]), segments=[None])
    frame = Letterbox(60, 90, 1, 1)
    assert len(targets_of(bare, frame, (64, 128), (0, 0, 60, 90), masks=False).boxes) == 1
    assert len(targets_of(bare, frame, (64, 128), (0, 0, 60, 90), masks=True).crowds) == 1


def test_run_lengths_and_polygons_give_the_same_mask():
    polygon = (np.array([8, 4, 40, 4, 40, 28, 8, 28], float),)
    drawn = np.zeros((48, 64), np.uint8)
    drawn[4:28, 8:40] = 1
    ends = np.flatnonzero(np.diff(np.concatenate([[0], drawn.T.flatten(), [0]])))
    counts = np.diff(np.concatenate([[0], ends, [drawn.size]])).tolist()
    for frame in (Letterbox(48, 64, 1, 1), Letterbox(48, 64, 2, 2, -10, -20), Letterbox(48, 64, 0.5, 0.5, 6, 3)):
        one = rasterize(polygon, frame, (48, 64))
        two = rasterize({"size": [48, 64], "counts": counts}, frame, (48, 64))
        assert one.sum() > 50
        assert (one != two).sum() <= 0.06 * one.sum()


@pytest.mark.parametrize(("stated", "turned"), [((40, 64), False), ((64, 40), True)])
def test_annotations_say_whether_exif_counts(tmp_path, stated, turned):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(90, size=(40, 64)).save(tmp_path / "a.jpg", exif=exif)
    one = CocoSplit([tmp_path / "a.jpg"], [1], np.array([stated]), [NOTHING])
    _, truth = DetectionEvalReader(WHOLE)(one, 0)
    assert (truth.letterbox.height, truth.letterbox.width) == stated


def test_images_of_another_size_are_bad(tmp_path):
    given = scenes(tmp_path, stated=(61, 90))
    with pytest.raises(BadImage, match="is 90x60, but its annotations are for 90x61"):
        DetectionEvalReader(WHOLE)(given, 0)
    [batch] = Loader(given, DetectionEvalReader(WHOLE), 4)
    assert batch.bad == {0: "is 90x60, but its annotations are for 90x61"}


@pytest.mark.parametrize(
    ("size", "preprocess", "expected"),
    [
        ((480, 640), Preprocess(320, fit="whole"), (240, 320)),
        ((480, 640), Preprocess(800, fit="shorter"), (800, 1067)),
        ((300, 1200), Preprocess(800, fit="shorter"), (333, 1333)),
    ],
)
def test_fitted(size, preprocess, expected):
    assert fitted(*size, preprocess) == expected
    assert max(expected) <= preprocess.input_size
    assert preprocess.input_size % 64 == 0


def test_images_of_many_sizes_are_one_batch(tmp_path):
    wide, tall = io.BytesIO(), io.BytesIO()
    picture(90, size=(40, 80)).save(wide, "png")
    picture(90, size=(80, 40)).save(tall, "png")
    images = [read_whole(file.getvalue(), SHORTER)[0] for file in (wide, tall)]
    assert [tuple(image.shape) for image in images] == [(3, 64, 128), (3, 128, 64)]
    from shvit.data.loader import collate

    batch = collate([(image, "target", (0, place, 0)) for place, image in enumerate(images)])
    assert batch.images.shape == (2, 3, 128, 128)
    assert batch.images[0, :, -1, -1].tolist() == [124, 116, 104]
    assert batch.filled(3).targets == ["target"] * 3


def test_what_a_detector_cannot_take():
    with pytest.raises(InputError, match="multiple of 64 pixels, got 100"):
        check_fit(Preprocess(100, fit="whole"))
    with pytest.raises(InputError, match="fit must be 'whole' or 'shorter'"):
        check_fit(Preprocess(128))
    with pytest.raises(InputError, match="fit must be one of crop, letterbox, stretch, whole, shorter, got 'wide'"):
        Preprocess(128, fit="wide")


def test_real_annotations_fit_real_images():
    if not (SHARED / "coco421").is_dir():
        pytest.skip("the real photographs are not beside this checkout")
    val = open_coco(SHARED / "coco421").val
    read = DetectionTrainReader(Preprocess(128, fit="whole"), masks=True)
    for index in range(12):
        with seeded(0, index):
            image, marks = read(val, index)
        assert image.shape == (3, 128, 128)
        for box, mask in zip(marks.boxes, marks.masks, strict=True):
            rows, columns = mask.nonzero()
            if len(rows):
                drawn = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
                assert np.abs(drawn - box).max() < 6
                assert np.median(np.abs(drawn - box)) < 1.5
