"""Each class of a dataset is matched with the model's class of that name, and no two classes are merged."""

import csv
import re

import numpy as np
import pytest
import torch
from PIL import Image

import shvit
from conftest import picture, tiny_architecture, write_pictures
from shvit.calibrate import calibrate_model
from shvit.classnames import match_classes
from shvit.data.sources import open_source
from shvit.data.transforms import Preprocess
from shvit.evaluate import evaluate_model, write_report
from shvit.modelfile import ModelFile
from shvit.predict.predictor import Predictor
from shvit.pretrained import imagenet_classes
from shvit.tasks.classify import Classify
from shvit.tasks.classify_evaluation import ClassifyEvaluation, draw_confusion


class Shade(torch.nn.Module):
    """Classifies images by brightness: logit i is the highest for the i-th of these shades."""

    name, precision, device, threads = "shade", "fp32", "cpu", None

    def __init__(self, count, shades):
        super().__init__()
        self.centers = torch.full((count,), 1e3)
        for index, shade in shades.items():
            self.centers[index] = shade

    def __call__(self, images):
        return -(images.float().mean((1, 2, 3))[:, None] - self.centers).abs()


def judged(tmp_path, known, shades, folders):
    """The evaluation of a model that is always right on folders of images with these shades."""
    for name, shade in folders.items():
        write_pictures(tmp_path / name, shade, 2)
    model = ModelFile(tiny_architecture(len(known)).build().eval(), known, Preprocess(32))
    return evaluate_model(model, Shade(len(known), shades), open_source(tmp_path), "all")


@pytest.mark.parametrize("names", [("A", "a"), ("red-ant", "red_ant"), ("a b", "a_b")], ids=str)
def test_names_that_differ_in_writing_alone_are_two_classes(tmp_path, names):
    known = (names[1], "other", names[0])
    report = judged(tmp_path, known, {0: 200, 1: 120, 2: 40}, {names[0]: 40, names[1]: 200, "other": 120})
    assert report.to_dict()["top1"] == 1.0
    assert report.to_dict()["per_class"] == {names[0]: 1.0, names[1]: 1.0, "other": 1.0}


def test_calibration_keeps_them_apart(tmp_path):
    for name, shade in (("A", 60), ("a", 190)):
        write_pictures(tmp_path / name, shade, 6)
    model = ModelFile(tiny_architecture().build().eval(), ("a", "A"), Preprocess(32))
    after = calibrate_model(model, open_source(tmp_path), 32, batch_size=4, device="cpu").after
    assert set(after["per_class"]) == {"a", "A"}


def test_imagenets_two_cranes(tmp_path):
    """ImageNet has two classes named crane. The folders are named by WordNet IDs."""
    folders = {"n02012849": 40, "n03126707": 200}
    report = judged(tmp_path / "data", imagenet_classes(), {134: 40, 517: 200}, folders)
    assert report.to_dict()["top1"] == 1.0
    assert report.to_dict()["per_class"] == {"crane (134)": 1.0, "crane (517)": 1.0}
    write_report(report, tmp_path / "out")
    with (tmp_path / "out" / "per_class.csv").open() as file:
        assert [row[:2] for row in csv.reader(file)][1:] == [["crane (134)", "2"], ["crane (517)", "2"]]
    with (tmp_path / "out" / "confusion.csv").open() as file:
        header = next(csv.reader(file))
    assert len(set(header)) == 1001


def test_predictions_name_the_one_that_is_meant():
    model = ModelFile(tiny_architecture(2).build().eval(), ("crane", "crane"), Preprocess(32))
    [prediction] = Predictor(model, "torch", "fp32", "cpu")([picture(90)])
    assert sorted(prediction.labels) == ["crane (0)", "crane (1)"]


AMBIGUOUS = """sand viper, grass snake, crayfish, crawfish, crane, Cardigan, panther, catamount, Sus scrofa, polecat
panda, tub, wagon, gong, horn"""


@pytest.mark.parametrize("name", re.split(r", |\n", AMBIGUOUS))
def test_what_fits_two_of_imagenets_classes_is_refused(name):
    with pytest.raises(shvit.InputError, match=rf"class '{name}' of the dataset matches 2 classes of the model"):
        match_classes(("tench", name), imagenet_classes())


def test_the_refusal_names_both_choices_and_each_is_accepted():
    with pytest.raises(shvit.InputError, match=r"134 'crane \(134\)' \(n02012849\) and 517 'crane \(517\)' \(n031267"):
        match_classes(("crane",), imagenet_classes())
    assert match_classes(("crane (517)", "n02012849"), imagenet_classes()) == [517, 134]
    pandas = [imagenet_classes()[index] for index in (388, 387)]
    assert match_classes(tuple(pandas), imagenet_classes()) == [388, 387]


def test_exact_names_come_before_synonyms_of_others():
    known = imagenet_classes()
    assert [known[i] for i in match_classes(("maillot", "harp", "partridge"), known)] == [
        "maillot",
        "harp",
        "partridge",
    ]
    assert match_classes(known, known) == list(range(1000))


def test_two_classes_of_the_data_are_not_folded_into_one():
    with pytest.raises(
        shvit.InputError, match=r"classes 'a' and 'A' of the dataset both match the model's class 0 'a'"
    ):
        match_classes(("a", "A"), ("a", "b"))
    with pytest.raises(shvit.InputError, match=r"both match the model's class 0 'tench, Tinca tinca' \(n01440764\)"):
        match_classes(("tench", "n01440764"), imagenet_classes())


def test_unique_names():
    from shvit.classnames import unique_names

    assert unique_names(("a", "b")) == ("a", "b")
    assert unique_names(("a", "b", "a")) == ("a (0)", "b", "a (2)")
    assert len(set(unique_names(("a", "a", "a (0)")))) == 3
    assert Classify(("a", "a")).classes == ("a (0)", "a (1)")


def test_a_thousand_classes_need_not_be_imagenets():
    known = tuple(f"class {index}" for index in range(1000))
    with pytest.raises(shvit.InputError, match="does not know 1 of the dataset's 1 class, such as"):
        match_classes(("n01440764",), known)


def test_dollars_in_names_are_no_formula(tmp_path):
    names = ("$1 or $2", r"$\bad{$", "plain")
    evaluation = ClassifyEvaluation(names, np.eye(3, dtype=int), 3, 0.0, {})
    draw_confusion(evaluation, tmp_path / "confusion.png")
    with Image.open(tmp_path / "confusion.png") as image:
        assert min(image.size) > 100
