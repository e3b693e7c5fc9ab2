"""The metrics are those that are counted by hand."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import shvit
from conftest import tiny_architecture, write_pictures
from shvit import engines
from shvit.classnames import match_classes
from shvit.data.loader import Batch
from shvit.data.sources import open_source
from shvit.data.transforms import Preprocess
from shvit.evaluate import evaluate_model, write_report
from shvit.modelfile import ModelFile
from shvit.pretrained import imagenet_classes
from shvit.tasks.classify import Classify
from shvit.tasks.labelled_data import choose_split

LABELS = [0, 0, 1, 2, 2, 2, 5]
ORDER = [
    [0, 1, 2, 3, 4, 5],
    [1, 0, 2, 3, 4, 5],
    [1, 0, 2, 3, 4, 5],
    [5, 4, 3, 1, 0, 2],
    [2, 0, 1, 3, 4, 5],
    [0, 1, 3, 4, 2, 5],
    [5, 0, 1, 2, 3, 4],
]
"""Classes of each image, from the most to the least probable."""


def batches():
    logits = torch.zeros(7, 6)
    for row, order in zip(logits, ORDER, strict=True):
        row[order] = torch.arange(6, 0, -1).float()
    images = torch.arange(7, dtype=torch.uint8).view(7, 1, 1, 1).expand(7, 3, 32, 32)
    labels = torch.tensor(LABELS)
    parts = [
        Batch(images[:3], labels[:3], [0, 1, 2], {}),
        Batch(images[3:], labels[3:], [3, 4, 5, 7], {6: "file is empty"}),
    ]
    return parts, lambda images: logits[images[:, 0, 0, 0].long()]


def test_counts():
    parts, predict = batches()
    result = Classify(list("abcdef")).evaluate(predict, parts)
    assert result.top1 == pytest.approx(4 / 7)
    metrics = result.metrics()
    assert metrics["top5"] == pytest.approx(6 / 7)  # the fourth image's class is the least probable of six
    assert (metrics["images"], metrics["bad_images"]) == (7, 1)
    assert result.per_class() == {"a": 0.5, "b": 1.0, "c": pytest.approx(1 / 3), "d": None, "e": None, "f": 1.0}
    assert result.confusion.sum() == 7
    assert result.confusion[2].tolist() == [1, 0, 1, 0, 0, 1]
    logits = predict(torch.cat([part.images for part in parts]))
    assert metrics["loss"] == pytest.approx(float(torch.nn.functional.cross_entropy(logits, torch.tensor(LABELS))))


def test_nothing_usable_is_a_failure():
    empty = Batch(
        torch.empty(0, 3, 0, 0, dtype=torch.uint8), torch.tensor([], dtype=torch.int64), [], {0: "file is empty"}
    )
    with pytest.raises(shvit.Failure, match="none of 1 image"):
        Classify(["a", "b"]).evaluate(lambda x: x, [empty])


def test_two_classes_have_a_top5():
    part = Batch(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.tensor([0, 1]), [0, 1], {})
    assert (
        Classify(["a", "b"]).evaluate(lambda _: torch.tensor([[1.0, 0.0], [1.0, 0.0]]), [part]).metrics()["top5"] == 1.0
    )


def test_report_files(tmp_path, folder, tiny):
    (folder / "val" / "dark" / "100.png").write_bytes(b"")
    report = evaluate_model(tiny, engines.load(tiny, device="cpu"), open_source(folder))
    files = write_report(report, tmp_path / "out")
    assert {path.name for path in files} == {path.name for path in (tmp_path / "out").iterdir()}
    saved = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert saved["images"] == 11
    assert saved["split"] == "val"
    with (tmp_path / "out" / "confusion.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["true \\ predicted", "dark", "light"]
    counts = np.array([[int(cell) for cell in row[1:]] for row in rows[1:]])
    assert counts.sum(axis=1).tolist() == [5, 6]
    assert np.trace(counts) / 11 == saved["top1"]
    with (tmp_path / "out" / "per_class.csv").open() as file:
        assert [row[:2] for row in csv.reader(file)] == [["class", "images"], ["dark", "5"], ["light", "6"]]
    assert "100.png" in (tmp_path / "out" / "bad_images.csv").read_text()
    with Image.open(tmp_path / "out" / "confusion.png") as image:
        assert min(image.size) > 300


def test_report_of_a_thousand_classes(tmp_path, folder):
    model_file = ModelFile(
        tiny_architecture(1000).build().eval(),
        (*(f"class {i}" for i in range(998)), "dark", "light"),
        Preprocess(32),
    )
    write_report(
        evaluate_model(model_file, engines.load(model_file, device="cpu"), open_source(folder)), tmp_path / "out"
    )
    assert (tmp_path / "out" / "confusion.png").stat().st_size > 1000


def test_which_images(folder, tiny):
    source, pile = open_source(folder), open_source(folder / "train")
    assert choose_split(tiny, source).split == "val"
    assert choose_split(tiny, pile).split == "all"
    assert len(choose_split(tiny, pile).images) == 40
    trained_here = replace(tiny, provenance={"data_fingerprint": pile.fingerprint})
    judged = choose_split(trained_here, pile)
    assert (judged.split, len(judged.images)) == ("val", len(pile.val))
    assert len(choose_split(tiny, source, "train").images) == 40
    assert len(choose_split(tiny, source, "all").images) == 52
    only_train = replace(source, val=source.val.subset([]))
    assert choose_split(tiny, only_train).split == "all"
    with pytest.raises(shvit.InputError, match="no images in its split 'val'"):
        choose_split(tiny, only_train, "val")


def test_classes_are_matched_by_name_not_by_order(tmp_path, tiny):
    """The dataset has its classes in alphabetical order, the model in another."""
    swapped = replace(tiny, classes=("light", "dark"))
    for name, shade in (("dark", 60), ("light", 190)):
        write_pictures(tmp_path / name, shade, 5)
    source = open_source(tmp_path)
    one = evaluate_model(tiny, engines.load(tiny, device="cpu"), source).evaluation
    other = evaluate_model(swapped, engines.load(swapped, device="cpu"), source).evaluation
    assert one.top1 == pytest.approx(1 - other.top1)


def test_names_match_whatever_their_writing():
    known = ("tench, Tinca tinca", "chain saw, chainsaw", "church, church building")
    assert match_classes(("church", "CHAIN_SAW", "tinca-tinca"), known) == [2, 1, 0]
    with pytest.raises(shvit.InputError, match=r"does not know 1 of the dataset's 2 classes, such as 'pike'"):
        match_classes(("church", "pike"), known)


def test_imagenet_folders_match_the_published_classes():
    classes = imagenet_classes()
    assert match_classes(("n01440764", "n03000684"), classes) == [0, 491]
    assert match_classes(("cassette_player", "chain_saw", "tench", "gas_pump"), classes) == [482, 491, 0, 571]
