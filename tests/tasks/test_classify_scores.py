"""Balanced accuracy, macro F1 and the numbers of each class, against scikit-learn."""

import csv

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from shvit.console import main_metrics
from shvit.data.loader import Batch
from shvit.tasks.classify import Classify

CASES = {
    "every class occurs": ([0, 0, 1, 2, 2, 3, 4], [0, 1, 1, 2, 0, 3, 4]),
    "a class without images, but with predictions": ([0, 0, 1, 3, 4], [0, 2, 1, 2, 4]),
    "a class that is never predicted": ([0, 0, 1, 2, 3, 4], [0, 0, 1, 0, 3, 4]),
    "classes that occur nowhere": ([0, 0, 0, 1], [0, 0, 1, 1]),
    "nothing is right": ([0, 1, 2], [1, 2, 0]),
    "one class only": ([2, 2, 2], [2, 2, 2]),
    "50 to 1": ([0] * 50 + [1], [0] * 51),
}


def evaluation(labels, predicted):
    """By the task itself, of logits that give these predictions."""
    one_hot = torch.nn.functional.one_hot(torch.tensor(predicted), 5).float()
    images = torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)
    batch = Batch(images, torch.tensor(labels), list(range(len(labels))), {})
    return Classify(list("abcde")).evaluate(lambda each: one_hot[each[:, 0, 0, 0].long()], [batch])


@pytest.mark.filterwarnings("ignore:y_pred contains classes", "ignore:A single label was found")
@pytest.mark.parametrize(("labels", "predicted"), CASES.values(), ids=CASES)
def test_metrics_are_scikit_learns(labels, predicted):
    result = evaluation(labels, predicted)
    metrics = result.metrics()
    assert metrics["top1"] == pytest.approx(sk.accuracy_score(labels, predicted))
    assert metrics["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(labels, predicted))
    assert metrics["macro_f1"] == pytest.approx(sk.f1_score(labels, predicted, average="macro", zero_division=0))
    scores = result.scores()
    expected = sk.precision_recall_fscore_support(labels, predicted, labels=range(5), zero_division=0)
    for ours, theirs in zip((scores.precision, scores.recall, scores.f1, scores.images), expected, strict=True):
        np.testing.assert_allclose(ours, theirs)


def test_random_predictions_of_many_classes():
    generator = np.random.default_rng(0)
    labels, predicted = generator.integers(0, 5, 400).tolist(), generator.integers(0, 5, 400).tolist()
    metrics = evaluation([label % 256 for label in labels[:200]], predicted[:200]).metrics()
    assert metrics["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(labels[:200], predicted[:200]))
    assert metrics["macro_f1"] == pytest.approx(sk.f1_score(labels[:200], predicted[:200], average="macro"))


def test_a_model_that_knows_only_the_large_class_is_not_mistaken_for_a_good_one():
    result = evaluation(*CASES["50 to 1"])
    assert result.summary() == "top-1 98.04%, top-5 100.00%, balanced accuracy 50.00%, macro F1 49.50%"


def test_tables_have_a_row_for_each_class_with_images(tmp_path):
    result = evaluation(*CASES["a class without images, but with predictions"])
    [(header, rows)] = result.tables()
    assert header == ["class", "images", "precision", "recall", "F1"]
    assert rows == [
        ["a", "2", "100.0%", "50.0%", "66.7%"],
        ["b", "1", "100.0%", "100.0%", "100.0%"],
        ["d", "1", "0.0%", "0.0%", "0.0%"],
        ["e", "1", "100.0%", "100.0%", "100.0%"],
    ]
    result.write(tmp_path, raw_cells=False)
    with (tmp_path / "per_class.csv").open() as file:
        written = list(csv.DictReader(file))
    assert list(written[0]) == ["class", "images", "top1", "precision", "recall", "f1"]
    assert written[0] == {"class": "a", "images": "2", "top1": "0.500000", "precision": "1.000000",
                          "recall": "0.500000", "f1": "0.666667"}  # fmt: skip
    assert [row["class"] for row in written] == ["a", "b", "d", "e"]


def test_the_metrics_that_stand_beside_another():
    metrics = {"top1": 0.9, "balanced_accuracy": 0.8, "macro_f1": 0.7, "loss": 0.25, "images": 3}
    assert main_metrics(metrics) == "top-1 90.00%, balanced accuracy 80.00%, macro F1 70.00%"
    by_balance = main_metrics(metrics, first="balanced_accuracy")
    assert by_balance == "balanced accuracy 80.00%, top-1 90.00%, macro F1 70.00%"
    assert main_metrics(metrics, first="loss").startswith("loss 0.2500, top-1 90.00%, ")
    assert main_metrics({"top1": 0.9}) == "top-1 90.00%"  # an older model file
    assert main_metrics({"AP": 0.5, "AP50": 0.7}) == "AP 50.00%, AP50 70.00%"
    assert main_metrics({"published_top1": 0.7}) == ""
