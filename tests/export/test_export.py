"""A file is written whole, proved in a process of its own, and reported; or it never appears."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

import shvit
from conftest import tiny_architecture
from shvit import engines
from shvit.cli.main import app
from shvit.data.sources import open_source
from shvit.data.transforms import Preprocess
from shvit.engines.base import Shapes
from shvit.engines.exported import EngineError, ExportError
from shvit.export.accuracy_floor import FloorError
from shvit.export.export import export_model
from shvit.export.images import sample_photos
from shvit.modelfile import ModelFile, save
from shvit.tasks.classify import top1_agreement

pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")


def test_a_report_is_written_beside_the_file(tiny, folder, tmp_path):
    out = tmp_path / "deep" / "m.onnx"
    report = export_model(tiny, "onnx", out, source=open_source(folder), threads=1)
    assert out.is_file()
    assert sorted(path.name for path in out.parent.iterdir()) == ["m.onnx", "m.onnx.parity.json", "m.onnx.sample.png"]
    assert json.loads((tmp_path / "deep" / "m.onnx.parity.json").read_text()) == report
    assert report["parity"]["images"] == 12
    assert report["parity"]["relative_difference"] < 1e-5
    assert report["parity"]["top1_agreement"] == 1
    assert report["parity"]["latency_ms"] > 0 < report["parity"]["torch_latency_ms"]
    assert report["bytes"] == out.stat().st_size
    assert {"onnxruntime", "torch"} <= set(report["provenance"]["versions"])


def test_without_data_two_photographs_are_compared(tiny, tmp_path):
    assert len(sample_photos(64)) == 64
    report = export_model(tiny, "onnx", tmp_path / "m.onnx")
    assert report["parity"]["images"] == 64


def test_a_file_that_disagrees_never_appears(tiny, tmp_path, monkeypatch):
    """The engine writes another network than it was given; a good file of before stays."""
    out = tmp_path / "m.onnx"
    out.write_text("of before")
    kind = engines.ENGINES["onnx"]
    write = kind.export
    other = ModelFile(tiny_architecture().build().eval(), tiny.classes, tiny.preprocess)
    monkeypatch.setattr(kind, "export", classmethod(lambda cls, job: write(replace(job, model_file=other))))
    with pytest.raises(ExportError, match=r"m\.onnx is not kept: its logits differ by .* 0\.0001"):
        export_model(tiny, "onnx", out, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]
    assert out.read_text() == "of before"


def test_a_file_that_does_not_run_never_appears(tiny, tmp_path, monkeypatch):
    kind = engines.ENGINES["openvino"]
    write = kind.export

    def spoil(cls, job):
        write(job)
        job.path.with_suffix(".bin").write_bytes(b"")

    monkeypatch.setattr(kind, "export", classmethod(spoil))
    with pytest.raises((ExportError, EngineError), match=r"m\.xml"):
        export_model(tiny, "openvino", tmp_path / "m.xml")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_int8_is_calibrated_held_to_the_floor_and_reported(folder, tmp_path):
    model = tiny_architecture().build().eval()
    model_file = ModelFile(model, ("dark", "light"), Preprocess(32))
    out = tmp_path / "m.xml"
    report = export_model(model_file, "openvino", out, "int8", source=open_source(folder), max_drop=100)
    assert (tmp_path / "m.bin").is_file()
    floor = report["floor"]
    assert floor["images"] == 12
    assert floor["drop"] == pytest.approx(100 * (floor["reference"] - floor["top1"]))
    exported = shvit.load(out)
    assert exported.precision == "int8"
    assert report["bytes"] == out.stat().st_size + (tmp_path / "m.bin").stat().st_size


@pytest.mark.slow
def test_a_floor_that_cannot_be_held_writes_nothing(tiny, folder, tmp_path):
    with pytest.raises(FloorError, match="Nothing was written"):
        export_model(tiny, "openvino", tmp_path / "out" / "m.xml", "int8", source=open_source(folder), max_drop=-101)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("engine", "name", "precision", "reason"),
    [
        ("tensorrt", "m.plan", None, "unknown format 'tensorrt': allowed are"),
        ("onnx", "m.onnx", "int3", "onnx has no precision 'int3': allowed are fp32"),
        ("openvino", "m.onnx", None, r"a file in format openvino must end in \.xml, got"),
        ("openvino", "m.xml", "int8", "int8 needs calibration images: give --calibrate DATA"),
    ],
)
def test_refusals(tiny, tmp_path, engine, name, precision, reason):
    with pytest.raises(shvit.InputError, match=reason):
        export_model(tiny, engine, tmp_path / name, precision)
    assert list(tmp_path.iterdir()) == []


def test_fixed_batch_and_any_size(tiny, tmp_path):
    export_model(tiny, "openvino", tmp_path / "four.xml", shapes=Shapes(batch=4))
    engine = engines.load(shvit.load(tmp_path / "four.xml"))
    for count in (4, 3, 9):
        assert engine(torch.zeros(count, 3, 32, 32, dtype=torch.uint8)).shape == (count, 2)
    with pytest.raises(EngineError, match=r"takes images of shape \[4,3,32,32\]"):
        engine(torch.zeros(4, 3, 64, 32, dtype=torch.uint8))


def test_agreement_counts_ties_as_agreeing():
    expected = torch.tensor([[1.0, 1.0, 0.0], [0.0, 2.0, 1.0], [0.0, 2.0, 1.0]])
    outputs = torch.tensor([[1.0, 1.1, 0.0], [0.0, 1.0, 2.0], [0.0, 2.0, 1.0]])
    assert top1_agreement(outputs, expected, 0.1) == pytest.approx(2 / 3)


def run(capsys, *command: str) -> dict:
    app([*command, "--json"], exit_on_error=False, result_action="return_value")
    return json.loads(capsys.readouterr().out)


@pytest.mark.slow
def test_from_the_command_line_and_back(tiny, folder, tmp_path, capsys):
    """export, then eval and predict of the exported file in place of the model."""
    model = tmp_path / "best.safetensors"
    save(tiny, model)
    written = run(capsys, "export", str(model), "--format", "onnx", "--calibrate", str(folder))
    assert written["file"] == str(tmp_path / "best.onnx")
    plain = run(capsys, "eval", str(model), str(folder), "--engine", "torch", "--workers", "0")
    exported = run(capsys, "eval", written["file"], str(folder), "--workers", "0")
    assert exported["top1"] == plain["top1"]
    assert exported["engine"] == "onnx"
    image = next((folder / "val" / "dark").iterdir())
    [labelled] = run(capsys, "predict", written["file"], str(image))["predictions"]
    [expected] = run(capsys, "predict", str(model), str(image), "--engine", "torch")["predictions"]
    assert labelled["labels"] == expected["labels"]
    small = run(
        capsys, "export", str(model), "--format", "onnx", "--image-size", "64", "--out", str(tmp_path / "x.onnx")
    )
    assert shvit.load(small["file"]).preprocess.image_size == 64


@pytest.mark.slow
@pytest.mark.parametrize("name", ["m.pt2", "m.xml"])
def test_a_full_disk_is_told_in_one_line(tiny, tmp_path, name):
    """A limit on the length of files stands for the disk; torch would abort the process."""
    save(tiny, tmp_path / "tiny.safetensors")
    format = {"m.pt2": "torch", "m.xml": "openvino"}[name]
    command = [sys.executable, "-m", "shvit", "export", tmp_path / "tiny.safetensors", "--format", format]
    limited = ["sh", "-c", 'ulimit -f 100; exec "$@"', "sh", *command, "--out", tmp_path / name]
    done = subprocess.run(limited, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"failed: no space left on {tmp_path} to write {name}" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.safetensors"]
