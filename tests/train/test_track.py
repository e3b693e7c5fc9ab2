"""TensorBoard curves, and progress lines without a terminal."""

import io
import re
import signal

import pytest
from rich.console import Console

import shvit
from conftest import tiny_architecture
from shvit.data.transforms import Preprocess
from shvit.modelfile import ModelFile, save
from shvit.requests.train import TrainRequest
from shvit.train import progress
from shvit.train import run as runs
from shvit.train.loop import Trainer
from shvit.train.metrics import read_metrics
from shvit.train.progress import Reporter
from shvit.train.run import train

SETTINGS = {"batch_size": 4, "compile": "off", "precision": "fp32"}


@pytest.fixture
def start(tmp_path):
    save(ModelFile(tiny_architecture().build(), ("dark", "light"), Preprocess(32)), tmp_path / "start.safetensors")
    return str(tmp_path / "start.safetensors")


def curves(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_tensorboard_shows_steps_and_epochs(folder, start, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    monkeypatch.setattr(progress, "CURVE_STEPS", 5)
    settings = {**SETTINGS, "epochs": 2}
    train(
        TrainRequest(
            folder, out=tmp_path / "run", model=start, device="cpu", workers=0, track="tensorboard", settings=settings
        )
    )
    found = curves(tmp_path / "run" / "tensorboard")
    assert [step for step, _ in found["step/loss"]] == [5, 10, 15, 20]
    rows = read_metrics(tmp_path / "run")
    assert [value for _, value in found["epoch/ema_top1"]] == pytest.approx([row["ema_top1"] for row in rows])
    assert [value for _, value in found["epoch/train_loss"]] == pytest.approx([row["train_loss"] for row in rows])
    assert {"step/lr", "step/images_per_second", "step/data_wait"} <= set(found)


def test_curves_of_a_resumed_run_are_complete(folder, start, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    monkeypatch.setattr(progress, "CURVE_STEPS", 5)
    options = {"out": tmp_path / "run", "device": "cpu", "workers": 0, "track": "tensorboard"}
    step = Trainer.train_step

    def stopping(self, pieces):
        step(self, pieces)
        self.stopped_by = signal.SIGINT if (self.epoch, self.step) == (0, 9) else None

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "train_step", stopping)
        assert train(TrainRequest(folder, model=start, settings={**SETTINGS, "epochs": 2}, **options)).epochs == 1
    train(TrainRequest(folder, resume=True, **options))
    found = curves(tmp_path / "run" / "tensorboard")
    assert [step for step, _ in found["step/loss"]] == [5, 10, 15, 20]
    assert [step for step, _ in found["epoch/train_loss"]] == [10, 20]


def test_unknown_or_missing_trackers(folder, start, tmp_path, monkeypatch):
    with pytest.raises(shvit.InputError, match="track must be tensorboard, got 'wandb'"):
        train(TrainRequest(folder, out=tmp_path / "run", model=start, device="cpu", track="wandb"))
    monkeypatch.setattr(runs, "find_spec", lambda _: None)
    with pytest.raises(shvit.InputError, match=r"needs the package tensorboard: pip install 'shvit\[tensorboard\]'"):
        train(TrainRequest(folder, out=tmp_path / "run", model=start, device="cpu", track="tensorboard"))
    assert not (tmp_path / "run").exists()


def test_progress_lines_without_a_terminal(folder, start, tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    text = io.StringIO()
    reporter = Reporter(Console(file=text, width=200))
    train(
        TrainRequest(
            folder, out=tmp_path / "run", model=start, device="cpu", workers=0, settings={**SETTINGS, "epochs": 1}
        ),
        reporter,
    )
    lines = text.getvalue().splitlines()
    steps = [line for line in lines if ", step " in line]
    assert len(steps) == 10
    pattern = r"epoch 1/1, step 3/10 · loss \d\.\d+ · \d+ images/s · data wait \d+% · 0m\d\ds left"
    assert re.fullmatch(pattern, steps[2])
    assert "data wait" in next(line for line in reversed(lines) if line.startswith("epoch"))
