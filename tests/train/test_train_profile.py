"""`train --profile` finds the bottleneck."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from conftest import tiny_architecture
from shvit.cli.main import app
from shvit.data.augmentation import TrainReader
from shvit.data.transforms import Preprocess
from shvit.modelfile import ModelFile, save
from shvit.requests.train import TrainRequest
from shvit.train.bad_images import TrainError
from shvit.train.loop import Trainer
from shvit.train.profile import Profile
from shvit.train.run import profile

SETTINGS = {"batch_size": 8, "compile": "off", "precision": "fp32", "epochs": 1}


@pytest.fixture
def start(tmp_path):
    save(ModelFile(tiny_architecture().build(), ("dark", "light"), Preprocess(32)), tmp_path / "start.safetensors")
    return str(tmp_path / "start.safetensors")


@pytest.mark.parametrize(("seconds_an_image", "slow"), [(0.01, "data"), (0.001, "compute")])
def test_the_bottleneck_is_what_was_made_slow(folder, start, monkeypatch, seconds_an_image, slow):
    """Uses a clock that only reading and computing advance, so other load on the machine does not matter."""
    clock = SimpleNamespace(now=0.0, perf_counter=lambda: clock.now)
    monkeypatch.setattr("shvit.train.profile.time", clock)

    def takes(seconds, where, name):
        work = getattr(where, name)

        def timed(self, argument):
            clock.now += seconds
            return work(self, argument)

        monkeypatch.setattr(where, name, timed)

    takes(seconds_an_image, TrainReader, "__call__")
    takes(0.02, Trainer, "train_step")
    found = profile(TrainRequest(folder, model=start, device="cpu", workers=0, settings=SETTINGS))
    assert found.bottleneck == slow
    assert found.data == pytest.approx(1 / seconds_an_image)
    assert found.compute == pytest.approx(8 / 0.02)
    assert found.data_wait == pytest.approx(8 * seconds_an_image / (8 * seconds_an_image + 0.02))


def test_profile_trains_nothing(folder, start, tmp_path, capsys):
    flags = ["--batch-size", "8", "--compile", "off", "--epochs", "1", "--device", "cpu", "--workers", "0"]
    command = ["train", str(folder), "--model", start, "--profile", *flags]
    app([*command, "--json"], exit_on_error=False, result_action="return_value")
    result = json.loads(capsys.readouterr().out)
    assert result["bottleneck"] in ("data", "compute")
    assert result["batch_size"] == 8
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "start.safetensors"]


def test_profiling_without_usable_images(folder, start):
    for path in (folder / "train").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(TrainError, match="a whole epoch has no training step with usable images"):
        profile(TrainRequest(folder, model=start, device="cpu", workers=0, settings=SETTINGS))


def test_the_slower_one_is_the_bottleneck():
    found = Profile(100.0, 50.0, 45.0, 0.0, 2, 64, False, "fp32")
    assert found.bottleneck == "compute"
    assert replace(found, data=40.0).bottleneck == "data"
