"""YOLO datasets in the layouts that people have, and what is wrong in their label files."""

import json

import numpy as np
import pytest
from PIL import Image

from conftest import SHARED
from shvit.data.coco import open_coco
from shvit.data.object_formats import open_objects
from shvit.data.survey import survey
from shvit.errors import DataError

NAMES = "names: [cat, dog]\n"


def write(root, place: str, labels: dict[str, str | None], suffix: str = ".jpg", size=(100, 50)) -> None:
    """Images of 100 x 50 pixels in `root/place`, whose last `images` is `labels` for the label files."""
    folder = root / place
    folder.mkdir(parents=True, exist_ok=True)
    beside = root / place.replace("images", "labels")
    beside.mkdir(parents=True, exist_ok=True)
    for name, text in labels.items():
        Image.new("RGB", size, (len(name) % 256, 9, 9)).save(folder / f"{name}{suffix}")
        if text is not None:
            (beside / f"{name}.txt").write_bytes(text.encode())


def boxes(split) -> list[list[float]]:
    return [box for objects in split.objects for box in objects.boxes.tolist()]


@pytest.mark.parametrize(
    ("yaml", "train", "val"),
    [
        ("path: .\ntrain: images/train\nval: images/val\n", "images/train", "images/val"),
        ("train: ../train/images\nval: ../valid/images\n", "train/images", "valid/images"),
        ("train: [images/train]\nvalid: images/val\n", "images/train", "images/val"),
        (None, "images/train", "images/val"),
        (None, "train/images", "valid/images"),
        (None, "train", "val"),
    ],
)
def test_layouts(tmp_path, yaml, train, val):
    write(tmp_path, train, {"b": "1 0.5 0.5 0.2 0.4\n", "a": "0 0.1 0.2 0.2 0.4\n"})
    write(tmp_path, val, {"c": "0 0.5 0.5 1 1"})
    if yaml is None:
        (tmp_path / "classes.txt").write_text("cat\ndog\n")
    else:
        (tmp_path / "data.yaml").write_text(yaml + NAMES)
    data = open_objects(tmp_path)
    assert data.classes == ("cat", "dog")
    assert [path.name for path in data.train.images] == ["a.jpg", "b.jpg"]
    assert boxes(data.train) == [[0, 0, 20, 20], [40, 15, 60, 35]]
    assert [one.labels.tolist() for one in data.train.objects] == [[0], [1]]
    assert boxes(data.val) == [[0, 0, 100, 50]]
    assert (data.drawn, data.train.ids) == (False, [1, 2])


def test_one_folder_a_list_and_the_yaml_itself(tmp_path):
    write(tmp_path, "images", {str(number): "0 0.5 0.5 0.2 0.4" for number in range(6)})
    drawn = open_objects(tmp_path)
    assert (drawn.classes, drawn.drawn, len(drawn.train) + len(drawn.val)) == (("0",), True, 6)
    (tmp_path / "some.txt").write_text("./images/1.jpg\nimages/0.jpg\n")
    (tmp_path / "other.txt").write_text("images/3.jpg\n")
    (tmp_path / "my.yaml").write_text("train: some.txt\nval: other.txt\nnames: {0: cat, 2: dog}\nnc: 2\n")
    data = open_objects(tmp_path / "my.yaml")
    assert data.classes == ("cat", "1", "dog")
    assert [path.name for path in data.train.images] == ["0.jpg", "1.jpg"]
    assert any("nc is 2, but there are 3 names" in line for line in data.warnings)
    facts = survey(str(tmp_path / "my.yaml"))
    assert (facts["task"], facts["splits"]["train"]["objects"]) == ("detect", 2)


def test_polygons_are_masks_and_missing_labels_are_background(tmp_path):
    write(tmp_path, "images", {"a": "0 0.1 0.2 0.5 0.2 0.5 0.8\n\n", "b": "", "c": None, "d": "0 0.5 0.5 0.1 0.1"})
    data = open_objects(tmp_path)
    whole = data.whole()
    objects = dict(zip((path.stem for path in whole.images), whole.objects, strict=True))
    assert objects["a"].boxes.tolist() == [[10, 10, 50, 40]]
    assert objects["a"].areas.tolist() == [600]
    np.testing.assert_allclose(objects["a"].segments[0][0], [10, 10, 50, 10, 50, 40])
    assert objects["d"].segments == (None,)
    assert (len(objects["b"]), len(objects["c"])) == (0, 0)
    assert "1 image without a label file: used as images without objects, such as c.jpg" in data.warnings


def test_bad_lines_are_named_and_the_rest_is_used(tmp_path):
    lines = [
        "0 0.5 0.5 0.2 0.4",
        "7 0.5 0.5 0.2 0.4",
        "-1 0.5 0.5 0.2 0.4",
        "0.5 0.5 0.5 0.2 0.4",
        "0 0.5 0.5 0.2",
        "0 0.5 half 0.2 0.4",
        "0 0.5 nan 0.2 0.4",
        "0 1.0 0.5 0.2 0.4",
        "0 1.5 0.5 0.2 0.4",
        "0 0.5 0.5 0 0.4",
        "0 0.5 0.5 -0.2 0.4",
        "0 0.5 0.5 0.2 0.4",
        "0 0.1 0.1 9 9 0.5 -8",
    ]
    write(tmp_path, "images", {"a": "\ufeff" + "\r\n".join(lines), "b": "0 0.5 0.5 0.2 0.4"})
    (tmp_path / "labels" / "latin.txt").write_bytes(b"0 0.5 0.5 0.2 0.4 \xff")
    (tmp_path / "labels" / "alone.txt").write_text("0 0.5 0.5 0.2 0.4")
    Image.new("RGB", (100, 50)).save(tmp_path / "images" / "latin.png")
    (tmp_path / "images" / "broken.jpg").write_bytes(b"no image")
    (tmp_path / "data.yaml").write_text("train: images\nval: images\nnames: [cat]\n")
    data = open_objects(tmp_path)
    found = dict(zip((path.name for path in data.train.images), data.train.objects, strict=True))
    assert found["a.jpg"].boxes.tolist()[:2] == [[40, 15, 60, 35], [90, 15, 100, 35]]
    lines = "\n".join(data.warnings)
    for expected in (
        "1 label left out: unknown class, such as a.txt line 2 (class 7)",
        "2 labels left out: the class is not an index from 0 to 9999, such as a.txt line 3: -1",
        "1 label left out: expected a class and 4 numbers, or a polygon, such as a.txt line 5: 4 values",
        "1 label left out: not numbers, such as a.txt line 6: 0 0.5 half 0.2 0.4",
        "1 label left out: not finite numbers, such as a.txt line 7",
        "with a bbox cut off at the edge of the image, such as a.txt line 8",
        "1 label left out: bbox is outside the image, such as a.txt line 9",
        "2 labels left out: bbox has no width or no height, such as a.txt line 10",
        "1 label left out: already listed, such as a.txt line 12",
        "1 mask left out: not a polygon inside the image, such as a.txt line 13",
        "1 label file left out: not UTF-8 text, such as latin.txt",
        "1 label file not used: there is no image for it, such as alone.txt",
        "1 image cannot be used, such as broken.jpg",
    ):
        assert expected in lines, expected
    assert list(data.train.bad) == [2]


@pytest.mark.parametrize(
    ("yaml", "reason"),
    [
        ("train: nowhere\nval: images\nnames: [a]", r"train is 'nowhere', but there is no .*nowhere"),
        ("train: {a: b}\nval: images\nnames: [a]", "train must be a folder, a text file or a list of them, got {'a'"),
        ("train: images\nnames: 5", "names must be a list of class names, got '5'"),
        ("train: images\nnames: {-1: a}", "the keys of names must be class indices from 0"),
        ("train: images\nnames: [a, a]", "two classes are named a"),
        ("train: images\nnames: []", "names no classes"),
        ("names: [a]\ntrain:\n", "names no images: expected the keys train and val"),
        ("a: [", "is not a YAML file"),
        ("a: 1", "describes no dataset: expected the keys names, and train or val"),
    ],
)
def test_yaml_files_that_cannot_be_used(tmp_path, yaml, reason):
    write(tmp_path, "images", {"a": "0 0.5 0.5 0.2 0.4"})
    (tmp_path / "data.yaml").write_text(yaml)
    with pytest.raises(DataError, match=reason):
        open_objects(tmp_path / "data.yaml")


def test_yaml_code_is_not_run(tmp_path):
    made = tmp_path / "made"
    (tmp_path / "data.yaml").write_text(f"!!python/object/apply:os.mkdir ['{made}']\n")
    with pytest.raises(DataError, match="describes no dataset"):
        open_objects(tmp_path / "data.yaml")
    assert not made.exists()


def test_class_folders_are_not_yolo(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (9, 9)).save(tmp_path / name / "a.png")
        (tmp_path / name / "a.txt").write_text("a photograph of an animal")
    with pytest.raises(DataError):
        open_objects(tmp_path)
    assert survey(str(tmp_path))["task"] == "classify"


@pytest.mark.skipif(not (SHARED / "bccd").is_dir(), reason="needs the shared photographs")
def test_the_same_data_as_coco_is_the_same_dataset(tmp_path):
    coco = open_coco(SHARED / "bccd")
    for split, place in (("train", "train/images"), ("val", "valid/images")):
        document = json.loads((SHARED / "bccd" / "annotations" / f"instances_{split}.json").read_text())
        (tmp_path / place).mkdir(parents=True)
        labels = tmp_path / place.replace("images", "labels")
        labels.mkdir()
        rows: dict[int, list[str]] = {image["id"]: [] for image in document["images"]}
        for row in document["annotations"]:
            left, top, width, height = row["bbox"]
            values = (left + width / 2) / 640, (top + height / 2) / 480, width / 640, height / 480
            rows[row["image_id"]].append(" ".join(map(repr, (row["category_id"] - 1, *values))))
        for image in document["images"]:
            (tmp_path / place / image["file_name"]).symlink_to((SHARED / "bccd/images" / image["file_name"]).resolve())
            (labels / image["file_name"]).with_suffix(".txt").write_text("\n".join(rows[image["id"]]))
    (tmp_path / "data.yaml").write_text("train: ../train/images\nval: ../valid/images\nnames: [RBC, WBC, Platelets]\n")
    yolo = open_objects(tmp_path)
    assert (yolo.fingerprint, yolo.warnings) == (coco.fingerprint, ())
    for some, others in zip(
        (*yolo.train.objects, *yolo.val.objects), (*coco.train.objects, *coco.val.objects), strict=True
    ):
        np.testing.assert_array_equal(some.boxes, others.boxes)
        np.testing.assert_array_equal(some.areas, others.areas)
