"""Datasets as labelling tools write them, and mixtures of formats."""

import json

import pytest
from test_voc import CAT, DOG, xml
from test_voc import write as write_voc
from test_yolo import NAMES, boxes, write

from shvit.data.object_formats import has_objects, open_objects
from shvit.data.survey import survey
from shvit.errors import DataError

BOX = "1 0.5 0.5 0.2 0.4"
CENTER = [40, 15, 60, 35]


def coco(count: int = 2) -> dict:
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 100, "height": 50} for i in range(count)]
    rows = [{"id": i, "image_id": i, "category_id": 1, "bbox": [10, 10, 20, 20]} for i in range(count)]
    return {"images": images, "annotations": rows, "categories": [{"id": 1, "name": "cat"}]}


def test_label_studio_writes_notes_beside_yolo(tmp_path):
    write(tmp_path, "images", {"a": BOX, "b": BOX, "c": BOX})
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    notes = {"categories": [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}], "info": {"year": 2026}}
    (tmp_path / "notes.json").write_text(json.dumps(notes, indent=2))
    data = open_objects(tmp_path)
    assert (data.classes, boxes(data.whole())) == (("cat", "dog"), [CENTER] * 3)


def test_labels_for_both_splits_precede_a_coco_file_for_one(tmp_path):
    for split in ("train2017", "val2017"):
        write(tmp_path, f"images/{split}", {"0": BOX, "1": BOX})
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_val2017.json").write_text(json.dumps(coco()))
    data = open_objects(tmp_path)
    assert (len(data.train), len(data.val), data.drawn) == (2, 2, False)


def test_a_coco_file_for_validation_alone_is_evaluated_whole(tmp_path):
    write(tmp_path, "val2017", {"0": None, "1": None})
    (tmp_path / "annotations").mkdir()
    file = tmp_path / "annotations" / "instances_val2017.json"
    file.write_text(json.dumps(coco()))
    data = open_objects(tmp_path)
    assert (len(data.train), len(data.val), data.drawn) == (0, 2, False)
    with pytest.raises(DataError, match="has no training images"):
        data.check_trainable()
    file.rename(file.with_name("instances_test2017.json"))
    data = open_objects(tmp_path)
    assert (len(data.train), len(data.val), len(data.test), data.drawn) == (0, 0, 2, False)
    assert not any("only the test split" in line for line in data.warnings)


@pytest.mark.parametrize("yaml", ["test: test/images\nnames: [cat, dog]\n", None])
def test_data_with_only_a_test_split_is_evaluated(tmp_path, yaml):
    write(tmp_path, "test/images", {"a": BOX, "b": BOX})
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    if yaml:
        (tmp_path / "data.yaml").write_text(yaml)
    data = open_objects(tmp_path)
    assert (len(data.whole()), len(data.test), data.classes) == (0, 2, ("cat", "dog"))
    with pytest.raises(DataError, match="has no training images"):
        data.check_trainable()


def test_a_yaml_with_other_folders_does_not_hide_a_coco_file(tmp_path):
    write(tmp_path, "images", {"0": None, "1": None})
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "result.json").write_text(json.dumps(coco()))
    (tmp_path / "export.yaml").write_text(f"train: ../train/images\n{NAMES}")
    assert open_objects(tmp_path).classes == ("cat",)


@pytest.mark.parametrize("other", ["voc", "yolo", "yaml"])
def test_data_with_only_a_validation_split_is_evaluated_whole(tmp_path, other):
    if other == "voc":
        write_voc(tmp_path / "valid", tmp_path / "valid", {"a": DOG, "b": CAT})
    else:
        write(tmp_path, "valid/images", {"a": BOX, "b": BOX})
    if other == "yaml":
        (tmp_path / "data.yaml").write_text(f"val: valid/images\n{NAMES}")
    data = open_objects(tmp_path)
    assert (len(data.train), len(data.val), data.drawn) == (0, 2, False)
    assert survey(str(tmp_path))["splits"]["val"]["images"] == 2
    with pytest.raises(DataError, match="has no training images"):
        data.check_trainable()


@pytest.mark.parametrize("subsets", [("train",), ("train", "valid")])
def test_cvat_yolo(tmp_path, subsets):
    for name in subsets:
        write(tmp_path, f"obj_{name}_data", {"a": BOX, "b": BOX, "c": BOX})
    (tmp_path / "obj.names").write_text("cat\ndog\n")
    (tmp_path / "obj.data").write_text("classes = 2\nnames = obj.names\n")
    data = open_objects(tmp_path)
    assert (data.classes, len(data.whole())) == (("cat", "dog"), 3 * len(subsets))
    assert data.drawn == (len(subsets) == 1)


@pytest.mark.parametrize(
    ("images", "names"),
    [
        ("train", "train/classes.txt"),
        ("images/train", "labels/train/classes.txt"),
        ("train", "train/_darknet.labels"),
    ],
)
def test_class_names_beside_the_labels(tmp_path, images, names):
    write(tmp_path, images, {"a": BOX, "b": BOX})
    (tmp_path / names).write_text("cat\ndog\n")
    data = open_objects(tmp_path)
    assert data.classes == ("cat", "dog")
    assert not any("cannot be used" in line or "label file" in line for line in data.warnings)


def test_numbers_instead_of_names_are_reported(tmp_path):
    write(tmp_path, "images", {"a": BOX, "b": f"{BOX}\n999999 0.5 0.5 0.1 0.1\n"})
    data = open_objects(tmp_path)
    assert data.classes == ("0", "1")
    assert any("no class names: expected a YAML file, or classes.txt" in line for line in data.warnings)
    assert any("not an index from 0 to 9999, such as b.txt line 2: 999999" in line for line in data.warnings)


def test_keypoints_are_not_polygons(tmp_path):
    keypoints = " ".join("0.1" for _ in range(24))
    write(tmp_path, "images/train", {"a": f"{BOX} {keypoints}", "b": f"{BOX} {keypoints} 2"})
    (tmp_path / "data.yaml").write_text(f"train: images/train\nkpt_shape: [12, 2]\n{NAMES}")
    data = open_objects(tmp_path)
    assert boxes(data.whole()) == [CENTER] * 2
    assert not any(segment for objects in data.whole().objects for segment in objects.segments)
    assert any("kpt_shape" in line for line in data.warnings)


def test_a_missing_test_split_is_left_out(tmp_path):
    write(tmp_path, "train/images", {"a": BOX, "b": BOX})
    write(tmp_path, "valid/images", {"c": BOX})
    (tmp_path / "data.yaml").write_text(f"train: train/images\nval: valid/images\ntest: ../test/images\n{NAMES}")
    data = open_objects(tmp_path)
    assert (len(data.train), len(data.val), data.test) == (2, 1, None)
    assert any("not used: the test split, because" in line for line in data.warnings)


def test_lists_of_images(tmp_path):
    write(tmp_path, "images", {"a": BOX, "b": BOX})
    lines = ["images\\a.jpg", "./images/b.jpg", "/", "nul\0byte.jpg", *["./images/a.jpg"] * 400_000]
    (tmp_path / "train.txt").write_text("\n".join(lines))
    (tmp_path / "val.txt").write_text("images/b.jpg")
    (tmp_path / "data.yaml").write_text(f"train: train.txt\nval: val.txt\n{NAMES}")
    data = open_objects(tmp_path)
    assert sorted(path.name for i, path in enumerate(data.train.images) if i not in data.train.bad) == [
        "a.jpg",
        "b.jpg",
    ]
    assert (len(data.train.bad), boxes(data.train)) == (2, [CENTER] * 2)
    (tmp_path / "data.yaml").write_text(f"train: train.txt\n{NAMES}")
    assert open_objects(tmp_path).drawn  # which reads the images' contents


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: &a [1, 2]\nnames: *a\ntrain: images\n", "has aliases"),
        ("names: [caf\xe9]\ntrain: images\n", "not UTF-8 text"),
        ("names: [a\n\tb]\ntrain: images\n", "not a YAML file"),
        ("names: " + "[" * 3000 + "\ntrain: images\n", "not a YAML file"),
    ],
)
def test_an_unreadable_data_yaml_is_refused_and_another_is_reported(tmp_path, text, reason):
    write(tmp_path, "train/images", {"a": BOX, "b": BOX})
    file = tmp_path / "data.yaml"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=reason):
        open_objects(tmp_path)
    file.rename(tmp_path / "export.yaml")
    assert any(reason in line for line in open_objects(tmp_path).warnings)


@pytest.mark.parametrize(
    "text",
    [
        "created: 2024-02-30\nx: !!bool x\ny: !!int ''\nnames: [a, b]\ntrain: images\nnc: 2\n",
        f"number: {'9' * 5000}\nnames: {{0: a, 1: b}}\ntrain: images\nval:\ntest: null\n",
    ],
)
def test_odd_values_of_other_keys_do_not_matter(tmp_path, text):
    write(tmp_path, "images", {"a": BOX, "b": BOX})
    (tmp_path / "data.yaml").write_text(text)
    data = open_objects(tmp_path)
    assert (data.classes, data.drawn) == (("a", "b"), True)


def test_too_many_names_are_refused(tmp_path):
    write(tmp_path, "images", {"a": BOX})
    (tmp_path / "data.yaml").write_text("names: {99999: a}\ntrain: images\n")
    with pytest.raises(DataError, match="names 100,000 classes: at most 10,000"):
        open_objects(tmp_path)


def test_words_that_yaml_could_read_as_values_stay_class_names(tmp_path):
    write(tmp_path, "images", {"a": BOX})
    (tmp_path / "data.yaml").write_text("names: [no, 007, 1.50]\ntrain: images\n")
    assert open_objects(tmp_path).classes == ("no", "007", "1.50")


def test_several_folders_of_a_split_are_joined(tmp_path):
    for number, place in enumerate(("images/train2014", "images/train2017", "images/val", "images/valid")):
        write(tmp_path, place, {f"{number}": BOX})
    data = open_objects(tmp_path)
    assert (len(data.train), len(data.val)) == (2, 2)
    for number, place in enumerate(("voc/train", "voc/train_images", "voc/val")):
        write_voc(tmp_path / place, tmp_path / place, {f"{number}": DOG if number != 1 else None})
    data = open_objects(tmp_path / "voc")
    assert (len(data.train), len(data.val)) == (1, 1)


def test_labels_are_found_behind_images_without_objects(tmp_path):
    background: dict[str, str | None] = {f"a{number:02}": "" for number in range(60)}
    write(tmp_path, "images", {**background, "z": f"\ufeff{BOX}"})
    assert boxes(open_objects(tmp_path).whole()) == [CENTER]


def test_voc_lists_name_images_in_many_ways(tmp_path):
    images, labels, lists = tmp_path / "JPEGImages", tmp_path / "Annotations", tmp_path / "ImageSets" / "Main"
    write_voc(images, labels, {"Screenshot from 2024": DOG, "b": DOG, "d": DOG, "unlisted": DOG})
    write_voc(images / "sub", labels / "sub", {"b": CAT})
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("Screenshot from 2024\nsub/b.jpg  1\nd.jpg\nmissing\n")
    (lists / "val.txt").write_text("b -1\n")
    data = open_objects(tmp_path)
    assert [str(path.relative_to(images)) for path in data.train.images] == [
        "Screenshot from 2024.jpg", "d.jpg", "sub/b.jpg",
    ]  # fmt: skip
    assert [str(path.relative_to(images)) for path in data.val.images] == ["b.jpg"]
    assert any("1 line not used: there is no XML file for it, such as train.txt: missing" in w for w in data.warnings)
    assert any("1 XML file not used: no list in ImageSets names it, such as unlisted.xml" in w for w in data.warnings)


@pytest.mark.parametrize(
    ("lists", "train", "val"),
    [
        ({"val": "c", "trainval": "a b c"}, "ab", "c"),
        ({"train": "a b", "trainval": "a b c"}, "ab", "c"),
        ({"train": "a", "val": "b", "trainval": "a b c"}, "a", "b"),
    ],
)
def test_voc_lists_complete_each_other(tmp_path, lists, train, val):
    write_voc(tmp_path / "JPEGImages", tmp_path / "Annotations", {"a": DOG, "b": DOG, "c": CAT})
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    for name, rows in lists.items():
        (tmp_path / "ImageSets" / "Main" / f"{name}.txt").write_text(rows.replace(" ", "\n"))
    data = open_objects(tmp_path)
    assert ["".join(path.stem for path in split.images) for split in (data.train, data.val)] == [train, val]


def test_voc_images_without_xml_are_reported(tmp_path):
    write_voc(tmp_path / "JPEGImages", tmp_path / "Annotations", {"a": xml(name="A.PNG"), "b": CAT, "c": None})
    data = open_objects(tmp_path)
    assert sorted(path.name for path in data.whole().images) == ["a.jpg", "b.jpg"]
    assert any("1 image not used: there is no XML file for it, such as c.jpg" in line for line in data.warnings)


def test_an_unrelated_yaml_does_not_make_class_folders_a_dataset_with_boxes(tmp_path):
    write(tmp_path, "cats", {"a": None})
    write(tmp_path, "dogs", {"b": None})
    (tmp_path / "data.yaml").write_text("x: [\n")
    assert not has_objects(tmp_path)
