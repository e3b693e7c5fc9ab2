"""The Python functions of the verbs take the requests of the command line."""

import json

import pytest

import shvit
from shvit.calibrate import calibrate_bn
from shvit.errors import InputError
from shvit.evaluate import evaluate
from shvit.export.export import export
from shvit.requests.calibrate_bn import CalibrateRequest
from shvit.requests.eval import EvalRequest
from shvit.requests.export import ExportRequest


@pytest.fixture
def model(tiny, tmp_path):
    shvit.save(tiny, tmp_path / "m.safetensors")
    return str(tmp_path / "m.safetensors")


def test_evaluate(model, folder, tmp_path):
    request = EvalRequest(model, str(folder), engine="torch", device="cpu", workers=0, out=tmp_path / "report")
    report = evaluate(request)
    assert (report.engine.name, report.engine.precision, report.evaluation.images) == ("torch", "fp32", 12)
    assert tmp_path / "report" / "metrics.json" in report.files
    written = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert written == report.to_dict()
    with pytest.raises(InputError, match="--raw-cells has no effect without --out"):
        evaluate(EvalRequest(model, str(folder), raw_cells=True))


def test_export(model, folder, tmp_path):
    steps = []
    report = export(ExportRequest(model, format="onnx", calibrate=str(folder)), steps.append)
    assert (report["file"], report["task"]) == (str(tmp_path / "m.onnx"), "classify")
    assert report["parity"]["images"] == 12
    assert steps == ["writing m.onnx", "comparing the file with PyTorch"]
    with pytest.raises(InputError, match="--max-drop has no effect in fp32, only in int8"):
        export(ExportRequest(model, format="onnx", max_drop=0.5))


def test_calibrate_bn(model, folder, tmp_path):
    result = calibrate_bn(CalibrateRequest(model, str(folder), image_size=48, batch_size=8, device="cpu", workers=0))
    assert result.out == tmp_path / "m_48.safetensors"
    assert shvit.load(result.out).preprocess.image_size == 48
    assert shvit.load(result.out).metrics["top1"] == result.after["top1"]
