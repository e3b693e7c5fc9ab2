"""The command line as its users type it: in-process for speed, with real files and real networks."""

import csv
import json
import subprocess
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import shvit
from conftest import picture, tiny_architecture, trained_looking, write_pictures
from shvit.data.sources import open_source
from shvit.data.transforms import Preprocess
from shvit.engines.torch import gpu_failures
from shvit.errors import InputError, notice
from shvit.modelfile import ModelFile


@pytest.fixture
def model(tiny, tmp_path):
    shvit.save(tiny, tmp_path / "tiny.safetensors")
    return tmp_path / "tiny.safetensors"


def refused(outcome):
    code, out, err = outcome
    assert code == 2
    assert out == ""
    lines = [line for line in err.strip().splitlines() if "torch/utils/cpp_extension.py" not in line]  # its own words
    assert len(lines) == 1
    assert "Traceback" not in err
    return err


def test_the_journey_of_a_folder(run, folder, model, tmp_path):
    out = tmp_path / "run"
    flags = ["--epochs", 10, "--batch-size", 8, "--lr", 0.01, "--lr-batch", 8, "--workers", 0, "--compile", "off"]
    code, text, _ = run("train", folder, "--model", model, "--out", out, *flags)
    assert code == 0
    assert "epoch 10/10" in text
    assert f"shvit predict {out / 'best.safetensors'}" in text

    code, text, err = run(
        "eval", out / "best.safetensors", folder, "--out", tmp_path / "eval", "--json", "--workers", 0
    )
    assert code == 0
    result = json.loads(text)
    assert result["top1"] == 1.0
    assert {"top1", "top5", "images", "per_class", "engine", "precision"} <= set(result)
    assert result["images"] == 12
    assert (tmp_path / "eval" / "confusion.png").exists()
    assert "top-1 100.00%" in err

    (folder / "val" / "dark" / "broken.png").write_bytes(b"oops")
    code, text, _ = run("predict", out / "best.safetensors", folder / "val", "--json", "--top-k", 1)
    assert code == 0
    result = json.loads(text)
    assert (result["images"], result["bad_images"]) == (13, 1)
    for row in result["predictions"]:
        assert row["error"] or row["labels"] == [row["path"].split("/")[-2]]

    code, text, _ = run("info", out / "best.safetensors", "--json")
    assert code == 0
    facts = json.loads(text)
    assert facts["file"]["classes"] == ["dark", "light"]
    assert facts["file"]["metrics"]["top1"] == 1.0
    assert facts["file"]["provenance"]["recipe"]["epochs"] == 10


def test_train_json_is_one_document(run, folder, model, tmp_path):
    code, text, err = run(
        "train",
        folder,
        "--model",
        model,
        "--out",
        tmp_path / "run",
        "--epochs",
        1,
        "--batch-size",
        8,
        "--workers",
        0,
        "--json",
    )
    assert code == 0
    document = json.loads(text)
    assert document["best"] == str(tmp_path / "run" / "best.safetensors")
    assert {"top1", "top5", "epochs", "interrupted", "seconds", "images_per_second"} <= set(document)
    assert "epoch 1/1" in err


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_predictions_as_files(run, folder, model, tmp_path, suffix):
    (folder / "val" / "dark" / "broken,\u00e4.png").write_bytes(b"oops")
    out = tmp_path / "new" / f"labels.{suffix}"
    code, text, _ = run("predict", model, folder / "val", tmp_path / "missing.jpg", "--out", out, "--top-k", 2)
    assert code == 0
    assert "predicted 12 images, 2 could not be read" in text
    if suffix == "csv":
        with out.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert list(rows[0]) == ["path", "label", "score", "error", "label_2", "score_2"]
        errors = [row["error"] for row in rows]
        scores = [float(row["score"]) + float(row["score_2"]) for row in rows if not row["error"]]
    else:
        if suffix == "jsonl":
            rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
        else:
            parquet = pytest.importorskip("pyarrow.parquet")
            rows = parquet.read_table(out).to_pylist()
        assert set(rows[0]) == {"path", "labels", "scores", "error", "uncertain"}
        errors = [row["error"] or "" for row in rows]
        scores = [sum(row["scores"]) for row in rows if not row["error"]]
    assert len(rows) == 14
    assert sorted(filter(None, errors)) == ["no such file", "not an image in a known format"]
    assert scores == pytest.approx([1.0] * 12, abs=1e-4)


def test_all_images_bad_is_a_failure(run, model, tmp_path):
    code, _, err = run("predict", model, tmp_path / "a.jpg", tmp_path / "b.jpg")
    assert code == 1
    assert "no image could be read: " in err


def test_info_gives_the_papers_numbers(run):
    code, text, _ = run("info", "shvit_s1", "--json")
    facts = json.loads(text)
    assert code == 0
    assert (facts["params"], facts["image_size"]) == (6_330_808, 224)
    assert facts["macs"] == pytest.approx(241e6, rel=0.002)
    assert [row["name"] for row in facts["stages"]] == ["stem", "stage 1", "stage 2", "stage 3", "head"]
    assert sum(row["macs"] for row in facts["stages"]) == facts["macs"]
    assert json.loads(run("info", "shvit_s1", "--image-size", 112, "--json")[1])["macs"] < facts["macs"] / 3
    assert "stage 2" in run("info", "shvit_s4")[1]
    assert json.loads(run("info", "timm/mobilenetv3_small_050", "--json")[1])["stages"] == []


def test_models(run):
    code, text, _ = run("models", "--json")
    assert code == 0
    assert [row["name"] for row in json.loads(text)] == shvit.list_models()
    assert "shvit_s4.in1k" in run("models")[1]


def test_a_csv_and_one_pile(run, model, folder, tmp_path):
    rows = "".join(f"{path},{path.parent.name}\n" for path in sorted((folder / "train").rglob("*.png")))
    (tmp_path / "labels.csv").write_text("path,label\n" + rows)
    for data in (tmp_path / "labels.csv", folder / "train"):
        out = tmp_path / f"run-{data.stem}"
        code, _, err = run(
            "train", data, "--model", model, "--out", out, "--epochs", 1, "--batch-size", 8, "--workers", 0
        )
        assert code == 0, err
        result = json.loads(run("eval", out / "best.safetensors", data, "--json", "--workers", 0)[1])
        assert (result["split"], result["images"]) == ("val", len(open_source(data).val))
        assert (result["left_out"], result["trained_on"]) == (0, 0)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["train", "{folder}", "--out", "{tmp}/x", "--model", "shvit_s9"], "unknown model 'shvit_s9'"),
        (["train", "{folder}", "--out", "{tmp}/x", "--recipe", "best"], "choose from scratch, finetune"),
        (
            ["train", "{folder}", "--out", "{tmp}/x", "--epochs", "0"],
            "epochs must be a whole number of at least 1, got 0",
        ),
        (["train", "{folder}", "--out", "{tmp}/x", "--epochs", "many"], "many"),
        (["train", "{folder}", "--out", "{tmp}/x", "--precision", "fp8"], "fp8"),
        (["train", "{folder}", "--out", "{tmp}/x", "--epoch", "3"], "--epoch"),
        (["train", "{folder}", "--out", "{tmp}/x", "--image-size", "16"], "image_size"),
        (["train", "{folder}", "--out", "{tmp}/x", "--device", "tpu"], "device 'tpu' is not available"),
        (["train", "{folder}", "--out", "{tmp}/x", "--workers", "-1"], "workers"),
        (["train", "{folder}"], "--out"),
        (["train", "{tmp}/none", "--out", "{tmp}/x"], "no such file or folder"),
        (["train", "{folder}/train/dark", "--out", "{tmp}/x"], "no class folders"),
        (["train", "{folder}", "--out", "{folder}"], "not empty"),
        (["train", "{folder}", "--out", "{tmp}/x", "--resume"], "no run to resume"),
        (["train", "{folder}", "--out", "{tmp}/x", "--model", "{tmp}/none.safetensors"], "no such file"),
        (["eval", "{tmp}/none.safetensors", "{folder}"], "no such file"),
        (["eval", "shvit_s1", "{folder}"], "network without weights"),
        (["eval", "{model}", "{tmp}/none"], "no such file or folder"),
        (
            ["eval", "{model}", "{folder}", "--engine", "abacus"],
            "allowed are auto, cuda, native, onnx, openvino",
        ),
        (["eval", "{model}", "{folder}", "--split", "half"], "half"),
        (["eval", "{model}", "digits"], "does not know 10 of the dataset's 10 classes"),
        (["eval", "{folder}/val/dark/100.png", "{folder}"], "not a safetensors file"),
        (["train", "{folder}", "--out", "{model}"], "is a file: --out must be a folder"),
        (["eval", "{model}", "{folder}", "--out", "{model}"], "is a file: --out must be a folder"),
        (["info", "timm/resnet18.no_such_tag"], "allowed are resnet18."),
        (["predict", "{model}", "{tmp}/empty"], "no images in"),
        (["predict", "{model}", "{folder}", "--out", "{tmp}/labels.xlsx"], ".csv, .jsonl, .parquet"),
        (["predict", "{model}", "{folder}", "--top-k", "0"], "at least 1"),
        (["info", "nothing"], "neither a file nor one of the names"),
        (["info", "shvit_s1", "--image-size", "8"], "at least 32"),
        (["info", "timm/vit_tiny_patch16_224", "--image-size", "96"], "does not accept 96x96"),
        (["fly"], "fly"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_input_is_one_line(run, folder, model, tmp_path, arguments, reason):
    (tmp_path / "empty").mkdir()
    filled = [argument.format(folder=folder, tmp=tmp_path, model=model) for argument in arguments]
    assert reason in refused(run(*filled))
    assert not (tmp_path / "x").exists()


def by_brightness():
    """A network of 32 pixels that answers 0 for what is nearer to black, and 1 for what is nearer to white."""
    network = trained_looking(tiny_architecture().build())
    extremes = torch.stack([torch.full((3, 32, 32), value) for value in (-1.0, 1.0)])
    with torch.inference_mode():
        black, white = network.head.norm(network.features(extremes)[-1].mean((2, 3)))
    way = (white - black).clone()
    network.head.linear.weight.data = torch.stack([-way, way])
    network.head.linear.bias.data = torch.tensor([1.0, -1.0]) * (way @ (white + black) / 2)
    return network


def test_whole_images_or_their_centre_are_judged_as_the_file_or_the_flag_says(run, tmp_path):
    """Wide images whose class shows at the edges alone, to a network that answers by brightness."""
    for label, grey in (("dark", 0), ("light", 255)):
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(3):
            pixels = np.full((20, 60, 3), 127 + number, np.uint8)
            pixels[:, :15] = pixels[:, 45:] = grey
            Image.fromarray(pixels).save(tmp_path / "data" / label / f"{number}.png")
    network = by_brightness()
    crop, stretch = tmp_path / "crop.safetensors", tmp_path / "stretch.safetensors"
    shvit.save(ModelFile(network, ("dark", "light"), Preprocess(32)), crop)
    shvit.save(ModelFile(network, ("dark", "light"), Preprocess(32, fit="stretch")), stretch)

    def top1(model, *flags):
        code, text, _ = run("eval", model, tmp_path / "data", "--engine", "torch", "--json", "--workers", 0, *flags)
        assert code == 0
        return json.loads(text)["top1"], json.loads(text)["fit"]

    assert top1(crop) == top1(stretch, "--fit", "crop") == (0.5, "crop")
    assert top1(stretch) == top1(crop, "--fit", "squash") == (1.0, "stretch")
    assert top1(crop, "--fit", "letterbox") == (1.0, "letterbox")
    _, text, _ = run("predict", stretch, tmp_path / "data", "--engine", "torch", "--json", "--top-k", 1)
    assert [row["labels"] for row in json.loads(text)["predictions"]] == [["dark"]] * 3 + [["light"]] * 3


def test_an_export_at_another_size_reads_images_as_the_model_does(run, tiny, tmp_path, monkeypatch):
    def refuse(model_file, *_, **__):
        raise InputError(f"the preprocess is {model_file.preprocess}")

    monkeypatch.setattr("shvit.export.export.export_model", refuse)
    for fit in ("crop", "letterbox", "stretch"):
        shvit.save(replace(tiny, preprocess=Preprocess(32, fit=fit)), tmp_path / "m.safetensors")
        _, _, err = run("export", tmp_path / "m.safetensors", "--format", "onnx", "--image-size", 64)
        assert f"fit='{fit}'" in err


def test_too_many_bad_images_is_a_failure(run, folder, model, tmp_path):
    for path in (folder / "val" / "dark").iterdir():
        path.write_bytes(b"")
    code, _, err = run("train", folder, "--model", model, "--out", tmp_path / "x", "--epochs", 1, "--batch-size", 8)
    assert code == 1
    assert "6 of 12 validation images cannot be used" in err


def test_parquet_without_pyarrow_names_the_extra(run, model, folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "shvit[parquet]" in refused(run("predict", model, folder / "val", "--out", tmp_path / "a.parquet"))


def test_labels_with_markup_are_printed_as_they_are(run, tmp_path):
    model_file = ModelFile(tiny_architecture().build().eval(), ("[red]", "[/x]"), Preprocess(32))
    shvit.save(model_file, tmp_path / "m.safetensors")
    write_pictures(tmp_path / "[bold]", 100, 1)
    code, text, _ = run("predict", tmp_path / "m.safetensors", tmp_path / "[bold]" / "000.png")
    assert code == 0
    assert "[red]" in text
    assert "[/x]" in text
    assert "[bold]/000.png" in text


def test_real_photographs(run, photos, model):
    code, text, _ = run("predict", model, photos, "--json")
    assert code == 0
    assert json.loads(text)["bad_images"] == 0


@pytest.mark.slow
def test_demo(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "shvit", "demo", "--json"], capture_output=True, text=True, cwd=tmp_path, timeout=600
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["top1"] >= 0.97
    assert summary["images"] >= 350
    assert (tmp_path / "runs" / "demo" / "best.safetensors").exists()
    assert "shvit train my_images" in done.stderr
    assert summary["export"]["parity"]["top1_agreement"] >= 0.9
    assert (tmp_path / summary["export"]["file"]).exists()
    assert len(summary["speeds"]) == 2
    assert sum(p["true"] == p["label"] for p in summary["predictions"]) >= 5


def test_a_picture_that_is_not_one_is_told_apart_from_one_that_is(run, model, tmp_path):
    picture(10).save(tmp_path / "fine.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "fine.png").read_bytes()[:300])
    code, text, _ = run("predict", model, tmp_path / "*.png")
    assert code == 0
    assert "fine.png  dark" in text or "fine.png  light" in text
    assert "torn.png  cannot be decoded" in text


def test_a_notice_is_one_line_and_other_warnings_are_as_ever(run, monkeypatch):
    def warn(*_, **__):
        notice("this GPU has 7.5:\ntorch runs [instead]")
        warnings.warn("something else", UserWarning, stacklevel=1)
        return {"name": "x", "image_size": 1, "params": 1, "macs": 1, "activations": 1, "stages": []}

    monkeypatch.setattr("shvit.cli.describe.describe", warn)
    with pytest.warns(UserWarning, match="something else") as others:
        code, _, err = run("info", "shvit_s1", "--json")
    assert code == 0
    assert "note: this GPU has 7.5: torch runs [instead]\n" in err
    assert len(others) == 1


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_what_was_labelled_before_the_gpu_was_lost_is_kept(run, folder, tiny, tmp_path, monkeypatch, suffix):
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    calls = []

    def lost_after_two(self, images):
        calls.append(images)
        if len(calls) > 2:
            with gpu_failures(torch.device("cuda")):
                raise RuntimeError("CUDA error: unspecified launch failure")
        return torch.zeros(len(images), 2)

    monkeypatch.setattr("shvit.engines.torch.TorchEngine.__call__", lost_after_two)
    shvit.save(tiny, tmp_path / "tiny.safetensors")
    out = tmp_path / f"labels.{suffix}"
    flags = ["--engine", "torch", "--batch-size", 4, "--threads", 1, "--out", out]
    code, _, err = run("predict", tmp_path / "tiny.safetensors", folder, *flags)
    assert code == 1
    assert "failed: cuda failed during the computation (CUDA error: unspecified launch failure)" in err
    partial = tmp_path / f"labels.{suffix}.partial"
    assert f"8 of 52 images are done and kept in {partial}; --resume continues from there" in err
    assert not out.exists()
    assert len(partial.read_text().splitlines()) == 1 + 8
