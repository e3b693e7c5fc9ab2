"""`shvit eval --target-accuracy` and `--store`: what they report, what they write, and what they refuse."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open

import shvit
from conftest import randomize_norms, telling_apart, tiny_architecture, write_coco, write_pictures
from shvit import engines
from shvit.confidence import Calibration, calibration_error
from shvit.data.sources import open_source
from shvit.data.transforms import Preprocess
from shvit.engines.base import ExportJob
from shvit.evaluate import evaluate, evaluate_model
from shvit.modelfile import ModelFile, load
from shvit.requests.eval import EvalRequest


@pytest.fixture
def unsure() -> ModelFile:
    """A network whose logits are far too large for `mixed`."""
    return ModelFile(telling_apart(6), ("dark", "light"), Preprocess(32))


@pytest.fixture
def mixed(tmp_path):
    """Dark and light pictures, of which a quarter has the wrong label."""
    for name, shade, other in (("dark", 60, 190), ("light", 190, 60)):
        write_pictures(tmp_path / "mixed" / "val" / name, shade, 45)
        write_pictures(tmp_path / "mixed" / "val" / name, other, 15, first=100)
        write_pictures(tmp_path / "mixed" / "train" / name, shade, 2, first=200)
    return tmp_path / "mixed"


@pytest.fixture
def path(unsure, tmp_path):
    shvit.save(unsure, tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


def header(path) -> dict:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["shvit"])


def test_the_calibration_error_is_with_the_stored_temperature(unsure, mixed):
    calibrated = replace(unsure, calibration=Calibration(5.0))
    report = evaluate_model(calibrated, engines.load(calibrated, "torch", "fp32", "cpu"), open_source(mixed))
    outputs = report.evaluation.outputs
    found = report.to_dict()
    assert found["ece"] == calibration_error(outputs.logits, outputs.labels, 5.0)
    assert found["ece_uncalibrated"] == calibration_error(outputs.logits, outputs.labels)
    assert found["ece"] < found["ece_uncalibrated"]
    assert "threshold" not in found
    logits = torch.tensor(outputs.logits)
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(outputs.labels))
    assert found["loss"] == pytest.approx(float(loss), rel=1e-4)  # as in training: without temperature


def test_eval_prints_the_error_and_the_threshold(run, path, mixed):
    before = path.read_bytes()
    code, out, _ = run("eval", path, mixed, "--target-accuracy", 0.2, "--engine", "torch")
    assert code == 0
    assert "expected calibration error" in out
    assert "without the temperature" not in out
    assert "with 95 % confidence, the accuracy is at least 20.00%" in out
    code, out, _ = run("eval", path, mixed, "--target-accuracy", 0.2, "--engine", "torch", "--json")
    found = json.loads(out)
    assert found["target_accuracy"] == 0.2
    assert set(found["threshold"]) == {
        *("threshold", "accuracy", "accuracy_interval", "coverage", "coverage_interval", "images")
    }
    low, high = found["threshold"]["coverage_interval"]
    assert low < found["threshold"]["coverage"] <= high
    assert path.read_bytes() == before


def test_a_target_that_no_score_reaches_is_one_line(run, path, mixed):
    before = path.read_bytes()
    code, out, _ = run("eval", path, mixed, "--target-accuracy", 0.99, "--engine", "torch")
    assert code == 0
    assert out.count("no score reaches an accuracy of 99.00% with 95 % confidence on 120 images") == 1
    code, out, _ = run("eval", path, mixed, "--target-accuracy", 0.99, "--engine", "torch", "--json")
    assert (code, json.loads(out)["threshold"]) == (0, None)
    code, _, err = run("eval", path, mixed, "--target-accuracy", 0.99, "--engine", "torch", "--store")
    assert code == 2
    assert len(err.splitlines()) == 1
    assert "no score reaches an accuracy of 99.00%" in err
    assert "Nothing was stored" in err
    assert path.read_bytes() == before


def test_store_writes_the_calibration_and_nothing_else(run, path, mixed, tmp_path):
    before, weights = header(path), load(path).model.state_dict()
    link = tmp_path / "link.safetensors"
    link.symlink_to(path)
    code, out, _ = run("eval", link, mixed, "--target-accuracy", 0.2, "--store", "--engine", "torch", "--json")
    found = json.loads(out)
    stored = found["stored"]
    assert code == 0
    assert link.is_symlink()
    after = header(path)
    assert after.pop("calibration") == stored
    assert after.pop("digest") != before.pop("digest")
    assert after == before
    assert stored["images"] == 120
    assert stored["temperature"] > 2
    assert stored["ece_after"] < stored["ece_before"]
    assert stored["target_accuracy"] == 0.2
    assert found["ece"] == stored["ece_after"]
    loaded = load(path)
    assert loaded.calibration == Calibration.from_dict(stored)
    assert all(torch.equal(value, weights[name]) for name, value in loaded.model.state_dict().items())
    code, out, _ = run("eval", path, mixed, "--engine", "torch", "--json")
    found = json.loads(out)
    assert found["ece"] == pytest.approx(stored["ece_after"])
    assert found["ece_uncalibrated"] == pytest.approx(stored["ece_before"])


def test_a_new_temperature_removes_the_threshold_of_the_old_one(run, path, unsure, mixed):
    shvit.save(replace(unsure, calibration=Calibration(2.0, threshold=0.9)), path)
    code, out, err = run("eval", path, mixed, "--store", "--engine", "torch")
    assert code == 0
    assert "the threshold 0.9 was chosen for the previous temperature and is removed" in err
    assert "stored in the model file: temperature\n" in out
    assert load(path).calibration.threshold is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--target-accuracy", "99"], "--target-accuracy must be above 0 and below 1, such as 0.99; got 99"),
        (["--target-accuracy", "1"], "must be above 0 and below 1"),
        (["--target-accuracy", "0"], "must be above 0 and below 1"),
        (["--target-accuracy", "nan"], "must be above 0 and below 1"),
        (["--store", "--split", "train"], "not --split train"),
        (["--store", "--fit", "stretch"], "leave out --fit"),
    ],
)
def test_bad_requests(run, path, mixed, flags, message):
    before = path.read_bytes()
    code, _, err = run("eval", path, mixed, *flags)
    assert code == 2
    assert message in err
    assert len(err.splitlines()) == 1
    assert path.read_bytes() == before


def test_training_images_are_refused(run, mixed, path, tmp_path):
    trained = tmp_path / "r" / "best.safetensors"
    settings = ["--epochs", 1, "--batch-size", 2, "--compile", "off", "--workers", 0, "--device", "cpu"]
    assert run("train", mixed, "--model", path, "--out", trained.parent, *settings)[0] == 0
    before = trained.read_bytes()
    code, _, err = run("eval", trained, mixed, "--store", "--split", "all", "--engine", "torch")
    assert code == 2
    assert "--store needs images that the model was not trained on, but 4 of these were used in training" in err
    assert trained.read_bytes() == before


def test_a_temperature_that_cannot_be_fitted_is_not_stored(run, folder, path):
    before = path.read_bytes()
    code, _, err = run("eval", path, folder, "--store", "--engine", "torch")
    assert code == 2
    assert "the temperature cannot be fitted on 12 images: all are classified correctly" in err
    assert path.read_bytes() == before


def test_only_model_files_can_store(run, unsure, mixed, tmp_path):
    out = tmp_path / "m.pt2"
    engines.FORMATS["torch"].export(ExportJob(unsure, out, "fp32"))
    before = out.read_bytes()
    code, _, err = run("eval", out, mixed, "--store")
    assert code == 2
    assert f"--store needs a model file (.safetensors) to write into, but MODEL is {out}" in err
    assert out.read_bytes() == before


def test_detectors_have_no_target_accuracy(run, tmp_path):
    pytest.importorskip("faster_coco_eval")
    network = randomize_norms(tiny_architecture(2, detector="retinanet").build()).eval()
    detector = tmp_path / "d.safetensors"
    shvit.save(ModelFile(network, ("tree", "cat"), Preprocess(64, fit="whole"), "detect"), detector)
    data = write_coco(tmp_path / "coco")
    for flags in (["--target-accuracy", 0.9], ["--store"]):
        code, _, err = run("eval", detector, data, *flags)
        assert code == 2
        assert f"{flags[0]} supports only classifiers, but the model's task is detect" in err
    with pytest.raises(shvit.InputError, match="only classifiers can have a calibration"):
        ModelFile(network, ("tree", "cat"), task="detect", calibration=Calibration(2.0))


def test_a_class_without_images_is_a_notice(run, path, mixed):
    shutil.rmtree(mixed / "val" / "light")
    code, out, err = run("eval", path, mixed, "--target-accuracy", 0.1, "--engine", "torch")
    assert code == 0
    assert err.count("none of the evaluated images shows light") == 1
    assert "expected calibration error" in out


def test_the_request_from_python(path, mixed):
    report = evaluate(EvalRequest(str(path), str(mixed), engine="torch", target_accuracy=0.2, store=True, workers=0))
    assert report.stored.threshold == report.threshold.score
    assert load(path).calibration == report.stored
