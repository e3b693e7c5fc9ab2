"""Areas that contradict masks and boxes are found, and recomputed."""

import json

import numpy as np
import pytest
from faster_coco_eval.core import mask

from conftest import COCO, SHARED, write_coco
from shvit.data.coco import open_coco
from shvit.data.segments import enclosed, plausible

SQUARE = (np.array([10, 10, 50, 10, 50, 50, 10, 50], float),)


def with_area(tmp_path, area, **changes):
    """A COCO folder whose first annotation, a polygon of 320 pixels, has this area."""
    first, *others = COCO["annotations"]
    return write_coco(tmp_path, COCO | {"annotations": [first | {"area": area} | changes, *others]})


@pytest.mark.parametrize("area", [24, 93027, 0, -5, float("nan"), float("inf")])
def test_contradicting_areas_are_computed_anew(tmp_path, area, run):
    data = with_area(tmp_path, area)
    source = open_coco(data)
    assert source.val.objects[0].areas[0] == 320
    [line] = [line for line in source.warnings if "val2017" in line and "recomputed" in line]
    assert line == (
        "instances_val2017.json: 1 area recomputed: the stated area contradicts the mask or box, such as annotation 1: "
        f"{area:,.10g} instead of 320"
    )
    code, printed, errors = run("info", data, "--json")
    assert code == 0, errors
    assert line in json.loads(printed)["problems"]


def test_without_a_mask_the_box_decides(tmp_path):
    source = open_coco(with_area(tmp_path, 1_000, segmentation=[]))
    assert source.val.objects[0].areas[0] == 320
    assert any("1,000 instead of 320" in line for line in source.warnings)
    assert open_coco(with_area(tmp_path, 90, segmentation=[])).val.objects[0].areas[0] == 90  # of a mask left out


@pytest.mark.parametrize("area", [300.5, 320, 330, None])
def test_plausible_areas_stay(tmp_path, area):
    source = open_coco(with_area(tmp_path, area))
    assert source.val.objects[0].areas[0] == (area or 320)
    assert not any("areas" in line for line in source.warnings)


def test_areas_of_all_kinds_of_masks():
    drawn = np.zeros((60, 80), np.uint8)
    drawn[3:21, 5:77] = 1
    drawn[40:58, 10:30] = 1
    packed = mask.encode(np.asfortranarray(drawn))
    ends = np.flatnonzero(np.diff(np.concatenate([[0], drawn.T.flatten(), [0]])))
    counts = np.diff(np.concatenate([[0], ends, [drawn.size]])).tolist()
    for code in (packed["counts"].decode(), counts):
        assert enclosed({"size": [60, 80], "counts": code}) == drawn.sum()
    assert enclosed((*SQUARE, SQUARE[0] + 100)) == 3200
    noise = (np.random.default_rng(0).random((200, 300)) < 0.3).astype(np.uint8)
    code = mask.encode(np.asfortranarray(noise))["counts"].decode()
    assert enclosed({"size": [200, 300], "counts": code}) == noise.sum()


def test_areas_by_the_box_are_plausible():
    """Some tools give the box's area though there is a mask."""
    triangle = (np.array([0, 0, 100, 0, 0, 100], float),)
    assert plausible(5_000, triangle, 10_000)
    assert plausible(10_000, triangle, 10_000)
    assert not plausible(2_500, triangle, 10_000)
    assert not plausible(20_000, triangle, 10_000)


def test_published_areas_come_back(photos, tmp_path):
    published = open_coco(SHARED / "coco421").val
    document = json.loads((SHARED / "coco421/annotations/instances_val2017.json").read_text())
    for row in document["annotations"]:
        row["area"] = 24 if row["bbox"][2] * row["bbox"][3] > 300 and not row["iscrowd"] else row["area"]
    (tmp_path / "annotations").mkdir()
    (tmp_path / "val2017").symlink_to(SHARED / "coco421" / "val2017")
    (tmp_path / "annotations/instances_val2017.json").write_text(json.dumps(document))
    source = open_coco(tmp_path)
    assert any("contradicts the mask or box" in line for line in source.warnings)
    areas = {id_: one.areas for id_, one in zip(source.whole().ids, source.whole().objects, strict=True)}
    for id_, one in zip(published.ids, published.objects, strict=True):
        np.testing.assert_allclose(areas[id_], one.areas, rtol=1e-6)
