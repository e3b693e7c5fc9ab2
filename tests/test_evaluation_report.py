"""`shvit eval --out` writes a page with the numbers of metrics.json, whatever the size of the dataset."""

import json
import re
import shlex
from dataclasses import replace
from html import unescape

import numpy as np
import pytest

from conftest import SHARED, tiny_architecture, write_pictures
from shvit import engines
from shvit.data.dataset import Split
from shvit.data.sources import open_source
from shvit.data.transforms import Preprocess
from shvit.evaluate import evaluate_model
from shvit.evaluation_report import use_section, write_evaluation_report
from shvit.modelfile import ModelFile, save
from shvit.tasks.base import ReportSubject
from shvit.tasks.classify_evaluation import ClassifyEvaluation, Outputs

MEGABYTE = 10**6


@pytest.fixture(autouse=True)
def short_samples(monkeypatch):
    monkeypatch.setattr("shvit.evaluation_report.TIMED_SECONDS", 0.01)


def test_eval_writes_the_page(tmp_path, folder, tiny, run):
    model, out = tmp_path / "a model.safetensors", tmp_path / "out"
    save(tiny, model)
    code, text, err = run("eval", model, folder, "--workers", 0, "--out", out, "--json")
    assert code == 0, err
    assert str(out / "report.html") in json.loads(text)["files"]
    page = unescape((out / "report.html").read_text()).replace("\xa0", " ")
    metrics = json.loads((out / "metrics.json").read_text())
    assert f"{100 * metrics['top1']:.1f} %" in page
    assert "Evaluated on 12 validation images" in page
    assert shlex.quote(str(model)) in page
    assert page.count("data:image/jpeg") >= 10
    assert "http" not in page


def test_an_exported_model_has_a_page(tmp_path, folder, tiny, run):
    pytest.importorskip("onnxruntime")
    save(tiny, tmp_path / "m.safetensors")
    assert run("export", tmp_path / "m.safetensors", "--format", "onnx")[0] == 0
    code, _, err = run("eval", tmp_path / "m.onnx", folder, "--workers", 0, "--out", tmp_path / "out")
    assert code == 0, err
    page = unescape((tmp_path / "out" / "report.html").read_text())
    assert "<h1>m.onnx on images</h1>" in page
    assert "An exported file has no gradients" in page
    assert "shvit export" not in page.partition("How to use the model")[2].partition("How it was measured")[0]


@pytest.mark.slow
def test_a_thousand_classes_and_50000_images_stay_under_five_megabytes(tmp_path, tiny):
    count, images = 1000, 50_000
    generator = np.random.default_rng(0)
    labels = generator.integers(0, count, images)
    logits = generator.standard_normal((images, count), np.float32)
    logits[np.arange(images), labels] += 3
    confusion = np.zeros((count, count), np.int64)
    np.add.at(confusion, (labels, logits.argmax(1)), 1)
    classes = tuple(f"class {index} with a rather long name, and a synonym" for index in range(count))
    evaluation = ClassifyEvaluation(classes, confusion, images, 1.0, {}, Outputs(np.arange(images), labels, logits))
    write_pictures(tmp_path / "pictures", 90, 40)
    paths = sorted((tmp_path / "pictures").iterdir())
    split = Split([paths[i % 40] for i in range(images)], labels, [f"folder/{i}.jpg" for i in range(images)])
    model = ModelFile(tiny_architecture(count).build().eval(), classes, Preprocess(32))
    engine = engines.load(model, device="cpu")
    path = write_evaluation_report(tmp_path, evaluation, ReportSubject(model, split, "m"), engine, "val", "data")
    assert path.stat().st_size < 5 * MEGABYTE
    page = path.read_text()
    assert page.count("<tr>") > count
    assert "1,000 rows" in page


def test_class_names_from_anywhere(tmp_path, folder, tiny):
    hostile = replace(tiny, classes=("<b>dark</b>", "light‮ עברית \udcff" + 300 * "x"))
    source = open_source(folder)
    split = Split(source.val.images, source.val.labels, source.val.names)
    engine = engines.load(hostile, device="cpu")
    done = evaluate_model(tiny, engines.load(tiny, device="cpu"), source, keep=True)
    evaluation = replace(done.evaluation, classes=hostile.classes)
    write_evaluation_report(tmp_path, evaluation, ReportSubject(hostile, split, "m"), engine, "val", "<i>data</i>")
    page = (tmp_path / "report.html").read_bytes().decode()
    assert "<i>data</i>" not in page
    assert "<b>dark</b>" not in page
    assert "&lt;b&gt;dark&lt;/b&gt;" in page
    assert "‮" not in page


def test_the_python_code_runs(tmp_path, tiny, folder, monkeypatch, capsys):
    save(tiny, tmp_path / "it's.safetensors")
    picture = next((folder / "val").rglob("*.png"))
    (tmp_path / "photo.jpg").write_bytes(picture.read_bytes())
    monkeypatch.chdir(tmp_path)
    code = use_section(tiny, "it's.safetensors").commands[-1].text
    exec(code, {})
    assert re.fullmatch(r"(dark|light) [01]\.\d+\n", capsys.readouterr().out)


def test_a_detector_has_a_page(tmp_path, run):
    pytest.importorskip("faster_coco_eval")
    from conftest import write_coco
    from shvit.model.architecture import Architecture

    architecture = Architecture("tiny", 2, config=tiny_architecture().config, detector="retinanet")
    model = ModelFile(architecture.build().eval(), ("tree", "cat"), Preprocess(64, fit="whole"), "detect")
    save(model, tmp_path / "d.safetensors")
    code, _, err = run(
        "eval", tmp_path / "d.safetensors", write_coco(tmp_path / "coco"), "--workers", 0, "--out", tmp_path / "out"
    )
    assert code == 0, err
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Misses and false alarms" in page
    assert "missed: tree" in page
    assert "--draw drawn" in page


@pytest.mark.skipif(not (SHARED / "photos").is_dir(), reason="the real photographs are not beside this checkout")
def test_real_photographs_stay_small(tmp_path, run):
    model = ModelFile(tiny_architecture(2).build().eval(), ("ants", "bees"), Preprocess(224))
    save(model, tmp_path / "m.safetensors")
    arguments = "--workers", 0, "--out", tmp_path / "out"
    assert run("eval", tmp_path / "m.safetensors", SHARED / "ants_bees", *arguments)[0] == 0
    assert (tmp_path / "out" / "report.html").stat().st_size < 2 * MEGABYTE
