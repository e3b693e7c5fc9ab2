"""Folders as people have them: found, or refused with the layout that is expected; what is not used is said."""

import re
from pathlib import Path

import pytest

from conftest import picture, write_pictures
from shvit.data.coco import open_coco
from shvit.data.folders import find_coco, layers
from shvit.data.sources import open_source
from shvit.data.splits import split_of, splits_within
from shvit.errors import DataError


def fill(root: Path, *folders: str, classes=("cat", "dog")) -> Path:
    """Folders of class folders with three images each; with a slash at the end, of images; with a suffix, files."""
    for place, name in enumerate(folders):
        path = root / name
        if path.suffix:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}")
        elif name.endswith("/"):
            write_pictures(path, 20 * place, 3)
        else:
            for shade, one in enumerate(classes):
                write_pictures(path / one, 20 * place + 100 * shade, 3)
    return root


def refused(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        open_source(path)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(str(path), "DATA")


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("Training", "Validation"),
        ("seg_train/seg_train", "seg_val/seg_val"),
        ("training_set", "validation_set"),
        ("training_set/training_set", "dev_set/dev_set"),
        ("trainset", "valset"),
        ("train_images", "val_images"),
        ("TrainImages", "ValImages"),
        ("train", "dev"),
        ("train", "eval"),
        ("data/train", "data/val"),
        ("outer/inner/train", "outer/inner/validation"),
        ("train/images", "val/images"),
    ],
)
def test_splits_are_found_whatever_they_are_called(tmp_path, train, val):
    source = open_source(fill(tmp_path, train, val))
    source.check_trainable()
    assert (source.classes, len(source.train), len(source.val), source.drawn) == (("cat", "dog"), 6, 6, False)
    assert all(path.is_relative_to(tmp_path / train) for path in source.train.images)
    assert (source.warnings, source.test) == ((), None)


def test_names_of_splits():
    held = {"train2017": "train", "trn": "train", "Val": "val", "development": "val", "images_test": "test"}
    assert {name: split_of(name) for name in held} == held
    for name in (
        "training wheels",
        "trains",
        "valley",
        "images",
        "2017",
        "",
        "train_val",
        "test_subject",
        "steam train",
    ):
        assert split_of(name) is None, name
    assert splits_within("person_keypoints_train2017.json") == {"train"}


def test_an_outer_folder_stands_for_what_is_in_it(tmp_path):
    source = open_source(fill(tmp_path, "archive/PetImages", "archive/readme.txt", "notes/a.txt"))
    assert (source.classes, source.drawn, source.warnings) == (("cat", "dog"), True, ())
    assert [level.name for level in layers(tmp_path)] == [tmp_path.name, "archive", "PetImages"]


def test_a_doubled_folder_of_training_images_alone_is_one_pile(tmp_path):
    assert open_source(fill(tmp_path, "seg_train/seg_train") / "seg_train").drawn


@pytest.mark.parametrize(
    ("folders", "reason"),
    [
        (["A", "B"], "A and B hold folders with the same names, such as cat, so they are not classes"),
        (["fold 1", "fold 2", "fold 3"], "fold 1 and fold 2 hold folders with the same names"),
        (["", "copy"], r"copy and .* hold folders with the same names, such as cat"),
        (["train", "val/"], "no class folders in val: expected DATA/val/<class>/<image>"),
        (["train/", "test/"], "no class folders in test and train: expected DATA/test/<class>/<image>, or a CSV"),
        (["train", "val/images/"], "no class folders in val"),
        (["train_images", "trainset", "val"], "DATA has train_images, trainset for a split: rename one to train"),
        (["images/", "labels/0.txt"], r"DATA looks like YOLO data \(a .txt file for each image\): use --task detect"),
        (["images/train/", "images/val/", "labels/train/0.txt"], "looks like YOLO"),
        (["train/images/", "train/labels/0.txt", "valid/images/", "valid/labels/0.txt"], "looks like YOLO"),
        (["train/", "train/000.txt", "valid/"], "looks like YOLO"),
        (
            ["a/JPEGImages/", "a/Annotations/0.xml", "a/SegmentationClass/"],
            r"looks like VOC data \(an .xml file for each image\): use --task detect",
        ),
        (["train/", "train/000.xml", "valid/"], "looks like VOC"),
        (["images/", "annotations/xmls/0.xml", "annotations/trimaps/"], "looks like VOC"),
        (["images/", "masks/"], "looks like images and masks"),
        (["train/images/", "train/masks/", "val/images/", "val/masks/"], "looks like images and masks"),
    ],
)
def test_what_could_be_misread_is_refused_with_what_is_expected(tmp_path, folders, reason):
    message = refused(fill(tmp_path, *folders))
    assert re.search(reason, message)
    assert any(hint in message for hint in ("expected ", "rename one to train", "use --task detect"))


def test_boxes_beside_images_are_named(tmp_path):
    fill(tmp_path, "train/", "val/")
    (tmp_path / "train" / "labels.json").write_text('{"categories": [], "images": [], "annotations": []}')
    assert "for boxes, move labels.json to DATA/annotations/instances_train.json" in refused(tmp_path)


@pytest.mark.parametrize("folders", [["images/", "labels/0.txt"], ["outer/train/", "outer/train/000.txt"]])
def test_files_that_cannot_be_read_are_named_to_detectors_too(tmp_path, folders):
    assert not find_coco(fill(tmp_path, *folders))
    with pytest.raises(DataError, match=r"looks like YOLO data .*, but none of the \.txt files can be read"):
        open_coco(tmp_path)


def test_classes_may_be_called_as_splits(tmp_path):
    pile = fill(tmp_path / "pile", "", classes=("train", "car", "valid"))
    assert open_source(pile).classes == ("car", "train", "valid")
    split = fill(tmp_path / "split", "train", "val", classes=("train", "valid"))
    source = open_source(split)
    assert (source.classes, len(source.train), len(source.val)) == (("train", "valid"), 6, 6)


@pytest.mark.parametrize(
    ("folders", "warning"),
    [
        (["train", "val", "test/"], "not used: test; only train and val of DATA are read"),
        (["train", "dev", "test/images/"], "not used: test; only train and dev of DATA are read"),
        (["train", "val", "test", "testing"], "not used: testing; only train and val and test of DATA are read"),
        (["train", "val", "test/", "more"], "not used: more, test; only train and val of DATA are read"),
        (["train", "val", "train/bird/a.txt"], "no images in DATA/train/bird"),
        (["", "bird/a.txt"], "no images in DATA/bird"),
        (["train", "val", "train/"], "skipped: 3 images in DATA/train, beside the class folders"),
        (["", "cat/a.txt", "dog/b.txt", "dog/c.mp4"], "skipped: 3 files that are not images (2 .txt, 1 .mp4)"),
        (["", "cat/@eaDir/"], "skipped: 1 hidden file or folder, such as DATA/cat/@eaDir"),
        (
            ["", "cat/.ipynb_checkpoints/"],
            "skipped: 1 hidden file or folder, such as DATA/cat/.ipynb_checkpoints",
        ),
        (["", "cat/._000.png"], "skipped: 1 hidden file or folder, such as DATA/cat/._000.png"),
        (["", "bird/x/", "bird/y/"], "1 class in DATA with images only in subfolders, such as bird: x, y"),
    ],
)
def test_what_is_not_used_is_said(tmp_path, run, folders, warning):
    source = open_source(fill(tmp_path, *folders))
    assert warning in [line.replace(str(tmp_path), "DATA") for line in source.warnings]
    assert warning in run("info", tmp_path)[1].replace(str(tmp_path), "DATA")
    hidden = {"@eaDir", ".trash", "._000.png"}
    assert not any(hidden & set(path.parts) for path in source.whole().images)


def test_what_nobody_expects_to_be_read_is_not_worth_a_line(tmp_path):
    fill(tmp_path, "", "__MACOSX/cat/._000.png")
    for name in (".DS_Store", ".gitkeep"):
        (tmp_path / "cat" / name).write_bytes(b"x")
    source = open_source(tmp_path)
    assert (source.classes, source.warnings) == (("cat", "dog"), ())


def test_folders_in_a_class_belong_to_it(tmp_path):
    fill(tmp_path, "train", "val", "train/cat/indoor/", "train/dog/indoor/")
    source = open_source(tmp_path)
    assert (source.classes, len(source.train), source.warnings) == (("cat", "dog"), 12, ())


def test_the_images_of_each_class_may_lie_in_a_folder_of_one_name(tmp_path):
    source = open_source(fill(tmp_path, "train/cat/images/", "train/dog/images/", "val/cat/images/", "val/dog/images/"))
    assert (source.classes, len(source.train), len(source.val)) == (("cat", "dog"), 6, 6)


def test_a_coco_folder_is_not_two_classes(tmp_path, run):
    """Whatever its annotation files are called; shards cannot be made from it."""
    fill(tmp_path, "train2017/", "val2017/")
    (tmp_path / "annotations").mkdir()
    for name in ("train", "val"):
        (tmp_path / "annotations" / f"{name}.json").write_text('{"images": [], "annotations": [], "categories": []}')
    assert "DATA is a COCO folder with boxes and masks: use --task detect or --task segment" in refused(tmp_path)
    code, _, err = run("shard", tmp_path, "--out", tmp_path.with_name("shards"))
    assert (code, "is a COCO folder" in err) == (2, True)


def test_a_file_named_as_a_split_is_none(tmp_path):
    write_pictures(tmp_path / "a", 60, 3)
    write_pictures(tmp_path / "b", 160, 3)
    picture(50).save(tmp_path / "train.png")
    source = open_source(tmp_path)
    assert source.classes == ("a", "b")
    assert source.warnings == (f"skipped: 1 image in {tmp_path}, beside the class folders",)
