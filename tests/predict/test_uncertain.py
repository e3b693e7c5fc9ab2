"""Predictions with calibrated scores: those below the minimum score are marked as uncertain."""

import csv
import json
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch

import shvit
from conftest import picture, plain_outputs, randomize_norms, telling_apart, tiny_architecture, write_pictures
from shvit.confidence import Calibration
from shvit.data.transforms import Preprocess
from shvit.errors import Failure, InputError
from shvit.modelfile import ModelFile
from shvit.predict.predictor import Predictor
from shvit.tasks.base import Prediction


@pytest.fixture
def tiny() -> ModelFile:
    return ModelFile(telling_apart(4), ("dark", "light"), Preprocess(32))


@pytest.fixture
def images(tmp_path):
    """Images from dark to light, and a bad one."""
    for number, shade in enumerate((20, 60, 100, 140, 180, 220)):
        write_pictures(tmp_path / "images", shade, 1, first=number)
    (tmp_path / "images" / "bad.png").write_text("no image")
    return tmp_path / "images"


@pytest.fixture
def scores(tiny, images):
    """The score of each image at temperature 2, by path."""
    found = Predictor(replace(tiny, calibration=Calibration(2.0)), "torch", "fp32")(sorted(images.glob("0*")))
    return {each.path: each.scores[0] for each in found}


@pytest.fixture
def model(tiny, scores, tmp_path):
    """A model file whose threshold lies between the scores."""
    middle = sorted(scores.values())[2:4]
    calibration = Calibration(2.0, 50, 0.1, 0.02, round(sum(middle) / 2, 6), 0.99, 0.995, 0.5)
    shvit.save(replace(tiny, calibration=calibration), tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


TORCH = ["--engine", "torch", "--precision", "fp32"]


def test_scores_are_divided_by_the_temperature(tiny):
    image = picture(120, size=(32, 32))
    model = replace(tiny, calibration=Calibration(3.0), preprocess=Preprocess(32, crop=1.0))
    pixels = torch.tensor(np.array(image)).permute(2, 0, 1)[None]
    expected = (plain_outputs(model, pixels) / 3).softmax(1)[0].max()
    [prediction] = Predictor(model, "torch", "fp32")(image)
    assert prediction.scores[0] == pytest.approx(float(expected), abs=1e-5)
    assert prediction.uncertain is False


def test_csv_has_uncertain_labels_and_a_column_for_the_best(run, model, images, scores, tmp_path):
    out, threshold = tmp_path / "out.csv", shvit.load(model).calibration.threshold
    code, text, _ = run("predict", model, images, "--out", out, *TORCH)
    assert code == 0
    assert f"predicted 6 images, 3 uncertain (score below {threshold:g}), 1 could not be read" in text
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["path", "label", "score", "error", "best_label", *csv_more(5)]
    for row in rows:
        if row["error"]:
            assert (row["label"], row["best_label"]) == ("", "")
            continue
        assert float(row["score"]) == pytest.approx(scores[row["path"]], abs=1e-5)
        assert row["best_label"] in ("dark", "light")
        assert row["label"] == ("uncertain" if scores[row["path"]] < threshold else row["best_label"])


def csv_more(top_k):
    return [f"{name}_{rank}" for rank in range(2, top_k + 1) for name in ("label", "score")]


def test_min_score_0_switches_the_threshold_off(run, model, images, tmp_path):
    out = tmp_path / "out.csv"
    code, text, _ = run("predict", model, images, "--out", out, "--min-score", 0, *TORCH)
    assert code == 0
    assert "uncertain" not in text + out.read_text()
    assert "best_label" not in out.read_text()
    assert Predictor(str(model), "torch", min_score=0).min_score is None
    assert Predictor(str(model), "torch", min_score=0.5).min_score == 0.5


def test_json_keeps_labels_and_scores(run, tiny, model, images, scores, tmp_path):
    least = sorted(scores.values())[-1]
    code, text, _ = run("predict", model, images, "--min-score", round(least - 1e-6, 6), "--json", *TORCH)
    found = json.loads(text)
    assert code == 0
    assert (found["uncertain"], found["min_score"]) == (5, round(least - 1e-6, 6))
    for row in found["predictions"]:
        assert row.get("uncertain") == (None if row["error"] else scores[row["path"]] < least)
        assert len(row["labels"]) == (0 if row["error"] else 2)
    out = tmp_path / "out.jsonl"
    run("predict", model, images, "--out", out, *TORCH)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert sorted(row["uncertain"] for row in rows if not row["error"]) == [False] * 3 + [True] * 3
    assert [json.loads(json.dumps(Prediction.from_dict(row).to_dict())) for row in rows] == rows


def test_parquet_has_a_column(run, model, images, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    out = tmp_path / "out.parquet"
    assert run("predict", model, images, "--out", out, *TORCH)[0] == 0
    column = parquet.read_table(out).column("uncertain").to_pylist()
    assert [column.count(each) for each in (False, True, None)] == [3, 3, 1]


def test_printed_lines_say_it(run, model, images, scores):
    threshold = shvit.load(model).calibration.threshold
    _, text, _ = run("predict", model, images, *TORCH)
    for path, score in scores.items():
        [line] = [line for line in text.splitlines() if line.startswith(path)]
        assert ("uncertain: " in line) == (score < threshold)


def test_a_changed_min_score_cannot_be_resumed(run, model, images, tmp_path, monkeypatch):
    out = tmp_path / "out.csv"
    command = ["predict", model, images, "--out", out, "--batch-size", 2, *TORCH]
    stream = Predictor.stream

    def stopped(self, *args):
        yield from islice(stream(self, *args), 4)
        raise Failure("stopped")

    with monkeypatch.context() as patched:
        patched.setattr(Predictor, "stream", stopped)
        assert run(*command)[0] == 1
    for changed in (["--min-score", 0.99], ["--min-score", 0]):
        code, _, err = run(*command, *changed, "--resume")
        assert code == 2
        assert "belongs to a run that differs in --min-score" in err
    assert run(*command, "--resume")[0] == 0
    resumed = out.read_text()
    out.unlink()
    assert run(*command)[0] == 0
    assert out.read_text() == resumed


@pytest.mark.parametrize("score", [-0.1, 1.5, float("nan")])
def test_impossible_minimum_scores(run, model, images, score):
    code, _, err = run("predict", model, images, f"--min-score={score}")
    assert code == 2
    assert "min_score must be between 0 and 1" in err


def test_detectors_refuse_it(run, images, tmp_path):
    network = randomize_norms(tiny_architecture(2, detector="retinanet").build()).eval()
    detector = ModelFile(network, ("a", "b"), Preprocess(64, fit="whole"), "detect")
    shvit.save(detector, tmp_path / "d.safetensors")
    code, _, err = run("predict", tmp_path / "d.safetensors", images, "--min-score", 0.5)
    assert code == 2
    assert "--min-score has no effect" in err
    with pytest.raises(InputError, match="min_score supports only classifiers"):
        Predictor(detector, min_score=0.5)
    [found] = Predictor(detector, "torch")(picture(90))
    assert "uncertain" not in found.to_dict()


def test_files_without_calibration_are_as_before(tiny):
    [prediction] = Predictor(tiny, "torch")(picture(90))
    assert prediction.to_dict()["uncertain"] is False
    assert Prediction.from_dict({"path": "", "labels": ["a"], "scores": [1.0], "error": None}).uncertain is False
