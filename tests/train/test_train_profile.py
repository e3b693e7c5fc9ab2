"""What is told to be the bottleneck is what is slow."""

import json
import time
from dataclasses import replace

import pytest

from conftest import tiny_architecture
from shvit.cli import app
from shvit.data.transforms import Preprocess, TrainReader
from shvit.modelfile import ModelFile, save
from shvit.train.bad import TrainError
from shvit.train.loop import Trainer
from shvit.train.profile import Profile
from shvit.train.run import profile

SETTINGS = {"batch_size": 8, "compile": "off", "precision": "fp32", "epochs": 1}


@pytest.fixture
def start(tmp_path):
    save(ModelFile(tiny_architecture().build(), ("dark", "light"), Preprocess(32)), tmp_path / "start.safetensors")
    return str(tmp_path / "start.safetensors")


@pytest.mark.parametrize("slow", ["data", "compute"])
def test_the_bottleneck_is_what_was_made_slow(folder, start, monkeypatch, slow):
    where, name = (TrainReader, "__call__") if slow == "data" else (Trainer, "train_step")
    work = getattr(where, name)

    def slowly(self, argument):
        time.sleep(0.01 if slow == "data" else 0.1)
        return work(self, argument)

    monkeypatch.setattr(where, name, slowly)
    found = profile(folder, start, settings=SETTINGS, device="cpu", workers=0)
    assert found.bottleneck == slow
    assert (found.data_wait > 0.5) == (slow == "data")


def test_the_command_trains_nothing(folder, start, tmp_path, capsys):
    flags = ["--batch-size", "8", "--compile", "off", "--epochs", "1", "--device", "cpu", "--workers", "0"]
    command = ["train", str(folder), "--model", start, "--profile", *flags]
    app([*command, "--json"], exit_on_error=False, result_action="return_value")
    result = json.loads(capsys.readouterr().out)
    assert result["bottleneck"] in ("data", "compute")
    assert result["batch_size"] == 8
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "start.safetensors"]


def test_nothing_to_time(folder, start):
    for path in (folder / "train").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(TrainError, match="no step of an epoch has images that can be used"):
        profile(folder, start, settings=SETTINGS, device="cpu", workers=0)


def test_the_slower_one_is_the_bottleneck():
    found = Profile(100.0, 50.0, 45.0, 0.0, 2, 64, False, "fp32")
    assert found.bottleneck == "compute"
    assert replace(found, data=40.0).bottleneck == "data"
