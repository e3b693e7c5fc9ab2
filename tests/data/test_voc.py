"""Pascal VOC datasets in the layouts that people have, and what is wrong in their XML files."""

import numpy as np
import pytest
from PIL import Image

from conftest import SHARED
from shvit.data.coco import open_coco
from shvit.data.object_formats import open_objects
from shvit.errors import DataError


def xml(*objects: str, name: str = "", size: str = "<size><width>100</width><height>50</height></size>") -> str:
    return f"<annotation><filename>{name}</filename>{size}{''.join(objects)}</annotation>"


def thing(name: str, *sides: float, difficult: int = 0) -> str:
    box = "".join(f"<{key}>{side}</{key}>" for key, side in zip(("xmin", "ymin", "xmax", "ymax"), sides, strict=True))
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{box}</bndbox></object>"


def write(folder, labels, files: dict[str, str | None]) -> None:
    for path in (folder, labels):
        path.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        Image.new("RGB", (100, 50), (len(name), 9, 9)).save(folder / f"{name}.jpg")
        if text is not None:
            (labels / f"{name}.xml").write_text(text)


DOG, CAT = xml(thing("dog", 11, 6, 30, 25)), xml(thing("cat", 1, 1, 100, 50), thing("dog", 2, 2, 9, 9, difficult=1))


@pytest.mark.parametrize("nested", ["", "VOC2007", "VOCdevkit/VOC2007"])
@pytest.mark.parametrize("lists", ["ImageSets/Main", "ImageSets"])
def test_layouts(tmp_path, nested, lists):
    root = tmp_path / nested
    write(root / "JPEGImages", root / "Annotations", {"a": DOG, "b": CAT, "c": DOG})
    (root / lists).mkdir(parents=True)
    for name, rows in {"train": "b\na 1\n", "val": "c\n", "dog_train": "a 1\n"}.items():
        (root / lists / f"{name}.txt").write_text(rows)
    data = open_objects(tmp_path)
    assert data.classes == ("cat", "dog")
    assert [path.stem for path in data.train.images] == ["a", "b"]
    assert data.train.objects[0].boxes.tolist() == [[10, 5, 30, 25]]  # pixels are counted from 1
    assert data.train.objects[1].boxes.tolist() == [[0, 0, 100, 50], [1, 1, 9, 9]]
    assert data.train.objects[1].crowd.tolist() == [False, True]
    assert (len(data.val), data.drawn) == (1, False)


def test_xml_beside_images_and_the_order_of_classes(tmp_path):
    for split in ("train", "valid", "test"):
        write(tmp_path / split, tmp_path / split, {f"{split}1": DOG, f"{split}2": CAT})
    (tmp_path / "classes.txt").write_text("dog\ncat\nbird\n")
    data = open_objects(tmp_path)
    assert (len(data.train), len(data.val), len(data.test)) == (2, 2, 2)
    assert data.classes == ("dog", "cat", "bird")
    assert data.train.objects[0].labels.tolist() == [0]
    flat = tmp_path / "train"
    assert len(open_objects(flat).whole()) == 2


def test_trainval_is_divided_and_test_is_kept(tmp_path):
    write(tmp_path / "JPEGImages", tmp_path / "Annotations", dict.fromkeys("abcdefgh", DOG))
    (tmp_path / "ImageSets").mkdir()
    (tmp_path / "ImageSets" / "trainval.txt").write_text("\n".join("abcdef"))
    (tmp_path / "ImageSets" / "test.txt").write_text("g\nh\n")
    data = open_objects(tmp_path)
    assert (len(data.train) + len(data.val), len(data.test), data.drawn) == (6, 2, True)


def test_bad_files_are_named_and_the_rest_is_used(tmp_path):
    bomb = '<!DOCTYPE a [<!ENTITY b "&#97;"><!ENTITY c "&b;&b;">]>' + DOG.replace("dog", "&c;")
    outside = '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]>' + DOG.replace("dog", "&b;")
    files = {
        "a": xml(
            thing("dog", 11, 6, 30, 25),
            thing("dog", 30, 25, 11, 6),
            thing("dog", 90, 40, 140, 90),
            thing("dog", 300, 40, 340, 90),
            "<object><name>dog</name></object>",
            "<object><bndbox/></object>",
            thing("dog", 11, 6, 30, 25),
        ),
        "b": bomb,
        "c": outside,
        "d": "<annotation><object>",
        "e": xml(),
        "f": xml(thing("dog", 1, 1, 9, 9), size="<size><width>7</width><height>8</height></size>"),
        "g": xml(thing("dog", 1, 1, 9, 9), size=""),
    }
    write(tmp_path / "JPEGImages", tmp_path / "Annotations", files)
    (tmp_path / "Annotations" / "alone.xml").write_text(DOG)
    data = open_objects(tmp_path)
    lines, whole = "\n".join(data.warnings), data.whole()
    for expected in (
        "2 XML files left out: it has a DOCTYPE, which is not read for safety, such as b.xml",
        "1 XML file left out: not an XML file, such as d.xml",
        "1 XML file without objects: its image is used as one without objects, such as e.xml",
        "1 label left out: bbox has no width or no height, such as a.xml object 2",
        "1 label with a bbox cut off at the edge of the image, such as a.xml object 3",
        "1 label left out: bbox is outside the image, such as a.xml object 4",
        "2 labels left out: no name, or no bndbox with four numbers, such as a.xml object 5",
        "1 label left out: already listed, such as a.xml object 7",
        "1 image not of the size that its XML file states, such as f.xml: 7x8",
        "1 image cannot be used",
    ):
        assert expected in lines, expected
    found = dict(zip((path.stem for path in whole.images), whole.objects, strict=True))
    assert found["a"].boxes.tolist() == [[10, 5, 30, 25], [89, 39, 100, 50]]
    assert (len(found["e"]), len(found["g"])) == (0, 1)
    assert data.classes == ("dog",)


def test_files_without_objects_are_refused(tmp_path):
    write(tmp_path / "JPEGImages", tmp_path / "Annotations", {"a": xml(), "b": xml()})
    with pytest.raises(DataError, match="no XML file has an object with a name and a bndbox"):
        open_objects(tmp_path)


@pytest.mark.skipif(not (SHARED / "bccd").is_dir(), reason="needs the shared photographs")
def test_the_same_data_as_coco_has_the_same_objects():
    coco, voc = (open_objects(SHARED / "bccd" / part) for part in ("", "voc"))
    wholes = [data.whole().joined(data.test) if data.test else data.whole() for data in (coco, voc)]
    known, found = ({path.name: one for path, one in zip(x.images, x.objects, strict=True)} for x in wholes)
    assert known.keys() == found.keys()
    for name, objects in known.items():
        np.testing.assert_array_equal(objects.boxes, found[name].boxes)
        np.testing.assert_array_equal(objects.areas, found[name].areas)
        labels = [coco.classes[label] for label in objects.labels]
        assert labels == [voc.classes[label] for label in found[name].labels]
    assert open_coco(SHARED / "bccd").fingerprint == coco.fingerprint
