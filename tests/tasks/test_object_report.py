"""A detector's page: matches, precision and recall agree with COCO's own evaluation."""

from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import write_coco
from shvit.data.coco import Objects, open_coco
from shvit.data.letterbox import GroundTruth, Letterbox
from shvit.tasks.base import ReportSubject
from shvit.tasks.object_matching import FALSE_ALARM, FOUND, IN_CROWD, Matched, best_f1
from shvit.tasks.object_report import object_cards, report_objects
from shvit.tasks.objects import Detections, ObjectOutputs, ObjectsEvaluation, judge

pytest.importorskip("faster_coco_eval")
CLASSES = ("a", "b", "c")


def random_results(images: int = 40, seed: int = 0):
    generator = np.random.default_rng(seed)
    truths, found = [], []
    for number in range(images):
        count = int(generator.integers(0, 6))
        corners = generator.uniform(0, 150, (count, 2))
        boxes = np.concatenate([corners, corners + generator.uniform(20, 60, (count, 2))], 1).astype(np.float32)
        labels, crowd = generator.integers(0, 3, count), generator.random(count) < 0.1
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
        truths.append(
            GroundTruth(number, Letterbox(220, 220, 1, 1), Objects(boxes, labels, crowd, areas, [None] * count))
        )
        near = boxes + generator.normal(0, 3, boxes.shape)
        other = generator.uniform(0, 150, (3, 2))
        near = np.concatenate([near, np.concatenate([other, other + 40], 1)]).astype(np.float32)
        names = np.where(generator.random(len(near)) < 0.85, [*labels, 0, 1, 2], generator.integers(0, 3, len(near)))
        scores = np.sort(generator.random(len(near)).astype(np.float32))[::-1].copy()
        order = generator.permutation(len(near))
        found.append(Detections(torch.tensor(near[order]), torch.tensor(scores), torch.tensor(names[order])))
    return truths, found


@pytest.mark.parametrize("seed", range(3))
def test_precision_and_recall_are_cocos(seed):
    truths, found = random_results(seed=seed)
    numbers, _ = judge(CLASSES, truths, found, "bbox")
    matched = Matched.of(3, truths, found)
    mean = np.mean([matched.precisions(label).mean() for label in range(3)])
    assert 0.1 < mean < 0.95
    assert mean == pytest.approx(numbers["AP50"], abs=1e-9)


def test_matches_by_hand():
    """Two objects and a crowd. The better of two boxes on an object is right, the other is a false alarm."""
    boxes = np.array([[0, 0, 10, 10], [50, 50, 60, 60], [100, 100, 200, 200]], np.float32)
    objects = Objects(boxes, np.zeros(3, np.int64), np.array([False, False, True]), np.full(3, 100.0), [None] * 3)
    truth = GroundTruth(1, Letterbox(220, 220, 1, 1), objects)
    places = [[0, 0, 10, 9], [0, 0, 10, 10], [120, 120, 130, 130], [50, 50, 60, 60]]
    labels = [0, 0, 0, 1]  # the last box is on the second object, but of another class
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6])
    found = Detections(torch.tensor(places, dtype=torch.float32), scores, torch.tensor(labels))
    matched = Matched.of(2, [truth], [found])
    assert matched.objects.tolist() == [2, 0]
    assert matched.verdicts.tolist() == [FOUND, FALSE_ALARM, IN_CROWD, FALSE_ALARM]
    assert matched.owners.tolist() == [0, -1, -1, -1]
    assert matched.best_threshold() == (pytest.approx(0.9), 1.0, 0.5)
    numbers = {"threshold": 0.9, "precision": 1.0, "recall": 0.5, "f1": 2 / 3}
    assert best_f1(2, [truth], [found]) == pytest.approx(numbers)
    assert best_f1(2, [truth], [Detections(found.boxes[:0], scores[:0], found.labels[:0])]) == {}


def evaluation_of(root: Path) -> tuple[ObjectsEvaluation, ReportSubject]:
    """The image with a tree: the tree is missed, and a cat is a false alarm. The other image has nothing."""
    source = open_coco(write_coco(root))
    truths = [
        GroundTruth(source.val.ids[i], Letterbox(40, 64, 1, 1), source.val.objects[i]) for i in range(len(source.val))
    ]
    cat, tree = source.classes.index("cat"), source.classes.index("tree")
    rows = {5: ([[40.0, 20, 60, 38]], [0.95], [cat]), 3: ([], [], [])}
    found = [
        Detections(torch.tensor(boxes).reshape(-1, 4), torch.tensor(scores), torch.tensor(labels, dtype=torch.int64))
        for boxes, scores, labels in (rows[truth.image_id] for truth in truths)
    ]
    assert tree != cat
    numbers, by_class = judge(source.classes, truths, found, "bbox")
    outputs = ObjectOutputs([0, 1], truths, found)
    evaluation = ObjectsEvaluation(source.classes, {"bbox": numbers}, {"bbox": by_class}, 2, {}, outputs)
    return evaluation, ReportSubject(None, source.val, "best.safetensors")


def test_misses_and_false_alarms_are_drawn(tmp_path):
    evaluation, subject = evaluation_of(tmp_path)
    report = report_objects(evaluation, subject)
    [section] = [each for each in report.sections if each.title == "Misses and false alarms"]
    [missed] = section.galleries[0].pictures
    assert missed.caption.startswith("a.png\n")
    [box] = [mark for mark in missed.boxes if mark.tone == "wrong"]
    assert box.area == pytest.approx((4 / 64, 4 / 40, 24 / 64, 20 / 40))
    assert box.text == "missed: tree"


def test_pictures_that_are_gone_are_skipped(tmp_path):
    evaluation, subject = evaluation_of(tmp_path)
    for path in subject.images.images:
        path.unlink()
    sections = report_objects(evaluation, subject).sections
    assert [picture for each in sections for gallery in each.galleries for picture in gallery.pictures] == []


def test_cards_name_what_they_measure():
    numbers = {"AP": 0.5, "AP50": 0.7, "AP75": -1.0, "AR100": 0.6}
    cards = object_cards({"AP": 0.4, "bbox": numbers, "segm": {**numbers, "AP": 0.4}, "images": 3})
    shown = {card.label: card.value for card in cards}
    assert shown["AP of masks"] == "40.0 %"
    assert shown["AP of boxes"] == "50.0 %"
    assert "AP75 of masks" not in shown  # no object to measure it on
