"""What `shvit info DATA` tells is what is there."""

import json

import pytest
from PIL import Image

from conftest import SHARED, picture, write_coco
from shvit.data.survey import survey


def test_a_coco_folder(photos, run):
    facts = survey(SHARED / "coco421")
    assert facts["task"] == "detect"
    assert len(facts["classes"]) == 80
    assert sum(row["train"] for row in facts["classes"]) == facts["splits"]["train"]["objects"] == 2016
    train = facts["splits"]["train"]
    assert train["small"] + train["medium"] + train["large"] == 2016
    assert (train["images"], train["crowds"], train["with_mask"]) == (215, 19, 2035)
    assert facts["problems"] == []
    code, text, _ = run("info", SHARED / "coco421")
    assert code == 0
    assert "… 60 more" in text
    assert "no problems found" in text


def test_a_folder_with_bad_and_shared_images(folder, run):
    (folder / "train" / "dark" / "000.png").write_bytes(b"")
    copied = (folder / "train" / "light" / "000.png").read_bytes()
    (folder / "val" / "light" / "100.png").write_bytes(copied)
    code, text, _ = run("info", folder, "--json")
    assert code == 0
    facts = json.loads(text)
    assert facts["classes"] == [{"name": "dark", "train": 20, "val": 6}, {"name": "light", "train": 20, "val": 6}]
    assert facts["splits"]["train"] == {
        "images": 40, "unusable": 1, "looked_at": 40, "height": [40, 40, 40], "width": [36, 36, 36],
    }  # fmt: skip
    bad, shared = facts["problems"]
    assert bad.startswith("train: 1 image cannot be used, such as ")
    assert bad.endswith("000.png: file is empty")
    assert shared.startswith("1 validation image also in the training split, such as ")


def test_pictures_that_are_not_as_annotated(tmp_path):
    folder = write_coco(tmp_path)
    (folder / "train2017" / "a.png").write_bytes(b"")
    picture(90, size=(30, 30)).save(folder / "val2017" / "b.png")
    assert survey(folder)["problems"] == [
        "train: 1 image cannot be used, such as a.png: file is empty",
        "val: 1 image not of the size that the annotations state, such as b.png: 30x30",
    ]


def test_pictures_that_are_annotated_as_they_are_stored(tmp_path):
    path = write_coco(tmp_path) / "val2017" / "b.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(path) as image:
        assert image.width != image.height
        image.save(path, exif=exif)
    assert survey(tmp_path)["problems"] == [
        "val: 1 image annotated as stored: the EXIF orientation is ignored, such as in b.png"
    ]


def test_a_folder_named_as_a_network_is_not_asked_about(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shvit_s1").mkdir()
    assert "M parameters" in run("info", "shvit_s1")[1]


def test_one_pile(run):
    facts = survey("digits")
    assert facts["drawn"]
    assert facts["splits"]["train"]["height"] == [8, 8, 8]
    assert "validation images are drawn at random" in run("info", "digits")[1]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["digits", "--image-size", "64"], "--image-size has no effect on datasets"),
        (["{tmp}"], "no class folders with images"),
    ],
)
def test_data_that_is_none(run, tmp_path, arguments, reason):
    code, _, err = run("info", *(text.format(tmp=tmp_path) for text in arguments))
    assert code == 2
    assert reason in err
