"""`shvit train` ends with a page: curves, settings, data, and the test split apart from validation."""

import json
from html import unescape

import pytest

from conftest import write_coco, write_pictures
from shvit.data.sources import open_source
from shvit.requests.train import TrainRequest
from shvit.tasks.classify import Classify
from shvit.tasks.detect import Detect
from shvit.train.run import train
from shvit.train.training_report import _curves, _headlines


@pytest.mark.drawn
def test_a_run_has_a_page(folder, tmp_path, monkeypatch, tiny):
    monkeypatch.setattr("shvit.evaluation_report.TIMED_SECONDS", 0.01)
    from shvit.modelfile import save

    save(tiny, tmp_path / "start.safetensors")
    settings = {"epochs": 2, "batch_size": 8, "compile": "off", "precision": "fp32"}
    out = tmp_path / "run"
    where = {"device": "cpu", "workers": 0, "model": str(tmp_path / "start.safetensors")}
    result = train(TrainRequest(str(folder), out=out, settings=settings, **where))
    page = unescape((out / "report.html").read_text()).replace("\xa0", " ")
    assert f"{100 * result.best['top1']:.1f} %" in page
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert all(f"{row['train_loss']:.4g}" in page for row in rows)
    assert "Trained for 2 epochs on 40 images of 2 classes" in page
    assert "40 training images, 12 validation images." in page
    assert str(out / "best.safetensors") in page
    assert "Test split" not in page


def test_the_test_split_stands_apart(tiny):
    cards = Classify(tiny.classes).cards({"top1": 0.5, "images": 10})
    from dataclasses import replace

    [only] = _headlines(Classify(tiny.classes), cards, tiny)
    assert (only.title, only.cards) == ("", cards)
    tested = replace(tiny, metrics={"top1": 0.5, "images": 10, "test": {"top1": 0.25, "top5": 1.0, "images": 8}})
    test, validation = _headlines(Classify(tiny.classes), cards, tested)
    assert test.title == "Test split"
    assert [card.value for card in test.cards] == ["25.0 %", "8"]  # with two classes, the top-5 accuracy says nothing
    assert test.cards[0].interval == pytest.approx((0.0715, 0.5907), abs=1e-3)  # 2 of 8, by Wilson's formula
    assert (validation.title, validation.cards) == ("Validation split", cards)


def test_curves_have_every_epoch_and_the_best():
    rows = [
        {"epoch": 1, "train_loss": 2.0, "lr": 1e-3, "ema_top1": 0.5, "top1": 0.5, "loss": 1.8},
        {"epoch": 2, "train_loss": 1.0, "lr": 5e-4},
        {"epoch": 3, "train_loss": 0.5, "lr": 1e-4, "ema_top1": 0.75, "model_top1": 0.7, "top1": 0.75, "loss": 0.9},
    ]
    loss, metric, rate = _curves(rows, 3)
    assert loss.svg.count("<circle") == 5
    assert "best epoch: 75 %" in metric.svg
    assert [name for name, _ in metric.legend] == ["weights", "EMA weights"]
    assert rate.svg.count("<circle") == 3
    assert _curves([], None) == ()
    by_loss = [{"epoch": 1, "lr": 1e-3, "train_loss": 2.0, "ema_loss": 1.8, "model_loss": 1.9, "loss": 1.8}]
    assert "best epoch: 1.8<" in _curves(by_loss, 1)[1].svg


def test_what_is_counted_depends_on_the_task(folder, tmp_path):
    unit, counts = Classify.class_counts(open_source(folder).train, 2)
    assert (unit, counts.tolist()) == ("images", [20, 20])
    write_pictures(tmp_path / "x", 90, 1)
    pytest.importorskip("faster_coco_eval")
    source = Detect.open(write_coco(tmp_path / "coco"))
    unit, counts = Detect.class_counts(source.val, len(source.classes))
    assert unit == "objects"
    assert dict(zip(source.classes, counts.tolist(), strict=True)) == {"tree": 1, "cat": 0}  # the cat is a crowd
