"""`shvit audit` as its users type it."""

import csv
import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_images

import shvit
from conftest import picture, randomize_norms, tiny_architecture, write_coco, write_pictures
from shvit.audit import views
from shvit.audit.findings import FINDING_KINDS
from shvit.cli import main as cli
from shvit.data.identity import TrainedOn
from shvit.errors import InputError
from shvit.modelfile import ModelFile, ModelFileError


@pytest.fixture
def model(tiny, tmp_path) -> Path:
    shvit.save(tiny, tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


@pytest.fixture
def audit(run, model, tmp_path):
    """Runs `shvit audit DATA`, with few pixels and no other processes."""

    def call(data, *flags, out=tmp_path / "report"):
        return run("audit", data, "--model", model, "--workers", 0, "--device", "cpu", "--out", out, *flags)

    return call


def findings(out: Path) -> list[dict[str, str]]:
    with (out / "audit.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def content(folder: Path) -> dict[str, str]:
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


def plant(folder: Path) -> dict[str, Path]:
    """Problems of each kind: a wrong label, copies, and images that cannot be used or are odd."""
    photo, other = (Image.fromarray(image[:200, :200]) for image in load_sample_images().images)
    paths = {
        "wrong": folder / "train" / "dark" / "wrong.png",
        "photo": folder / "train" / "light" / "photo.png",
        "leak": folder / "val" / "light" / "leak.jpg",
        "twin": folder / "train" / "light" / "twin.jpg",
        "other": folder / "train" / "light" / "a_other.png",
        "conflict": folder / "val" / "dark" / "conflict.png",
        "broken": folder / "val" / "dark" / "broken.png",
        "blank": folder / "train" / "dark" / "blank.png",
        "long": folder / "train" / "light" / "long.png",
    }
    picture(190, 77).save(paths["wrong"])
    photo.save(paths["photo"])
    photo.resize((120, 120)).save(paths["leak"], quality=60)
    ImageOps.mirror(photo).save(paths["twin"], quality=50)
    other.save(paths["other"])
    other.save(paths["conflict"])
    paths["broken"].write_bytes(b"oops")
    Image.new("RGB", (40, 36), (60, 60, 60)).save(paths["blank"])
    picture(190, 78, (20, 200)).save(paths["long"])
    return paths


def test_problems_of_each_kind_are_found(audit, folder, tmp_path):
    paths = plant(folder)
    before = content(folder)
    code, text, err = audit(folder)
    assert (code, err) == (0, "")
    rows = findings(tmp_path / "report")
    by_image = {row["image"]: row for row in rows}
    name = {key: str(path) for key, path in paths.items()}

    wrong = by_image[name["wrong"]]
    assert (wrong["kind"], wrong["split"], wrong["label"]) == ("label_error", "train", "dark")
    assert wrong["suggested_label"] == "light"
    assert 0 < float(wrong["score"]) <= 1
    assert by_image[name["leak"]]["kind"] == "duplicate_across_splits"
    assert by_image[name["leak"]]["other_image"] in (name["photo"], name["twin"])
    assert by_image[name["leak"]]["split"] == "val"
    assert (by_image[name["twin"]]["kind"], by_image[name["twin"]]["other_image"]) == ("duplicate", name["photo"])
    assert by_image[name["twin"]]["reason"] == "mirrored near-duplicate of an image of train with label light"
    conflict = by_image[name["conflict"]]
    assert (conflict["kind"], conflict["other_image"]) == ("duplicate_other_label", name["other"])
    assert float(conflict["score"]) == 1
    assert (by_image[name["broken"]]["kind"], by_image[name["broken"]]["reason"]) == (
        "unusable",
        "not an image in a known format",
    )
    assert (by_image[name["blank"]]["kind"], by_image[name["blank"]]["reason"]) == ("odd", "nearly uniform")
    assert by_image[name["long"]]["reason"] == "very long: 200x20 pixels"

    kinds = [row["kind"] for row in rows]
    assert kinds == sorted(kinds, key=list(FINDING_KINDS).index)
    scores = [float(row["score"]) for row in rows if row["kind"] == "label_error"]
    assert scores == sorted(scores, reverse=True)
    assert {kind: kinds.count(kind) for kind in set(kinds) - {"label_error"}} == {
        "duplicate_other_label": 1, "duplicate_across_splits": 1, "duplicate": 1, "unusable": 1, "odd": 2,
    }  # fmt: skip
    assert content(folder) == before

    page = (tmp_path / "report" / "report.html").read_text()
    for part in ("Probable label errors", "dark → light?", "train/dark/wrong.png", "val: dark | train: light"):
        assert part in page
    lines = text.splitlines()
    assert lines[0].startswith("61 images (train 46, val 15), 2 classes, ")
    assert f"wrote {tmp_path / 'report' / 'audit.csv'}" in lines
    assert lines[-1].startswith(f"next: open {tmp_path / 'report' / 'report.html'}, ")


def test_json_and_the_seed(audit, folder, tmp_path):
    plant(folder)
    documents = []
    for number, seed in enumerate((0, 0, 1)):
        code, text, _ = audit(folder, "--json", "--seed", seed, out=tmp_path / str(number))
        assert code == 0
        documents.append(json.loads(text))
    first, same, other = ({key: document[key] for key in ("counts", "findings")} for document in documents)
    assert first == same
    assert [row for row in first["findings"] if row["kind"] != "label_error"] == [
        row for row in other["findings"] if row["kind"] != "label_error"
    ]
    assert documents[0]["images"] == {"train": 46, "val": 15}
    assert documents[0]["counts"]["unusable"] == 1
    assert documents[0]["findings"] == findings(tmp_path / "0")
    assert documents[0]["labels_not_checked"] is None


def test_without_a_model(run, folder, tmp_path):
    plant(folder)
    code, text, err = run("audit", folder, "--model", "none", "--workers", 0, "--out", tmp_path / "report")
    assert (code, err) == (0, "")
    assert "labels are not checked with --model none" in text.splitlines()
    kinds = {row["kind"] for row in findings(tmp_path / "report")}
    assert kinds == {"duplicate_other_label", "duplicate_across_splits", "duplicate", "unusable", "odd"}
    code, _, err = run("audit", folder, "--model", "none", "--folds", 5, "--out", tmp_path / "other")
    assert code == 2
    assert err == "error: --folds has no effect with --model none: leave it out\n"


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"only": 12}, "labels cannot be checked, because there is only the class only"),
        (
            {"one": 2, "two": 1},
            "labels cannot be checked, because fewer than two classes have 5 different images: try fewer",
        ),
        (
            {"one": 12, "two": 1},
            "labels cannot be checked, because fewer than two classes have 5 different images: try fewer",
        ),
    ],
)
def test_labels_that_cannot_be_checked_lose_nothing_else(audit, tmp_path, files, reason):
    for number, (name, count) in enumerate(files.items()):
        write_pictures(tmp_path / "data" / name, 60 + 100 * number, count)
    shutil.copy(tmp_path / "data" / next(iter(files)) / "000.png", tmp_path / "data" / next(iter(files)) / "copy.png")
    code, text, err = audit(tmp_path / "data")
    assert (code, err) == (0, "")
    assert any(line.startswith(reason) for line in text.splitlines())
    kinds = [row["kind"] for row in findings(tmp_path / "report")]
    assert kinds == ["duplicate"] + ["small_class"] * sum(count < 10 for count in files.values())
    assert reason[1:] in (tmp_path / "report" / "report.html").read_text()


def test_a_class_with_one_image_is_reported_and_its_label_not_judged(audit, folder, tmp_path):
    write_pictures(folder / "train" / "gray", 120, 1)
    code, _, err = audit(folder)
    assert (code, err) == (0, "")
    rows = findings(tmp_path / "report")
    [small] = [row for row in rows if row["kind"] == "small_class"]
    assert (small["label"], small["image"]) == ("gray", "")
    assert small["reason"] == "only 1 usable image, without near-duplicates"
    assert not [row for row in rows if row["kind"] == "label_error" and row["label"] == "gray"]


def test_a_model_trained_on_these_images(run, tiny, folder, tmp_path):
    images = sorted((folder / "train").rglob("*.png"))
    provenance = {"trained_on": TrainedOn.of(images).to_dict()}
    shvit.save(replace(tiny, provenance=provenance), tmp_path / "own.safetensors")
    code, _, err = run(
        "audit", folder, "--model", tmp_path / "own.safetensors", "--workers", 0, "--out", tmp_path / "a"
    )
    assert code == 0
    [line] = err.splitlines()
    assert "was trained on 40 of 52 images" in line


def test_digits_and_drawn_splits(audit, tmp_path):
    code, text, err = audit("digits", "--val-share", 0.1)
    assert (code, err) == (0, "")
    assert text.startswith("1,797 images (train 1,6")
    assert "; validation images are drawn at random), 10 classes" in text
    assert {row["image"].partition("/")[0] for row in findings(tmp_path / "report")} == {"digits"}


def bad_inputs(tmp_path: Path, folder: Path, model: Path) -> dict[str, tuple[list, str]]:
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    (tmp_path / "hollow" / "a").mkdir(parents=True)
    detector = randomize_norms(tiny_architecture(detector="retinanet").build()).eval()
    detecting = ModelFile(detector, ("a", "b"), replace(shvit.load(model).preprocess, fit="whole"), task="detect")
    shvit.save(detecting, tmp_path / "detector.safetensors")
    (tmp_path / "m.onnx").write_bytes(b"")
    write_coco(tmp_path / "coco")
    with_model = ["--model", model]
    return {
        "missing data": ([tmp_path / "nowhere", *with_model], "no such file or folder"),
        "empty folder": ([tmp_path / "empty", *with_model], "holds no class folders with images"),
        "empty class": ([tmp_path / "hollow", *with_model], "holds no class folders with images"),
        "COCO": ([tmp_path / "coco", *with_model], "audit supports only classification datasets, but"),
        "detector": (
            [folder, "--model", tmp_path / "detector.safetensors"],
            "audit supports only classifiers, but",
        ),
        "exported": ([folder, "--model", tmp_path / "m.onnx"], "is an exported file, which can only be run: give the"),
        "no weights": ([folder, "--model", "shvit_s1"], "shvit_s1 is a network without weights: give a model"),
        "no model": ([folder, "--model", "nothing"], "nothing is neither a file nor one of the names"),
        "folds": ([folder, *with_model, "--folds", 1], "folds must be at least 2, got 1"),
        "batch size": ([folder, *with_model, "--batch-size", 0], "batch_size must be at least 1, got 0"),
        "used folder": ([folder, *with_model, "--out", tmp_path / "full"], "is not empty: give another --out"),
        "out within the data": ([folder, *with_model, "--out", folder / "audit"], "lies within the data"),
        "split that exists": ([folder, *with_model, "--val-share", 0.3], "val_share has no effect, because"),
    }


BAD = (
    "missing data", "empty folder", "empty class", "COCO", "detector", "exported", "no weights", "no model", "folds",
    "batch size", "used folder", "out within the data", "split that exists",
)  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(run, folder, model, tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    arguments, reason = bad_inputs(tmp_path, folder, model)[case]
    before = content(tmp_path)
    code, text, err = run("audit", *arguments)
    assert (code, text) == (2, "")
    assert len(err.splitlines()) == 1
    assert reason in err
    assert content(tmp_path) == before
    assert not (tmp_path / "audit").exists()


def test_default_weights_that_are_not_available(run, folder, tmp_path, monkeypatch):
    def absent(_):
        raise ModelFileError("the weights of shvit_s1.in1k are not in the cache: download them")

    monkeypatch.setattr("shvit.audit.run.load_model", absent)
    code, _, err = run("audit", folder, "--out", tmp_path / "report")
    assert code == 2
    [line] = err.splitlines()
    assert line.endswith("download them; or give --model a model file, or --model none to check everything but labels")


def test_ctrl_c_leaves_nothing_behind(audit, folder, tmp_path, monkeypatch):
    seen = []

    def stopping(self, source, read=views.ViewReader.__call__):
        seen.append(source)
        if len(seen) == 20:
            raise KeyboardInterrupt
        return read(self, source)

    monkeypatch.setattr(views.ViewReader, "__call__", stopping)
    code, text, err = audit(folder)
    assert (code, text, err) == (cli.INTERRUPTED, "", "stopped\n")
    assert not (tmp_path / "report").exists()


def test_all_images_bad(audit, tmp_path):
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "x.png").write_bytes(b"oops")
    code, _, err = audit(tmp_path / "data")
    assert code == 1
    assert "none of 2 images could be used" in err
    assert not (tmp_path / "report").exists()


def test_features_are_the_input_of_the_classifier(tiny, folder):
    from shvit.data.sources import open_source

    split = open_source(folder).train
    seen = views.view(split, tiny, batch_size=7)
    whole = views.view(split, tiny, batch_size=40, workers=2)
    np.testing.assert_allclose(seen.features, whole.features, atol=0.05, rtol=0.05)
    assert seen.features.shape == (40, 32)
    np.testing.assert_array_equal(seen.thumbnails, whole.thumbnails)
    assert (seen.sizes == (40, 36)).all()


def test_request_from_python(folder, model, tmp_path):
    from shvit.audit.run import audit as run_audit
    from shvit.requests.audit import AuditRequest

    steps = []
    request = AuditRequest(str(folder), out=tmp_path / "a", model=str(model), workers=0, device="cpu")
    result = run_audit(request, lambda done, total: steps.append((done, total)))
    assert steps[-1] == (52, 52)
    assert result.files == (tmp_path / "a" / "audit.csv", tmp_path / "a" / "report.html")
    with pytest.raises(InputError, match="is not empty"):
        run_audit(request)
