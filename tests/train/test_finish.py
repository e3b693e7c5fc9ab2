"""After the last epoch, the best weights are calibrated on validation images and evaluated once on test images."""

import json
import signal
from dataclasses import replace

import pytest
from PIL import Image, ImageOps

import shvit
from conftest import telling_apart, write_coco, write_pictures
from shvit import engines
from shvit.confidence import UNCALIBRATED, calibration_error
from shvit.data.sources import open_source
from shvit.data.transforms import Preprocess
from shvit.evaluate import evaluate_model
from shvit.modelfile import ModelFile, load
from shvit.requests.train import TrainRequest
from shvit.train import finish as finish_module
from shvit.train import run as run_module
from shvit.train.progress import Reporter

SETTINGS = {"epochs": 1, "batch_size": 8, "lr": 1e-5, "lr_batch": 8, "compile": "off", "precision": "fp32", "ema": 0.0}


@pytest.fixture
def data(tmp_path):
    """Dark and light images, of which some have the wrong label."""
    for name, shade, other in (("dark", 60, 190), ("light", 190, 60)):
        for split, first in (("train", 0), ("val", 300)):
            write_pictures(tmp_path / "data" / split / name, shade, 15, first=first)
            write_pictures(tmp_path / "data" / split / name, other, 4, first=first + 100)
    return tmp_path / "data"


@pytest.fixture
def start(tmp_path):
    """Trained weights with logits that are far too large."""
    model_file = ModelFile(telling_apart(6, adapted=True), ("dark", "light"), Preprocess(32))
    shvit.save(model_file, tmp_path / "start.safetensors")
    return tmp_path / "start.safetensors"


@pytest.fixture
def with_test(data, tmp_path, monkeypatch):
    """The dataset also has a test split, of other images."""
    for name, shade, other in (("dark", 60, 190), ("light", 190, 60)):
        write_pictures(tmp_path / "other" / "val" / name, shade, 10, first=600)
        write_pictures(tmp_path / "other" / "val" / name, other, 3, first=700)
        write_pictures(tmp_path / "other" / "train" / name, shade, 1, first=800)
    test, opened = open_source(tmp_path / "other").val, run_module._opened
    monkeypatch.setattr(run_module, "_opened", lambda *given: replace(opened(*given), test=test))
    return test


def go(data, start, out, reporter=None, resume=False, **settings):
    options = {"device": "cpu", "workers": 0, "out": out}
    if resume:
        return run_module.train(TrainRequest(str(data), resume=True, **options), reporter)
    named = {**SETTINGS, **settings}
    return run_module.train(TrainRequest(str(data), model=str(start), settings=named, **options), reporter)


class Lines(Reporter):
    """Keeps what is printed after the last epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def result(self, line: str) -> None:
        self.lines.append(line)

    def finished(self, *given) -> None:
        self.lines.append("complete")


def test_a_run_ends_with_a_temperature(data, start, tmp_path):
    lines = Lines()
    result = go(data, start, tmp_path / "run", lines)
    best = load(tmp_path / "run" / "best.safetensors")
    assert result.calibration == best.calibration != UNCALIBRATED
    assert best.calibration.images == 38
    assert best.calibration.temperature > 1.5
    assert result.best == best.metrics
    report = evaluate_model(best, engines.load(best, "torch", "fp32", "cpu"), open_source(data), "val").to_dict()
    assert best.metrics["ece"] == pytest.approx(report["ece"], abs=1e-3)
    assert best.metrics["ece_uncalibrated"] == pytest.approx(report["ece_uncalibrated"], abs=1e-3)
    assert best.metrics["ece"] < best.metrics["ece_uncalibrated"]
    assert best.metrics["top1"] == report["top1"]
    assert "test" not in best.metrics
    [line] = lines.lines
    assert line.startswith(f"temperature {best.calibration.temperature:.3f}, fitted on 38 validation images")
    assert "(measured on the same images)" in line
    assert load(tmp_path / "run" / "last.safetensors").calibration == UNCALIBRATED


def test_the_test_split_is_evaluated_once_with_the_temperature(data, with_test, start, tmp_path):
    lines = Lines()
    result = go(data, start, tmp_path / "run", lines)
    best = load(tmp_path / "run" / "best.safetensors")
    test = best.metrics["test"]
    assert result.to_dict()["test"] == test
    assert test["images"] == len(with_test) == 26
    source = replace(open_source(data), val=with_test)
    report = evaluate_model(best, engines.load(best, "torch", "fp32", "cpu"), source, "val")
    outputs = report.evaluation.outputs
    assert test["top1"] == report.evaluation.top1
    assert test["loss"] == pytest.approx(report.evaluation.loss, abs=1e-4)
    expected = calibration_error(outputs.logits, outputs.labels, best.calibration.temperature)
    assert test["ece"] == pytest.approx(expected, abs=1e-3)
    assert best.calibration.images == 38  # the test images do not change the temperature
    assert len(lines.lines) == 2
    assert lines.lines[1].startswith("test: top-1 ")
    assert lines.lines[1].endswith("on 26 test images, evaluated once")


@pytest.mark.parametrize("killed_in", ["_calibrated", "_tested"])
def test_a_run_killed_before_its_end_is_completed(data, with_test, start, tmp_path, monkeypatch, killed_in):
    go(data, start, tmp_path / "whole")
    out = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(finish_module, killed_in, lambda *_: (_ for _ in ()).throw(RuntimeError("killed")))
        with pytest.raises(RuntimeError, match="killed"):
            go(data, start, out)
    assert load(out / "best.safetensors").calibration == UNCALIBRATED
    lines = Lines()
    result = go(data, start, out, lines, resume=True)
    assert [line.partition(" ")[0] for line in lines.lines] == ["temperature", "test:"]
    whole, best = (load(tmp_path / name / "best.safetensors") for name in ("whole", "run"))
    assert (best.metrics, best.calibration) == (whole.metrics, whole.calibration)
    assert result.best == whole.metrics
    content, lines = (out / "best.safetensors").read_bytes(), Lines()
    again = go(data, start, out, lines, resume=True)
    assert lines.lines == ["complete"]
    assert again.to_dict()["test"] == whole.metrics["test"]
    assert (out / "best.safetensors").read_bytes() == content


def test_a_stop_signal_leaves_the_file_and_the_run_can_be_resumed(run, data, start, tmp_path, monkeypatch):
    out, evaluated = tmp_path / "run", finish_module._evaluated

    def stopped(*given):
        signal.raise_signal(signal.SIGTERM)
        return evaluated(*given)

    command = ["train", data, "--model", start, "--out", out, "--epochs", 1, "--batch-size", 8, "--workers", 0]
    with monkeypatch.context() as patched:
        patched.setattr(finish_module, "_evaluated", stopped)
        code, text, _ = run(*command, "--device", "cpu")
    assert code == 75
    assert f"stopped after the last epoch; resume with: shvit train {data} --out {out} --resume" in text
    assert load(out / "best.safetensors").calibration == UNCALIBRATED
    code, text, _ = run("train", data, "--out", out, "--resume", "--workers", 0, "--device", "cpu", "--json")
    found = json.loads(text)
    assert code == 0
    assert found["calibration"] == load(out / "best.safetensors").calibration.to_dict()
    assert found["test"] is None


def test_runs_of_earlier_versions_are_completed(data, start, tmp_path):
    out = tmp_path / "run"
    go(data, start, out)
    best = load(out / "best.safetensors")
    before = {key: value for key, value in best.metrics.items() if not key.startswith("ece")}
    shvit.save(replace(best, metrics=before, calibration=UNCALIBRATED), out / "best.safetensors")
    assert go(data, start, out, resume=True).calibration == best.calibration


def test_a_temperature_that_cannot_be_fitted_is_said(folder, start, tmp_path, monkeypatch):
    monkeypatch.setattr(finish_module, "fitted_calibration", lambda *_: None)
    lines = Lines()
    result = go(folder, start, tmp_path / "run", lines)
    [line] = lines.lines
    assert line.startswith("the temperature cannot be fitted on 12 validation images: all are classified correctly")
    assert result.calibration == UNCALIBRATED
    assert result.best["ece"] == result.best["ece_uncalibrated"]
    assert go(folder, start, tmp_path / "run", Lines(), resume=True).best == result.best


def test_a_detector_has_no_temperature_but_a_test(tmp_path, monkeypatch):
    pytest.importorskip("faster_coco_eval")
    data = write_coco(tmp_path / "coco")
    for path in (data / "val2017").iterdir():  # not the pixels of a training image
        ImageOps.invert(Image.open(path).convert("RGB")).save(path)
    opened = run_module._opened
    monkeypatch.setattr(
        run_module, "_opened", lambda *given: (lambda source: replace(source, test=source.val))(opened(*given))
    )
    settings = {"epochs": 1, "batch_size": 2, "image_size": 64, "compile": "off"}
    request = TrainRequest(str(data), model="shvit_s1", out=tmp_path / "run", task="detect", device="cpu", workers=0)
    result = run_module.train(replace(request, settings=settings))
    if not (tmp_path / "run" / "best.safetensors").exists():
        pytest.skip("no object was found")
    assert result.calibration is None
    metrics = load(tmp_path / "run" / "best.safetensors").metrics
    assert metrics["test"]["AP"] == metrics["AP"]
    assert "ece" not in metrics


def test_the_interrupted_run_is_not_finished(data, start, tmp_path, monkeypatch):
    """A run that is stopped in an epoch keeps its best weights as they are."""
    steps = []

    def step(self, progress):
        steps.append(progress)
        signal.raise_signal(signal.SIGINT)

    reporter = Lines()
    monkeypatch.setattr(Lines, "step", step)
    result = go(data, start, tmp_path / "run", reporter, epochs=2)
    assert result.interrupted
    assert result.calibration is None
    assert reporter.lines == []
    assert len(steps) == 1
