"""A COCO folder gives what its files say; whatever is amiss with single entries leaves these out, and is told."""

import json
import os
import re
from copy import deepcopy

import numpy as np
import pytest
import torch
from faster_coco_eval.core import mask
from PIL import Image

from conftest import COCO, POLYGON, SHARED, picture, write_coco
from shvit.data.coco import CocoSplit, open_coco
from shvit.data.folders import find_coco
from shvit.data.letterbox import DetectionEvalReader, run_lengths
from shvit.data.object_augmentation import DetectionTrainReader
from shvit.data.transforms import Preprocess
from shvit.errors import DataError


@pytest.mark.parametrize("images", ["{split}", "images/{split}", "images", "."])
def test_objects_are_what_the_file_says(tmp_path, images):
    source = open_coco(write_coco(tmp_path, images=images))
    assert (source.classes, source.categories) == (("cat", "tree"), (0, 7))
    assert source.warnings == ()
    for scenes in (source.train, source.val):
        assert [path.name for path in scenes.images] == ["a.png", "b.png"]
        assert scenes.ids == [5, 3]
        assert scenes.sizes.tolist() == [[40, 64], [40, 64]]
        one, none = scenes.objects
        assert one.boxes.tolist() == [[4, 4, 24, 20], [30.5, 2, 38.5, 11]]
        assert one.labels.tolist() == [1, 0]
        assert one.crowd.tolist() == [False, True]
        assert one.areas.tolist() == [300.5, 72]
        assert one.segments[0][0].tolist() == POLYGON[0]
        assert one.segments[1] == {"size": [40, 64], "counts": [0, 2560]}
        assert len(none) == 0
        assert none.boxes.shape == (0, 4)


def changed(change):
    file = deepcopy(COCO)
    change(file)
    return file


def with_annotation(**entries):
    row = {"id": 9, "image_id": 3, "category_id": 7, "bbox": [1, 1, 5, 5], **entries}
    return lambda file: file["annotations"].append(row)


@pytest.mark.parametrize(
    ("change", "warning", "objects"),
    [
        (
            with_annotation(bbox=[1, 1, 0, 5]),
            "1 annotation left out: bbox has no width or no height, .* annotation 9",
            2,
        ),
        (with_annotation(bbox=[1, 1, 5, -2]), "no width or no height", 2),
        (with_annotation(bbox=[1, 1, 5]), "not four numbers", 2),
        (with_annotation(bbox=[1, 1, "5", 5]), "not four numbers", 2),
        (with_annotation(bbox=[1, 1, float("nan"), 5]), "not four numbers", 2),
        (with_annotation(bbox=None), "not four numbers", 2),
        (with_annotation(bbox=[70, 1, 5, 5]), "1 annotation left out: bbox is outside the image", 2),
        (with_annotation(bbox=[60, 1, 9, 5]), "1 annotation with a bbox cut off at the edge of the image", 3),
        (with_annotation(bbox=[60, 1, 4.5, 5]), None, 3),
        (with_annotation(image_id=77), r"unknown image_id, .* annotation 9 \(image_id 77\)", 2),
        (with_annotation(category_id=90), r"unknown category_id, .* annotation 9 \(category_id 90\)", 2),
        (with_annotation(segmentation=[[1, 2, 3, 4]]), "1 mask left out: neither polygons nor run lengths", 3),
        (with_annotation(segmentation={"size": [9, 9], "counts": [81]}), "1 mask left out", 3),
        (with_annotation(segmentation={"size": [40, 64], "counts": [5, 5]}), "1 mask left out", 3),
        (with_annotation(segmentation=[]), None, 3),
        (lambda file: file["annotations"].append(file["annotations"][0]), "1 annotation left out: already listed", 2),
        (with_annotation(id=1), None, 3),
        (lambda file: file["annotations"].append(None), "1 annotation left out: not a JSON object", 2),
        (
            lambda file: file["images"].append({"id": 5, "file_name": "b.png"}),
            "1 image left out: another image has the same id",
            2,
        ),
        (lambda file: file["images"].append({"file_name": "b.png"}), "1 image left out: no id or no file_name", 2),
        (lambda file: file["images"].append({"id": 8, "file_name": "c.png"}), "1 image cannot be used, .* c.png", 2),
        (lambda file: file["categories"].append({"id": 9, "name": "dog"}), "1 class without objects, .* dog", 2),
    ],
)
def test_what_is_amiss_is_left_out_and_told(tmp_path, change, warning, objects):
    source = open_coco(write_coco(tmp_path, changed(change)))
    assert sum(map(len, source.train.objects)) == objects
    if warning is None:
        assert source.warnings == ()
    else:
        assert re.search(warning, source.warnings[0])
        assert len(source.warnings) <= 2
        assert not any("\n" in line for line in source.warnings)


@pytest.mark.parametrize(
    "segmentation",
    [
        {"size": [40, 64], "counts": "not a code"},
        {"size": [40, 64], "counts": "é"},
        {"size": [40, 64], "counts": ""},
        {"size": [40, 64], "counts": "o" * 200},
        {"size": [40, 64], "counts": "PP1"},
        {"size": [40, 64], "counts": [3000, -440]},
        {"size": [40, 64], "counts": [0.5, 2559.5]},
        {"size": [40, 64], "counts": [10**30, 5]},
        {"size": [40, 64], "counts": [[2560]]},
        {"size": ["40", "64"], "counts": [2560]},
        {"size": [40, 64]},
        [[0, 0, 2e8, 0, 2e8, 2e8]],
        [[0, 0, 1e300, 0, 20, 20]],
        [[0, 0, -1e9, 5, 20, 20]],
        [[0, 0, 10**400, 5, 20, 20]],
        [[0, 0, 60, 39] * 2000],
        [[[[[1]]]]],
        "polygon",
        7,
    ],
    ids=lambda value: str(value)[:30],
)
def test_masks_that_are_none_are_left_out_and_told(tmp_path, segmentation, run):
    data = write_coco(tmp_path, changed(with_annotation(segmentation=segmentation)))
    source = open_coco(data)
    assert source.train.objects[1].segments == (None,)
    assert len(source.train.objects[1]) == 1
    assert "1 mask left out: neither polygons nor run lengths" in source.warnings[0]
    drawn = DetectionTrainReader(Preprocess(64, fit="whole"), masks=True)(source.train, 1)[1]
    assert drawn.masks.shape == (0, 64, 64)
    code, printed, errors = run("info", data, "--json")
    assert code == 0, errors
    assert source.warnings[0] in json.loads(printed)["problems"]


def test_parts_of_masks_that_are_none_are_told(tmp_path):
    mixed = changed(with_annotation(segmentation=[[1, 2, 3, 4], [1, 1, 6, 1, 6, 6]]))
    source = open_coco(write_coco(tmp_path, mixed))
    assert len(source.train.objects[1].segments[0]) == 1
    assert "1 mask used without the parts that are not polygons, such as annotation 9" in source.warnings[0]


@pytest.mark.parametrize("counts", [[1000, 60, 1500], [0, 2560], [2560], [1000.0, 60, 1500]])
def test_run_length_codes_are_read(tmp_path, counts):
    code = {"size": [40, 64], "counts": counts}
    packed = mask.frPyObjects({"size": [40, 64], "counts": [int(x) for x in counts]}, 40, 64)["counts"].decode()
    for one in (code, code | {"counts": packed}):
        source = open_coco(write_coco(tmp_path, changed(with_annotation(segmentation=one))))
        assert source.warnings == ()
        segment = source.train.objects[1].segments[0]
        assert mask.decode(run_lengths(segment)).sum() == sum(counts[1::2])


HUGE = 10**30


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (with_annotation(id=HUGE, bbox=[1e300, 1, 1e300, 5]), "outside"),
        (with_annotation(bbox=[-1e300, -1e300, 1e308, 1e308]), "cut off at the edge"),
        (with_annotation(bbox=[1, 1, 10**400, 5]), "not four numbers"),
        (with_annotation(area=10**400), "1 area recomputed"),
        (with_annotation(area=1e300, iscrowd=1), None),
        (with_annotation(image_id=HUGE), "unknown image_id"),
        (with_annotation(category_id=HUGE), "unknown category_id"),
        (lambda file: file["images"].append({"id": HUGE, "file_name": "b.png"}), "no id or no file_name"),
        (lambda file: file["images"].append({"id": 8, "file_name": "b.png", "height": HUGE, "width": 3}), None),
        (lambda file: file["images"].append({"id": 8, "file_name": "b\0.png"}), "no such file"),
    ],
)
def test_huge_numbers_and_names_are_one_line(tmp_path, change, reason):
    source = open_coco(write_coco(tmp_path, changed(change)))
    assert reason is None or reason in source.warnings[0]
    assert all(len(line) < 6000 and "\n" not in line for line in source.warnings)
    assert all(np.isfinite(one.areas).all() and (one.areas <= 40 * 64).all() for one in source.train.objects)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"images": ' + '{"a": ' * 100_000, "nested too deeply"),
        ('{"images": [' + "9" * 5000 + "]}", "4300 digits"),
        ("\0" * 5000, "does not begin with { or ["),
    ],
    ids=["arrays", "objects", "digits", "zeros"],
)
def test_a_file_that_is_no_document_is_one_line(tmp_path, text, reason):
    data = write_coco(tmp_path)
    (data / "annotations" / "instances_train2017.json").write_text(text)
    with pytest.raises(DataError, match=re.escape(reason)) as caught:
        open_coco(data)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("at_most_ten_seconds")
def test_annotations_and_images_are_regular_files(tmp_path):
    data = write_coco(tmp_path, changed(lambda file: file["images"][0].pop("height")))
    (data / "train2017" / "a.png").unlink()
    os.mkfifo(data / "train2017" / "a.png")
    assert "no such file" in open_coco(data).warnings[0]
    (data / "annotations" / "instances_train2017.json").unlink()
    os.mkfifo(data / "annotations" / "instances_train2017.json")
    with pytest.raises(DataError, match="not a regular file"):
        open_coco(data)


def test_boxes_end_at_the_image(tmp_path):
    source = open_coco(write_coco(tmp_path, changed(with_annotation(bbox=[60, -3, 9, 50]))))
    assert source.train.objects[1].boxes.tolist() == [[60, 0, 64, 40]]


def test_sizes_that_are_not_written_are_read(tmp_path):
    def without(file):
        del file["images"][0]["height"]

    assert open_coco(write_coco(tmp_path, changed(without))).train.sizes.tolist() == [[40, 64], [40, 64]]


def test_sizes_that_are_read_are_of_the_upright_picture(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    rows = [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.png"}]
    box = {"id": 1, "image_id": 1, "category_id": 7, "bbox": [4, 50, 20, 12]}
    data = write_coco(tmp_path, COCO | {"images": rows, "annotations": [box]})
    for split in ("train2017", "val2017"):
        picture(90, size=(40, 64)).save(data / split / "a.jpg", exif=exif)
    source = open_coco(data)
    assert source.val.sizes.tolist() == [[64, 40], [40, 64]]
    image, truth = DetectionEvalReader(Preprocess(64, fit="whole"))(source.val, 0)
    assert truth.objects.boxes.tolist() == [[4, 50, 24, 62]]
    assert (image[:, :, 41:] == torch.tensor([124, 116, 104], dtype=torch.uint8)[:, None, None]).all()


def test_a_missing_file_keeps_its_place(tmp_path):
    write_coco(tmp_path)
    (tmp_path / "train2017" / "a.png").unlink()
    source = open_coco(tmp_path)
    train = source.train
    assert source.warnings == ("instances_train2017.json: 1 image cannot be used, such as a.png: no such file",)
    assert len(train.objects[0]) == 2
    assert train.bad == {0: "no such file"}
    assert len(train) == 2
    assert train.subset([1]).bad == {}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda file: file.pop("images"), "has no list named 'images'"),
        (lambda file: file.pop("categories"), "has no list named 'categories'"),
        (lambda file: file.update(images=[]), "lists no images"),
        (lambda file: file.update(categories=[]), "has no categories"),
        (lambda file: file["categories"].append({"id": 7, "name": "dog"}), "'tree' and 'dog' have the same id 7"),
        (lambda file: file["categories"].append({"id": 8, "name": "cat"}), "two categories are named 'cat'"),
        (lambda file: file["categories"].append({"id": "VIII", "name": "dog"}), "must have a whole number as id"),
        (lambda file: [row.update(file_name="x.png") for row in file["images"]], "none of its 2 images can be used"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, change, reason):
    write_coco(tmp_path, changed(change))
    with pytest.raises(DataError, match=reason) as caught:
        open_coco(tmp_path)
    assert "\n" not in str(caught.value)


def test_files_that_are_not_there_or_disagree(tmp_path):
    assert not find_coco(tmp_path)
    with pytest.raises(DataError, match="is not a COCO folder: expected"):
        open_coco(tmp_path)
    write_coco(tmp_path, splits=["train2017", "more2017"])
    with pytest.raises(DataError, match="must have one file named train and one named val"):
        open_coco(tmp_path)
    write_coco(tmp_path, splits=["train2014", "val2017"])
    with pytest.raises(DataError, match=r"instances_train2014\.json, annotations/instances_train2017\.json"):
        open_coco(tmp_path)
    (tmp_path / "annotations" / "instances_train2014.json").unlink()
    write_coco(tmp_path, splits=["test2017"])
    assert open_coco(tmp_path).warnings == ("not used: annotations/instances_more2017.json",)
    write_coco(tmp_path, changed(lambda file: file["categories"].append({"id": 9, "name": "dog"})), ["val2017"])
    with pytest.raises(DataError, match="disagree on the categories, for example on 9: dog"):
        open_coco(tmp_path)
    (tmp_path / "annotations" / "instances_val2017.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        open_coco(tmp_path)
    (tmp_path / "annotations" / "instances_val2017.json").write_text("[]")
    with pytest.raises(DataError, match="is not a COCO file: expected an object"):
        open_coco(tmp_path)


def test_one_file_is_divided(tmp_path):
    file = deepcopy(COCO)
    file["images"] = [{**COCO["images"][0], "id": number, "file_name": f"{number}.png"} for number in range(10)]
    write_coco(tmp_path, file, ["all"])
    for number in range(10):
        picture(90, number, (40, 64)).save(tmp_path / "all" / f"{number}.png")
    source = open_coco(tmp_path, seed=1, val_share=0.3)
    assert source.drawn
    assert len(source.train) > len(source.val) > 0
    assert sorted([*source.train.ids, *source.val.ids]) == list(range(10))
    assert open_coco(tmp_path, seed=2, val_share=0.3).val.ids != source.val.ids
    assert open_coco(tmp_path, seed=2, val_share=0.3).fingerprint == source.fingerprint


def test_roboflows_folders(tmp_path):
    for split in ("train", "valid"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "_annotations.coco.json").write_text(json.dumps(COCO))
        for name in ("a.png", "b.png"):
            picture(90, size=(40, 64)).save(tmp_path / split / name)
    source = open_coco(tmp_path)
    assert (len(source.train), len(source.val), source.warnings) == (2, 2, ())


def with_names(root, names, splits=("train2017", "val2017")):
    """The folder of `write_coco`, its annotation files renamed."""
    write_coco(root, splits=splits)
    for split, name in zip(splits, names, strict=True):
        path = root / "annotations" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        (root / "annotations" / f"instances_{split}.json").rename(path)
    return root


@pytest.mark.parametrize(
    "names",
    [
        ("train.json", "val.json"),
        ("instances_train2017.json", "instances_dev2017.json"),
        ("person_keypoints_train2017.json", "person_keypoints_val2017.json"),
        ("coco_annotations_training.json", "coco_annotations_validation.json"),
        ("../Annotations/train.json", "../Annotations/val.json"),
    ],
)
def test_annotations_of_other_names_are_found(tmp_path, run, names):
    """Beside COCO's files without objects; also in a folder around all."""
    root = with_names(tmp_path / "archive", names)
    for other in ("captions_train2017.json", "panoptic_val2017.json", "image_info_test2017.json"):
        (root / "annotations" / other).write_text('{"images": [], "annotations": []}')
    (root / "annotations" / "settings.json").write_text('{"images": 12}')
    for data in (root, tmp_path):
        assert find_coco(data)
        source = open_coco(data)
        assert ([len(source.train), len(source.val)], source.classes) == ([2, 2], ("cat", "tree"))
        assert source.train.images[0] == root / "train2017" / "a.png"
        assert source.warnings == ()
    code, out, _ = run("info", tmp_path, "--json")
    assert (code, json.loads(out)["task"]) == (0, "detect")


def test_annotations_that_name_no_split(tmp_path):
    with pytest.raises(DataError, match="must have one file named train and one named val"):
        open_coco(with_names(tmp_path, ("a.json", "b.json")))


def rewritten(change):
    """The file with every image, annotation and category changed."""
    file = deepcopy(COCO)
    for row in (row for kind in ("images", "annotations", "categories") for row in file[kind]):
        change(row)
    return file


def ids_as(kind):
    def change(row):
        row.update({key: kind(row[key]) for key in ("id", "image_id", "category_id") if key in row})

    return change


@pytest.mark.parametrize("kind", [str, float, lambda number: f"{number}.0", lambda number: f" {number} "])
def test_ids_are_numbers_however_they_are_written(tmp_path, kind):
    plain = open_coco(write_coco(tmp_path / "plain"))
    source = open_coco(write_coco(tmp_path / "other", rewritten(ids_as(kind))))
    assert (source.train.ids, source.categories) == ([5, 3], (0, 7))
    assert all(type(id_) is int for id_ in source.train.ids)
    assert source.fingerprint == plain.fingerprint
    assert "2 image ids converted to whole numbers, such as" in source.warnings[0]


@pytest.mark.parametrize("kind", [lambda number: f"image_{number}", lambda number: number + 0.5, lambda number: None])
def test_ids_that_are_no_numbers_are_named(tmp_path, kind):
    file = deepcopy(COCO)
    for row in file["images"]:
        row["id"] = kind(row["id"])
    reason = "lists no images with a file_name and an id that is a whole number; the first of 2 entries is .*a.png"
    with pytest.raises(DataError, match=reason) as caught:
        open_coco(write_coco(tmp_path, file))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "crowd"),
    [("0", False), ("1", True), ("false", False), (0.0, False), (True, True), (None, False), ("", False)],
)
def test_what_iscrowd_may_be(tmp_path, value, crowd):
    source = open_coco(write_coco(tmp_path, changed(with_annotation(iscrowd=value))))
    assert source.train.objects[1].crowd.tolist() == [crowd]


@pytest.mark.parametrize("value", ["no idea", [], {}])
def test_an_iscrowd_that_means_nothing(tmp_path, value):
    source = open_coco(write_coco(tmp_path, changed(with_annotation(iscrowd=value))))
    assert len(source.train.objects[1]) == 0
    assert "1 annotation left out: iscrowd is neither 0 nor 1" in source.warnings[0]


@pytest.mark.parametrize("name", ["train2017\\{}", ".\\train2017\\{}", "..\\images\\train2017\\{}"])
def test_file_names_of_windows(tmp_path, name):
    file = changed(lambda file: [row.update(file_name=name.format(row["file_name"])) for row in file["images"]])
    root = write_coco(tmp_path / "images", file)
    assert [path.name for path in open_coco(root).train.images] == ["a.png", "b.png"]
    assert open_coco(root).train.bad == {}


def test_file_names_that_are_numbers(tmp_path):
    root = write_coco(tmp_path, changed(lambda file: file["images"][0].update(file_name=12)))
    for split in ("train2017", "val2017"):
        (root / split / "a.png").rename(root / split / "12")
    source = open_coco(root)
    assert (source.train.images[0], source.train.bad) == (root / "train2017" / "12", {})


def test_missing_files_are_named_where_they_were_looked_for(tmp_path):
    write_coco(tmp_path, changed(lambda file: [row.update(file_name=f"x{row['id']}.png") for row in file["images"]]))
    looked_for = re.escape(f"none of its 2 images can be used; the first is {tmp_path / 'train2017' / 'x5.png'}: ")
    with pytest.raises(DataError, match=looked_for + "no such file"):
        open_coco(tmp_path)
    write_coco(tmp_path, changed(lambda file: [row.update(file_name="x" * 5000) for row in file["images"]]))
    with pytest.raises(DataError, match="none of its 2 images can be used"):
        open_coco(tmp_path)


def test_the_fingerprint_tells_objects_apart(tmp_path):
    one = open_coco(write_coco(tmp_path / "one"))
    assert open_coco(write_coco(tmp_path / "same")).fingerprint == one.fingerprint
    assert open_coco(write_coco(tmp_path / "other", changed(with_annotation()))).fingerprint != one.fingerprint


def test_real_annotations(photos):
    source = open_coco(SHARED / "coco421")
    assert (len(source.train), len(source.val), len(source.classes)) == (215, 206, 80)
    assert source.warnings == ()
    for scenes, annotations, crowds in ((source.train, 2035, 19), (source.val, 1786, 21)):
        assert isinstance(scenes, CocoSplit)
        assert sum(map(len, scenes.objects)) == annotations
        assert sum(int(one.crowd.sum()) for one in scenes.objects) == crowds
        boxes = np.concatenate([one.boxes for one in scenes.objects])
        assert (boxes[:, 2:] > boxes[:, :2]).all()
