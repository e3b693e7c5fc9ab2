"""COCO's metrics are those of pycocotools for the same detections."""

import contextlib
import io
import json

import numpy as np
import pytest
import torch
from faster_coco_eval.core import mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from conftest import SHARED, write_coco
from shvit.data.coco import open_coco
from shvit.data.letterbox import DetectionEvalReader, GroundTruth, Letterbox, rasterize
from shvit.data.loader import Batch, Loader
from shvit.data.transforms import Preprocess
from shvit.errors import Failure, InputError
from shvit.tasks import objects
from shvit.tasks.detect import Detect, DetectAnchors
from shvit.tasks.objects import COCO_METRICS, Detections, coco_results, encode, judge
from shvit.tasks.segment import Segment, SegmentLight


def by_pycocotools(annotations, rows, kind: str) -> dict[str, float]:
    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO(str(annotations))
        evaluation = COCOeval(known, known.loadRes(rows), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(COCO_METRICS, evaluation.stats.tolist(), strict=True))


def roughly(truth: GroundTruth, classes: int, generator) -> Detections:
    """The objects of an image, some of them moved, duplicated, left out or with another class, at random."""
    boxes, labels, masks = [], [], []
    everywhere = Letterbox(truth.letterbox.height, truth.letterbox.width, 1, 1)
    for box, label, segment in zip(truth.objects.boxes, truth.objects.labels, truth.objects.segments, strict=True):
        mask = rasterize(segment, everywhere, (truth.letterbox.height, truth.letterbox.width))
        for _ in range(generator.integers(0, 3)):
            shift = generator.normal(0, 0.08, 4) * (box[2:] - box[:2]).repeat(2)
            boxes.append(np.sort((box + shift).reshape(2, 2), axis=0).flatten())
            labels.append(label if generator.random() < 0.9 else generator.integers(classes))
            masks.append(encode(np.roll(mask, generator.integers(-6, 7, 2), (0, 1))))
    scores = generator.random(len(labels))
    order = np.argsort(-scores, kind="stable")[:100]
    return Detections(
        torch.tensor(np.array(boxes, np.float32).reshape(-1, 4)[order]),
        torch.tensor(scores[order]),
        torch.tensor(np.array(labels, np.int64)[order]),
        [masks[place] for place in order],
    )


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_numbers_are_those_of_pycocotools(kind):
    if not (SHARED / "coco421").is_dir():
        pytest.skip("the real photographs are not beside this checkout")
    source = open_coco(SHARED / "coco421")
    generator = np.random.default_rng(0)
    truths = [
        GroundTruth(id_, Letterbox(*map(int, size), 1, 1), found)
        for id_, size, found in zip(source.val.ids, source.val.sizes, source.val.objects, strict=True)
    ]
    found = [roughly(truth, len(source.classes), generator) for truth in truths]
    numbers, by_class = judge(source.classes, truths, found, kind)
    rows = [row for truth, one in zip(truths, found, strict=True) for row in coco_results(truth.image_id, one)]
    for row in rows:
        row["category_id"] = source.categories[row["category_id"] - 1]
        if kind == "segm":  # as detectron2 and mmdet do, so that sizes are those of the masks
            del row["bbox"]
    expected = by_pycocotools(SHARED / "coco421" / "annotations" / "instances_val2017.json", rows, kind)
    assert 0.1 < expected["AP"] < 0.9
    assert numbers == pytest.approx(expected, abs=1e-6)
    assert np.mean([ap for ap in by_class if ap >= 0]) == pytest.approx(expected["AP"], abs=1e-6)


def perfect(batches, classes, masks: bool, score: float = 0.9):
    """An engine that returns the ground truth, with this score, in the form of the network's outputs."""
    truths = [truth for batch in batches for truth in batch.targets]

    def predict(images):
        rows = torch.zeros(len(images), 100, 790 if masks else 4 + classes)
        for place in range(len(images)):
            truth = truths.pop(0)
            boxes = torch.from_numpy(truth.letterbox.to_input(truth.objects.boxes))[~truth.objects.crowd]
            labels = torch.from_numpy(truth.objects.labels)[~truth.objects.crowd]
            rows[place, : len(boxes), :4] = boxes
            if masks:
                rows[place, : len(boxes), 4] = score
                rows[place, : len(boxes), 5] = labels.float()
                rows[place, : len(boxes), 6:] = 1.0
            else:
                rows[place, torch.arange(len(boxes)), 4 + labels] = score
        return rows

    return predict


@pytest.mark.parametrize("task", [DetectAnchors, Segment])
def test_finding_everything_is_one(tmp_path, task):
    source = open_coco(write_coco(tmp_path))
    task = task(source.classes)
    batches = list(Loader(source.val, task.eval_reader(Preprocess(128, fit="whole")), 2))
    evaluation = task.evaluate(perfect(batches, len(source.classes), task.name == "segment"), batches)
    metrics = evaluation.metrics()
    assert metrics["bbox"]["AP"] == pytest.approx(1.0)
    assert (metrics["images"], metrics["bad_images"]) == (2, 0)
    assert metrics["bbox"]["APl"] == -1
    if task.name == "segment":
        assert metrics["AP"] == metrics["segm"]["AP"] > 0.6  # a full 28x28 mask is not quite the box
    assert set(evaluation.per_class()) == {"tree"}
    json.dumps(metrics)


@pytest.mark.parametrize(("task", "ap"), [(Detect, 1), (SegmentLight, 1), (DetectAnchors, 0), (Segment, 0)])
def test_low_scores_count_for_detectors_without_anchors(tmp_path, task, ap):
    source = open_coco(write_coco(tmp_path))
    task = task(source.classes)
    batches = list(Loader(source.val, task.eval_reader(Preprocess(128, fit="whole")), 2))
    engine = perfect(batches, len(source.classes), task.name == "segment", score=0.01)
    assert task.evaluate(engine, batches).metrics()["bbox"]["AP"] == pytest.approx(ap)


def test_masks_of_boxes_that_reach_into_the_margin_keep_their_place():
    """The right half of the box lies in the margin, so the left half of its mask fills what is visible."""
    outputs = torch.zeros(1, 100, 6 + 28 * 28)
    outputs[0, 0, :6] = torch.tensor([32.0, 8, 64, 40, 0.9, 1])
    outputs[0, 0, 6:].view(28, 28)[:, :14] = 1.0
    [found] = Segment("ab").decode(outputs, [Letterbox(64, 48, 1.0, 1.0)])
    assert found.boxes.tolist() == [[32, 8, 48, 40]]
    drawn = mask.decode(found.masks[0])
    assert drawn.shape == (64, 48)
    rows, columns = drawn.nonzero()
    assert np.abs(np.array([columns.min(), rows.min(), rows.max()]) - [32, 8, 39]).max() <= 1
    assert columns.max() >= 46  # stretched over the cut box it would end at 40


def test_finding_nothing_is_zero(tmp_path):
    source = open_coco(write_coco(tmp_path))
    task = DetectAnchors(source.classes)
    batches = list(Loader(source.val, DetectionEvalReader(Preprocess(128, fit="whole")), 2))
    evaluation = task.evaluate(lambda images: torch.zeros(len(images), 9, 6), batches)
    assert evaluation.metrics()["AP"] == 0


def test_images_are_counted_once_over_all_processes(tmp_path):
    source = open_coco(write_coco(tmp_path))
    task = DetectAnchors(source.classes)
    one, two = Loader(source.val, DetectionEvalReader(Preprocess(128, fit="whole")), 1)
    alone = task.evaluate(perfect([one, two], 2, False), [one, two]).metrics()
    parts = []
    for batch in (one, two):
        task.evaluate(perfect([batch], 2, False), [batch], lambda counts: (parts.append(counts), [counts])[1])
    together = task.evaluate(perfect([], 2, False), [], lambda _: parts).metrics()
    assert together == alone


def test_no_usable_image_is_a_failure():
    bad = Batch(torch.empty(0, 3, 0, 0), [], [], {0: "no such file"})
    with pytest.raises(Failure, match="none of 1 image could be used"):
        DetectAnchors("ab").evaluate(lambda images: images, [bad])


def test_boxes_of_one_class_that_overlap_are_one_object():
    outputs = torch.zeros(1, 4, 6)
    outputs[0, :, :4] = torch.tensor([[10.0, 10, 50, 50], [12, 10, 50, 50], [10, 10, 50, 50], [0, 0, 0, 9]])
    outputs[0, :, 4:] = torch.tensor([[0.9, 0.0], [0.8, 0.0], [0.0, 0.7], [0.9, 0.9]])
    [found] = DetectAnchors("ab").decode(outputs, [Letterbox(100, 100, 1, 1)])
    assert found.labels.tolist() == [0, 1]
    assert found.scores.tolist() == pytest.approx([0.9, 0.7])
    [few] = DetectAnchors("ab").decode(outputs, [Letterbox(100, 100, 1, 1)], 0.8)
    assert len(few) == 1


def test_without_the_library_its_extra_is_named(monkeypatch):
    monkeypatch.setattr(objects, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"pip install 'shvit\[coco\]'"):
        DetectAnchors("ab")
