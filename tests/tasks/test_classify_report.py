"""The numbers of a classifier's page are those of an independent computation."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, precision_recall_fscore_support

from conftest import tiny_architecture, write_pictures
from shvit.data.dataset import Split
from shvit.data.transforms import Preprocess
from shvit.engines.exported import Exported
from shvit.modelfile import ModelFile
from shvit.report.blocks import Section
from shvit.tasks.base import ReportSubject
from shvit.tasks.classify import Classify
from shvit.tasks.classify_evaluation import ClassifyEvaluation, Outputs
from shvit.tasks.intervals import balanced_accuracy_interval, macro_f1_interval


def evaluated(labels, logits, classes=None) -> ClassifyEvaluation:
    labels, logits = np.asarray(labels), np.asarray(logits, np.float32)
    count = logits.shape[1]
    classes = tuple(classes or (f"class {index}" for index in range(count)))
    confusion = np.zeros((count, count), np.int64)
    np.add.at(confusion, (labels, logits.argmax(1)), 1)
    top5 = int((np.argsort(-logits, axis=1)[:, :5] == labels[:, None]).sum())
    outputs = Outputs(np.arange(len(labels)), labels, logits)
    return ClassifyEvaluation(classes, confusion, top5, 1.0, {}, outputs)


def drawn(count: int, images: int, seed: int = 0):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, count, images)
    logits = generator.normal(0, 1, (images, count))
    logits[np.arange(images), labels] += 1.5
    return labels, logits


def subject(tmp_path, evaluation, **changes) -> ReportSubject:
    """The model, and a folder of pictures of which one is gone."""
    images = evaluation.images
    write_pictures(tmp_path / "pictures", 90, min(images, 60))
    paths = sorted((tmp_path / "pictures").iterdir())
    split = Split([paths[i % len(paths)] for i in range(images)], evaluation.outputs.labels, [*map(str, range(images))])
    model = ModelFile(tiny_architecture(len(evaluation.classes)).build().eval(), evaluation.classes, Preprocess(32))
    return ReportSubject(replace(model, **changes) if changes else model, split, "best.safetensors")


def section(report, title) -> Section:
    [found] = [each for each in report.sections if each.title == title]
    return found


def test_scores_of_classes_are_sklearns(tmp_path):
    evaluation = evaluated(*drawn(7, 300))
    report = Classify(evaluation.classes).report(evaluation, subject(tmp_path, evaluation))
    predicted, labels = evaluation.outputs.logits.argmax(1), evaluation.outputs.labels
    precision, recall, f1, count = precision_recall_fscore_support(labels, predicted)
    [table] = section(report, "Classes").tables
    rows = {row[0]: row for row in table.rows}
    for index in range(7):
        _, images, share, _, exact, score, _ = rows[f"class {index}"]
        assert (images, share, exact, score) == (
            count[index],
            *(pytest.approx(each[index]) for each in (recall, precision, f1)),
        )
    assert [row[2] for row in table.rows] == sorted(recall)
    cards = {card.label: card for card in report.cards}
    assert cards["Top-1 accuracy"].value == f"{100 * (predicted == labels).mean():.1f} %"
    assert cards["Macro F1"].value == f"{100 * f1_score(labels, predicted, average='macro'):.1f} %"
    assert cards["Balanced accuracy"].value == f"{100 * recall.mean():.1f} %"
    assert cards["Images"].value == "300"


def test_intervals_hold_in_95_of_100_cases():
    """The interval of a sample holds the value of the whole population about as often as it promises."""
    chances = np.array([[0.9, 0.1, 0.0], [0.2, 0.7, 0.1], [0.1, 0.3, 0.6]])
    counts = np.array([60, 30, 10])
    everything = chances * counts[:, None]
    balanced = np.diag(chances).mean()
    f1 = np.mean(2 * np.diag(everything) / (everything.sum(0) + everything.sum(1)))
    generator, held = np.random.default_rng(0), []
    for _ in range(200):
        confusion = np.array([generator.multinomial(n, row) for n, row in zip(counts, chances, strict=True)])
        pairs = (balanced_accuracy_interval(confusion), balanced), (macro_f1_interval(confusion), f1)
        held.append([low <= value <= high for (low, high), value in pairs])
    shares = np.mean(held, axis=0)
    assert (shares > 0.88).all()
    assert (shares < 1).any()


def test_the_interval_of_equal_classes_is_wilsons():
    confusion = np.diag([40, 40]) + np.array([[0, 10], [10, 0]])
    low, high = balanced_accuracy_interval(confusion)
    assert (low, high) == (pytest.approx(0.7112, abs=1e-4), pytest.approx(0.8666, abs=1e-4))  # 80 of 100, by hand


def test_mistakes_are_the_most_confident_ones(tmp_path):
    evaluation = evaluated(*drawn(4, 200))
    about = subject(tmp_path, evaluation)
    about.images.images[int(worst(evaluation)[0])] = tmp_path / "gone.png"
    report = Classify(evaluation.classes).report(evaluation, about)
    [gallery] = section(report, "Mistakes").galleries
    expected = worst(evaluation)[1:21]  # without the unreadable one
    assert [picture.caption for picture in gallery.pictures] == [str(index) for index in expected]
    first, labels = gallery.pictures[0], gallery.pictures[0].labels
    probabilities = torch.tensor(evaluation.outputs.logits[expected[0]]).softmax(0)
    assert labels[0].tone == "wrong"
    assert labels[0].score == pytest.approx(float(probabilities.max()), rel=1e-5)
    assert labels[1].text == evaluation.classes[evaluation.outputs.labels[expected[0]]]
    assert first.image[:2] == b"\xff\xd8"
    assert any(picture.overlay for picture in section(report, "Where the network looks").galleries[0].pictures)


def worst(evaluation) -> list[int]:
    scores = torch.tensor(evaluation.outputs.logits).double().softmax(1).numpy()
    wrong = [i for i, row in enumerate(scores) if row.argmax() != evaluation.outputs.labels[i]]
    return sorted(wrong, key=lambda i: -scores[i].max())


def test_confidence_is_measured_by_hand(tmp_path):
    """Four images at 0.9, of which three are right, and one at 0.6, which is right."""
    logit = {0.9: np.log(9), 0.6: np.log(1.5)}
    logits = [[logit[0.9], 0]] * 4 + [[logit[0.6], 0]]
    evaluation = evaluated([0, 0, 0, 1, 0], logits)
    report = Classify(evaluation.classes).report(evaluation, subject(tmp_path, evaluation))
    cards = {card.label: card.value for card in report.cards}
    assert cards["Calibration error"] == f"{100 * (4 * abs(0.75 - 0.9) + abs(1 - 0.6)) / 5:.1f} %"
    assert "Too confident: the mean confidence is 84 %, the accuracy 80 %." in report.findings
    assert len(section(report, "Confidence").charts) == 2


def test_without_outputs_only_the_counts_are_shown(tmp_path):
    evaluation = evaluated(*drawn(3, 50))
    about = subject(tmp_path, evaluation)
    report = Classify(evaluation.classes).report(replace(evaluation, outputs=None), about)
    assert [each.title for each in report.sections] == ["Classes", "Confusions"]


def test_an_exported_file_has_pictures_but_no_maps(tmp_path):
    evaluation = evaluated(*drawn(3, 50))
    about = subject(tmp_path, evaluation)
    exported = Exported(tmp_path / "m.onnx", "onnx", "fp32", evaluation.classes, about.model.preprocess)
    report = Classify(evaluation.classes).report(evaluation, replace(about, model=exported))
    pictures = section(report, "Mistakes").galleries[0].pictures
    assert pictures
    assert not any(picture.overlay for picture in pictures)
    assert "no gradients" in section(report, "Where the network looks").text[0]


def test_many_classes_show_pairs_instead_of_a_matrix(tmp_path):
    few, many = evaluated(*drawn(12, 100)), evaluated(*drawn(60, 400))
    for evaluation, shown in ((few, True), (many, False)):
        report = Classify(evaluation.classes).report(evaluation, subject(tmp_path / str(shown), evaluation))
        confusions = section(report, "Confusions")
        assert (confusions.matrix is not None) == shown
        true, predicted, count, share = confusions.tables[0].rows[0]
        off = evaluation.confusion - np.diag(np.diag(evaluation.confusion))
        assert count == off.max()
        row, column = (evaluation.classes.index(name) for name in (true, predicted))
        assert off[row, column] == count
        assert share == pytest.approx(count / evaluation.confusion[row].sum())


def test_everything_right(tmp_path):
    evaluation = evaluated([0, 1, 1], [[9, 0], [0, 9], [0, 9]])
    report = Classify(evaluation.classes).report(evaluation, subject(tmp_path, evaluation))
    assert section(report, "Mistakes").text == ("Every prediction is right.",)
    assert section(report, "Confusions").tables == ()
