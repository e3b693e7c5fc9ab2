"""Exported files contain the temperature: softmax of their outputs is calibrated in any runtime."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from conftest import plain_outputs, random_images, randomize_norms, tiny_architecture, trained_looking
from shvit import engines
from shvit.confidence import UNCALIBRATED, Calibration
from shvit.data.sources import open_source
from shvit.data.transforms import Preprocess
from shvit.engines.base import ExportJob
from shvit.engines.exported import ExportError
from shvit.errors import InputError
from shvit.export import export as export_module
from shvit.export.export import export_model
from shvit.export.temperature import with_folded_temperature
from shvit.model.architecture import Architecture
from shvit.modelfile import ModelFile
from shvit.predict.predictor import Predictor

CALIBRATION = Calibration(2.5, 100, 0.1, 0.02, 0.8, 0.99, 0.995, 0.4)


@pytest.fixture
def calibrated(tiny):
    return replace(tiny, calibration=CALIBRATION)


def test_the_folded_network_has_divided_logits(calibrated):
    images = random_images(4, 32)
    folded = with_folded_temperature(calibrated)
    assert plain_outputs(folded, images) == pytest.approx(plain_outputs(calibrated, images) / 2.5, rel=1e-5)
    assert folded.calibration == replace(CALIBRATION, temperature=1.0)
    uncalibrated = replace(calibrated, calibration=UNCALIBRATED)
    assert with_folded_temperature(uncalibrated) is uncalibrated


@pytest.mark.parametrize("name", ["distilled", "timm/resnet10t", "timm/vit_tiny_patch16_224:img_size=32:depth=1"])
def test_every_kind_of_head_is_folded(name):
    if name == "distilled":
        network = trained_looking(tiny_architecture(distilled=True).build())
    else:
        network = randomize_norms(Architecture(name, 2).build()).eval()
    model = ModelFile(network, ("a", "b"), Preprocess(32), calibration=CALIBRATION)
    images = random_images(2, 32)
    expected = plain_outputs(model, images) / 2.5
    assert plain_outputs(with_folded_temperature(model), images) == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(("engine", "suffix"), [("onnx", ".onnx"), ("openvino", ".xml"), ("torch", ".pt2")])
def test_softmax_of_an_export_is_calibrated(calibrated, tmp_path, engine, suffix):
    if engine != "torch":
        pytest.importorskip({"onnx": "onnxruntime", "openvino": "openvino"}[engine])
    out = tmp_path / f"m{suffix}"
    report = export_model(calibrated, engine, out)
    assert report["parity"]["relative_difference"] < 1e-4
    exported = engines.read(out)
    assert exported.calibration == replace(CALIBRATION, temperature=1.0)
    images = random_images(5, 32)
    found = engines.load(exported)(images).softmax(1)
    assert found == pytest.approx((plain_outputs(calibrated, images) / 2.5).softmax(1), abs=1e-4)
    pictures = [np.asarray(image) for image in images.permute(0, 2, 3, 1)]
    scores = [[each.scores for each in Predictor(model, engine, "fp32")(pictures)] for model in (calibrated, exported)]
    assert np.array(scores[0]) == pytest.approx(np.array(scores[1]), abs=1e-4)  # not applied twice
    assert Predictor(exported).min_score == 0.8
    if engine == "onnx":  # the runtime alone, without shvit
        import onnxruntime

        [logits] = onnxruntime.InferenceSession(out).run(None, {"images": images.numpy()})
        assert torch.tensor(logits).softmax(1) == pytest.approx(found, abs=1e-5)


def test_int8_is_folded_too(calibrated, folder, tmp_path):
    pytest.importorskip("nncf")
    out = tmp_path / "m.xml"
    export_model(calibrated, "openvino", out, "int8", source=open_source(folder), max_drop=100)
    images = random_images(16, 32)
    found, expected = engines.load(engines.read(out))(images), plain_outputs(calibrated, images)
    scale = float((found * expected).sum() / (found * found).sum())
    assert scale == pytest.approx(2.5, rel=0.2)
    assert engines.read(out).calibration.temperature == 1


def test_timm_folders_are_folded_and_load_into_timm(tmp_path):
    import timm

    model = trained_looking(Architecture("shvit_s1", 3).build())
    model_file = ModelFile(model, ("a", "b", "c"), Preprocess(64), calibration=CALIBRATION)
    export_model(model_file, "timm", tmp_path / "m.timm")
    network = timm.create_model(f"local-dir:{tmp_path / 'm.timm'}", pretrained=True).eval()
    pixels = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert network(pixels) == pytest.approx(model(pixels) / 2.5, rel=1e-3, abs=1e-4)
    config = json.loads((tmp_path / "m.timm" / "config.json").read_text())
    assert config["shvit"]["calibration"]["temperature"] == 1
    weights = load_file(tmp_path / "m.timm" / "model.safetensors")
    assert weights["head.l.weight"] == pytest.approx(model.head.linear.weight.detach() / 2.5)


def test_a_file_without_the_temperature_is_not_kept(calibrated, tmp_path, monkeypatch):
    monkeypatch.setattr(export_module, "with_folded_temperature", lambda model_file: model_file)
    with pytest.raises(ExportError, match="its logits differ"):
        export_model(calibrated, "torch", tmp_path / "m.pt2")
    assert not (tmp_path / "m.pt2").exists()


@pytest.mark.parametrize("value", [{"temperature": -1}, {"temperature": "x"}, {"threshold": 7}, [], None, "x"])
def test_hostile_metadata(tiny, tmp_path, value):
    path = tmp_path / "m.pt2"
    engines.FORMATS["torch"].export(ExportJob(tiny, path, "fp32"))
    exported = engines.read(path)
    assert exported.calibration == UNCALIBRATED  # a file without calibration, as older versions wrote
    data = exported.to_dict()
    assert "calibration" not in data
    with pytest.raises(InputError, match="calibration"):
        type(exported).from_dict(path, {**data, "calibration": value})
