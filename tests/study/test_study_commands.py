"""`shvit study` as its users type it."""

import json
from functools import partial

import pytest

import shvit
from conftest import picture
from shvit.data.transforms import Preprocess
from shvit.model.architecture import Architecture
from shvit.modelfile import ModelFile

VIT = "timm/deit_tiny_patch16_224:img_size=32:depth=3:embed_dim=48"
OWN = """
import torch
from torch import nn
from shvit.data.transforms import Preprocess
from shvit.study.heads import AttentionLayer

class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(8, 2)

    def forward(self, images):
        x = nn.functional.adaptive_avg_pool2d(images, 4).flatten(2).mT.repeat(1, 1, 3)[..., :8]
        heads = x.unflatten(2, (2, 4)).transpose(1, 2)
        return self.out(((heads @ heads.mT).softmax(-1) @ heads).transpose(1, 2).flatten(2)).mean(1)

def make():
    network = Attention()
    return network, [AttentionLayer("only", network, 2, network.out)], ("dark", "light"), Preprocess(32)

def wrong():
    return nn.Linear(2, 2)

def unlisted():
    network = Attention()
    return network, [network], ("dark", "light"), Preprocess(32)
"""


@pytest.fixture
def run(run):
    """Runs `shvit study ARGUMENTS`."""
    return partial(run, "study")


@pytest.fixture
def vit(tmp_path):
    model = Architecture(VIT, 2).build().eval()
    shvit.save(ModelFile(model, ("dark", "light"), Preprocess(32)), tmp_path / "vit.safetensors")
    return tmp_path / "vit.safetensors"


@pytest.mark.slow
def test_redundancy_of_a_model_file(run, vit, folder, tmp_path):
    (folder / "val" / "dark" / "broken.png").write_bytes(b"no picture")
    picture(99).save(tmp_path / "mine.png")
    flags = ["--images", 100, "--similarity-images", 4, "--threads", 1, "--workers", 0, "--tolerance", 100]
    more = ["--queries", "0.1,0.9", "--pictures", tmp_path / "mine.png", "--out", tmp_path / "out", "--json"]
    code, out, err = run("redundancy", vit, folder, *flags, *more)
    assert code == 0, err
    document = json.loads(out)
    assert json.loads((tmp_path / "out" / "study.json").read_text())["top1"] == document["top1"]
    assert [len(layer["similarity"]) for layer in document["layers"]] == [3, 3, 3]
    assert document["value"] == pytest.approx(sum(document["mean_similarity"]) / 3)
    assert len(document["could_be_single"]) == 3
    assert [name.endswith("broken.png") for name in document["bad_images"]] == [True]
    assert document["images"] == 12
    assert 0.1 < document["savings"]["params_saved"] < 0.2
    assert set(document["savings"]["speed_ratio"]) >= {"torch"}
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names >= {"report.html", "study.json", "attention.png", "similarity.csv", "heads.csv", "best.csv"}
    assert {str(tmp_path / "out" / name) for name in names} == set(document["files"])
    assert "wrote" in err


def test_redundancy_of_ones_own_network(run, folder, tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    own = f"{tmp_path / 'own.py'}:make"
    flags = ["--images", 8, "--workers", 0, "--tolerance", 100, "--out", tmp_path / "out", "--json"]
    code, out, err = run("redundancy", own, folder, *flags)
    assert code == 0, err
    document = json.loads(out)
    assert document["layers"][0]["layer"] == "only"
    assert document["savings"] is None
    assert document["findings"][0].startswith("Mean similarity: ")  # of one layer nothing is late
    assert "heads of this network cannot be pruned" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["redundancy", "{own}:make", "{folder}", "--queries", "1.5,0"], "--queries must be points X,Y"),
        (["redundancy", "{own}:make", "{folder}", "--images", "0"], "images must be at least 1, got 0"),
        (["redundancy", "{own}:make", "{folder}", "--device", "abacus"], "abacus"),
        (["redundancy", "{own}:make", "{folder}", "--threads", "0"], "threads must be at least 1, got 0"),
        (["redundancy", "{own}:make", "{folder}", "--pictures", "no.png"], "no.png"),
        (["redundancy", "{own}:make", "no/such/data"], "no/such/data"),
        (["redundancy", "{own}:wrong", "{folder}"], "must return (network, layers, classes, preprocess), got Linear"),
        (["redundancy", "{own}:unlisted", "{folder}"], "layers must be a list of shvit.study.heads.AttentionLayer"),
        (["redundancy", "{own}:missing", "{folder}"], "has no function 'missing'"),
        (["redundancy", "no.py:make", "{folder}"], "no.py: no such file"),
        (["macro", "--size", "s9"], "s9"),
        (["ablation", "--engine", "abacus"], "there is no such engine"),
        (["ablation", "--seeds", "0", "--train", "{folder}"], "seeds must be at least 1, got 0"),
        (["ablation", "--seeds", "2", "--epochs", "3"], "--epochs and --seeds have no effect without --train DATA"),
        (["macro", "--train", "no/such/data"], "no/such/data"),
        (["breakdown", "shvit_s1", "--threads", "0"], "threads must be at least 1, got 0"),
        (["breakdown", "shvit_s1", "--engine", "executorch"], "it has no profiler"),
        (["breakdown", "shvit_s1", "--batch-size", "0"], "batch_size must be at least 1, got 0"),
        (["breakdown", "shvit_s9"], "did you mean"),
        (["resolution", "shvit_s1", "--image-size", "8"], "image_size must be at least 32, got 8"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_input_is_one_line(run, folder, tmp_path, arguments, reason):
    (tmp_path / "own.py").write_text(OWN)
    names = {"own": tmp_path / "own.py", "folder": folder}
    code, out, err = run(*(word.format(**names) for word in arguments), "--out", tmp_path / "out")
    assert (code, out) == (2, ""), err
    assert reason in err
    assert not (tmp_path / "out" / "report.html").exists()


@pytest.mark.slow
def test_designs_trained_and_timed(run, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("shvit.train.metrics.draw_curves", lambda *_: None)
    flags = ["--size", "s1", "--image-size", 32, "--engine", "onnx", "--batch-size", 1, "--threads", 1, "--rounds", 1]
    learn = ["--train", folder, "--epochs", 1, "--workers", 0]
    code, out, err = run("designs", *flags, *learn, "--out", tmp_path / "out", "--json")
    assert code == 0, err
    document = json.loads(out)
    assert [len(row["speeds"]) for row in document["rows"]] == [1, 1, 1]
    for row in document["rows"]:
        weights = tmp_path / "out" / "runs" / f"{row['entry']['model'].replace('/', '-')}-seed0"
        assert row["mean_top1"] == shvit.load(weights / "best.safetensors").metrics["top1"]
    code, _, err = run("designs", *flags, "--train", folder, "--epochs", 2, "--workers", 0, "--out", tmp_path / "out")
    assert code == 2, err
    assert "began with epochs 1, not 2: choose another --out for a new run" in err
    assert json.loads((tmp_path / "out" / "study.json").read_text())["rows"] == document["rows"]
    assert {path.name for path in (tmp_path / "out").glob("*.csv")} == {
        "costs.csv", "speed.csv", "stages_onnx.csv", "accuracy.csv"
    }  # fmt: skip
    page = (tmp_path / "out" / "report.html").read_text()
    assert "trained with one seed" in page
    assert "at 32 pixels" in page


def test_breakdown_shows_a_variant_beside_its_multi_head_sister(run, tmp_path):
    flags = ["--engine", "onnx", "--image-size", 32, "--batch-size", 1, "--threads", 1, "--out", tmp_path, "--json"]
    code, out, err = run("breakdown", "shvit_s1", *flags)
    assert code == 0, err
    document = json.loads(out)
    assert [row["model"] for row in document["rows"]] == ["shvit_s1", "study/s1-multi-head"]
    assert all(0 < row["attention_memory_bound"] < 1 for row in document["rows"])
    assert (tmp_path / "whole.csv").exists()
    assert (tmp_path / "attention.png").exists()


@pytest.mark.slow
def test_resolution_of_weights_and_of_a_name(run, tiny, folder, tmp_path):
    shvit.save(tiny, tmp_path / "tiny.safetensors")
    sizes = ["--image-size", 32, 64, "--data", folder]
    flags = ["--engine", "onnx", "--batch-size", 1, "--threads", 1, "--rounds", 1, "--out", tmp_path / "out", "--json"]
    code, out, err = run("resolution", tmp_path / "tiny.safetensors", "shvit_s1", *sizes, *flags)
    assert code == 0, err
    document = json.loads(out)
    assert len(document["points"]) == 4
    assert [(row["image_size"], row["images"]) for row in document["accuracies"]] == [(32, 12), (64, 12)]
    assert (tmp_path / "out" / "tradeoff.png").exists()
    assert (
        "top-1 of shvit_s1: it has no weights: give a model file, or train it with --train DATA" in document["omitted"]
    )
