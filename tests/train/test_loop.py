"""The training loop: learning, exact reproducibility, errors, and the files of a run."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

import shvit
from conftest import SHARED, tiny_architecture, wait_for, write_pictures
from shvit import engines
from shvit.data.sources import open_source
from shvit.data.transforms import Preprocess
from shvit.evaluate import evaluate_model
from shvit.modelfile import ModelFile
from shvit.requests.train import TrainRequest
from shvit.tasks.base import alone
from shvit.tasks.classify import Classify
from shvit.train import bad_images as bad
from shvit.train import loop
from shvit.train.metrics import read_metrics
from shvit.train.progress import Reporter
from shvit.train.run import train

SETTINGS = {
    "epochs": 3,
    "batch_size": 8,
    "lr": 1e-2,
    "lr_batch": 8,
    "flip": 0.5,
    "compile": "off",
    "precision": "fp32",
}


@pytest.fixture
def start(tmp_path):
    """A small network to start from, with other classes than the dataset."""
    shvit.save(ModelFile(tiny_architecture(5).build(), tuple("abcde"), Preprocess(32)), tmp_path / "start.safetensors")
    return str(tmp_path / "start.safetensors")


def run(data, start, out, workers=0, resume=False, **settings):
    merged = {} if resume else {**SETTINGS, **settings}
    return train(
        TrainRequest(
            data, out=out, model=start, recipe="scratch", resume=resume, device="cpu", workers=workers, settings=merged
        )
    )


def weights(out, name="last"):
    return load_file(out / f"{name}.safetensors")


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def state(out):
    return torch.load(out / "state.pt", weights_only=True)


@pytest.mark.drawn
def test_it_learns_and_writes_all_files(folder, start, tmp_path):
    result = run(folder, start, tmp_path / "run", epochs=8)
    assert result.best["top1"] == 1.0
    assert not result.interrupted
    names = {path.name for path in (tmp_path / "run").iterdir()}
    states = {"state.pt", "state.previous.pt"}
    models, rows = {"best.safetensors", "last.safetensors"}, {"metrics.jsonl", "curves.png"}
    assert names == states | models | rows | {"recipe.json", "report.html"}
    best = shvit.load(tmp_path / "run" / "best.safetensors")
    assert best.classes == ("dark", "light")
    assert best.metrics["top1"] == 1.0
    assert (
        best.provenance["recipe"]["effective_lr"]
        == json.loads((tmp_path / "run" / "recipe.json").read_text())["recipe"]["effective_lr"]
    )
    assert set(best.provenance) >= {"recipe", "data_fingerprint", "versions", "commit"}
    rows = read_metrics(tmp_path / "run")
    assert [row["epoch"] for row in rows] == list(range(1, 9))
    assert {"train_loss", "lr", "images_per_second", "data_wait", "seconds", "ema_top1"} <= set(rows[0])
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]


def test_the_saved_metrics_are_those_of_the_saved_weights(folder, start, tmp_path):
    run(folder, start, tmp_path / "run", epochs=2)
    best = shvit.load(tmp_path / "run" / "best.safetensors")
    report = evaluate_model(best, engines.load(best, "torch", "fp32", "cpu"), open_source(folder))
    assert report.evaluation.top1 == best.metrics["top1"]
    assert report.evaluation.loss == pytest.approx(best.metrics["loss"], rel=1e-4)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_no_bit(folder, start, tmp_path, workers):
    run(folder, start, tmp_path / "a", workers=0, epochs=1, rand_augment=9, mixup=0.8, random_erasing=0.3)
    run(folder, start, tmp_path / "b", workers=workers, epochs=1, rand_augment=9, mixup=0.8, random_erasing=0.3)
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert same(state(tmp_path / "a")["model"], state(tmp_path / "b")["model"])


def test_another_seed_is_another_network(folder, start, tmp_path):
    run(folder, start, tmp_path / "a", epochs=1)
    run(folder, start, tmp_path / "b", epochs=1, seed=1)
    assert not same(weights(tmp_path / "a"), weights(tmp_path / "b"))


@pytest.mark.parametrize("stop_after", [3, 5, 12])
@pytest.mark.parametrize("workers", [0, 2])
def test_stopped_and_resumed_equals_uninterrupted(folder, start, tmp_path, monkeypatch, stop_after, workers):
    """With 5 steps per epoch: during the first epoch, at its end, and in the third."""
    run(folder, start, tmp_path / "whole", workers=workers)
    step, done = loop.Trainer.train_step, []

    def stopping(self, batch):
        step(self, batch)
        done.append(batch)
        self.stopped_by = signal.SIGINT if len(done) == stop_after else None

    with monkeypatch.context() as patched:
        patched.setattr(loop.Trainer, "train_step", stopping)
        assert run(folder, start, tmp_path / "parts", workers=workers).interrupted
    result = run(folder, start, tmp_path / "parts", workers=workers, resume=True)
    assert not result.interrupted
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    assert same(weights(tmp_path / "whole", "best"), weights(tmp_path / "parts", "best"))
    assert same(state(tmp_path / "whole")["ema"], state(tmp_path / "parts")["ema"])
    assert [row["train_loss"] for row in read_metrics(tmp_path / "whole")] == [
        row["train_loss"] for row in read_metrics(tmp_path / "parts")
    ]


@pytest.mark.parametrize(
    ("recipe", "chosen", "fit"),
    [
        ("highres", None, "stretch"),
        ("highres", "crop", "crop"),
        ("finetune", None, "crop"),
        ("finetune", "stretch", "stretch"),
        ("scratch", "letterbox", "letterbox"),
    ],
)
def test_the_model_file_records_how_images_fit(folder, start, tmp_path, monkeypatch, recipe, chosen, fit):
    monkeypatch.setattr(loop.Trainer, "train_step", lambda *_: None)
    settings = {"epochs": 1, "batch_size": 8, "image_size": 32, "fit": chosen}
    train(
        TrainRequest(
            folder, out=tmp_path / "run", model=start, recipe=recipe, device="cpu", workers=0, settings=settings
        )
    )
    trained = tmp_path / "run" / "best.safetensors"
    assert shvit.load(trained).preprocess.fit == fit
    train(
        TrainRequest(
            folder,
            out=tmp_path / "more",
            model=str(trained),
            device="cpu",
            workers=0,
            settings=settings | {"fit": None},
        )
    )
    assert shvit.load(tmp_path / "more" / "best.safetensors").preprocess.fit == fit


@pytest.mark.parametrize("warmup", [False, True])
def test_the_ema_decay_is_the_recipes(folder, start, tmp_path, monkeypatch, warmup):
    """Compares EMA weights and buffers with the written-out sum."""
    step, seen = loop.Trainer.train_step, []

    def watched(self, batch):
        seen[:] = seen or [{name: value.clone() for name, value in self.model.state_dict().items()}]
        step(self, batch)
        seen.append({name: value.clone() for name, value in self.model.state_dict().items()})

    monkeypatch.setattr(loop.Trainer, "train_step", watched)
    run(folder, start, tmp_path / "run", ema=0.9, ema_warmup=warmup)
    decays = [min(0.9, 1 - max(1, step) ** (-2 / 3)) if warmup else 0.9 for step in range(len(seen) - 1)]
    found = state(tmp_path / "run")["ema"]
    assert any("running_var" in name for name in found)
    for name in (name for name, value in found.items() if value.is_floating_point()):
        average = seen[0][name]
        for decay, values in zip(decays, seen[1:], strict=True):
            average = decay * average + (1 - decay) * values[name]
        torch.testing.assert_close(found[name], average)


def test_the_learning_rate_of_an_epoch_is_the_schedules(folder, start, tmp_path):
    run(folder, start, tmp_path / "run", epochs=5, schedule_by="epoch", warmup_epochs=2.0, warmup_lr=1e-3)
    shown = [row["lr"] for row in read_metrics(tmp_path / "run")]
    assert shown == pytest.approx([1e-3, 1e-3, 5.5e-3, 6.545e-3 + 6e-6, 3.455e-3 + 4e-6], rel=1e-3)


def test_a_run_from_before_these_fields_existed_keeps_its_behaviour(folder, start, tmp_path, monkeypatch):
    before = {"schedule_by": "step", "ema_warmup": True, "interpolation": "random"}
    run(folder, start, tmp_path / "whole", **before)
    step = loop.Trainer.train_step

    def stopping(self, batch):
        step(self, batch)
        self.stopped_by = signal.SIGINT if (self.epoch, self.step) == (1, 1) else None

    with monkeypatch.context() as patched:
        patched.setattr(loop.Trainer, "train_step", stopping)
        run(folder, start, tmp_path / "parts", **before)
    record = json.loads((tmp_path / "parts" / "recipe.json").read_text())
    for name in before:
        del record["recipe"][name]
    del record["choices"]
    (tmp_path / "parts" / "recipe.json").write_text(json.dumps(record))
    run(folder, start, tmp_path / "parts", resume=True)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    assert same(state(tmp_path / "whole")["ema"], state(tmp_path / "parts")["ema"])


def test_adapted_settings_are_printed_with_reasons_and_recorded(folder, start, tmp_path, capsys):
    train(
        TrainRequest(folder, out=tmp_path / "run", model=start, device="cpu", workers=0, settings={"epochs": 1}),
        Reporter(Console()),
    )
    images = len(open_source(folder).train)
    said = capsys.readouterr().out
    assert f"settings for {images} images x 1 epoch" in said
    assert f"batch size 16 (2048): {images} images x 1 epoch give 0 steps of 2,048 images; halved until" in said
    record = json.loads((tmp_path / "run" / "recipe.json").read_text())
    chosen = {choice["field"]: (choice["published"], choice["used"]) for choice in record["choices"]}
    assert chosen["batch_size"] == (2048, record["recipe"]["batch_size"])
    assert chosen["interpolation"] == ("bicubic", "random")
    assert all(choice["reason"] for choice in record["choices"])


def test_the_ema_weights_are_saved_if_they_are_better(folder, start, tmp_path, monkeypatch):
    """With a metric that prefers the EMA weights, then with one that prefers the others."""
    measured = Classify.evaluate
    for preferred, other in (("ema", "model"), ("model", "ema")):
        calls = []

        def scored(self, predict, batches, gather=alone, keep=False, _order=preferred, _calls=calls):
            if keep:  # at the end of the run
                return measured(self, predict, batches, gather, keep)
            _calls.append(None)
            is_ema = len(_calls) % 2 == 1  # the EMA weights are evaluated first
            score = 0.9 if (_order == "ema") == is_ema else 0.1
            return type("Judged", (), {"metrics": lambda _: {"top1": score, "loss": 1.0}, "bad": {}})()

        with monkeypatch.context() as patched:
            patched.setattr(Classify, "evaluate", scored)
            run(folder, start, tmp_path / preferred, epochs=1)
        saved = shvit.load(tmp_path / preferred / "best.safetensors")
        assert saved.metrics["weights"] == preferred
        kept = state(tmp_path / preferred)
        assert same(weights(tmp_path / preferred, "best"), kept[preferred])
        assert not same(weights(tmp_path / preferred, "best"), kept[other])


@pytest.mark.drawn
def test_evaluations_every_few_epochs(folder, start, tmp_path):
    result = run(folder, start, tmp_path / "run", epochs=4, eval_every=3)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert ["top1" in row for row in rows] == [False, False, True, True]
    assert result.best["epoch"] in (3, 4)
    assert (tmp_path / "run" / "curves.png").exists()


def test_without_ema(folder, start, tmp_path):
    run(folder, start, tmp_path / "run", epochs=1, ema=0.0)
    assert "ema_top1" not in read_metrics(tmp_path / "run")[0]
    assert shvit.load(tmp_path / "run" / "best.safetensors").metrics["weights"] == "model"


def test_not_a_number_stops_with_the_last_good_weights(folder, start, tmp_path, monkeypatch):
    loss, steps = Classify.loss, []

    def breaking(self, network, images, targets):
        steps.append(None)
        return loss(self, network, images, targets) * (float("nan") if len(steps) == 8 else 1)

    monkeypatch.setattr(Classify, "loss", breaking)
    with pytest.raises(shvit.Failure, match=r"loss became nan in epoch 2, step 3.*last\.safetensors.*--lr") as caught:
        run(folder, start, tmp_path / "run")
    assert "\n" not in str(caught.value)
    kept = shvit.load(tmp_path / "run" / "last.safetensors")
    assert kept.metrics["epoch"] == 1
    assert all(value.isfinite().all() for value in kept.model.state_dict().values())


def test_bad_images_are_listed_and_counted(folder, start, tmp_path):
    (folder / "train" / "dark" / "003.png").write_bytes(b"")
    (folder / "val" / "light" / "101.png").write_bytes(b"nothing")
    result = run(folder, start, tmp_path / "run")
    assert result.best["images"] == 11
    assert result.best["bad_images"] == 1
    with (tmp_path / "run" / "bad_images.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["split", "image", "reason"]
    assert [(r[0], r[1].rsplit("/", 1)[1], r[2]) for r in rows[1:]] == [
        ("train", "003.png", "file is empty"),
        ("val", "101.png", "not an image in a known format"),
    ]


def test_an_image_found_bad_later_is_skipped_from_then_on(folder, start, tmp_path, monkeypatch):
    monkeypatch.setattr(bad, "PROBED", 0)
    for name in ("004.png", "009.png"):
        (folder / "train" / "light" / name).write_bytes(b"")
    run(folder, start, tmp_path / "a", workers=0)
    run(folder, start, tmp_path / "b", workers=2)
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert len(state(tmp_path / "a")["bad_images"]) == 2


def test_too_many_bad_images_stop_before_the_first_step(folder, start, tmp_path):
    for path in sorted((folder / "train" / "dark").iterdir())[:12]:
        path.write_bytes(b"")
    with pytest.raises(shvit.Failure, match=r"12 of 40 training images cannot be used.*bad_images\.csv"):
        run(folder, start, tmp_path / "run")
    assert not (tmp_path / "run" / "state.pt").exists()
    assert (tmp_path / "run" / "bad_images.csv").exists()
    assert not run(folder, start, tmp_path / "other", epochs=1, max_bad_share=0.5).interrupted


def test_duplicates_between_splits_are_reported(folder, start, tmp_path):
    shutil.copy(folder / "train" / "dark" / "001.png", folder / "val" / "dark" / "copy.png")
    run(folder, start, tmp_path / "run", epochs=1)
    assert "copy.png" in (tmp_path / "run" / "duplicates.csv").read_text()


def test_a_run_folder_is_never_overwritten(folder, start, tmp_path):
    run(folder, start, tmp_path / "run", epochs=1)
    with pytest.raises(shvit.InputError, match=r"not empty.*--resume"):
        run(folder, start, tmp_path / "run")


def test_resuming_a_missing_run_or_other_data(folder, start, tmp_path):
    with pytest.raises(shvit.InputError, match="no run to resume"):
        run(folder, start, tmp_path / "nowhere", resume=True)
    run(folder, start, tmp_path / "run", epochs=1)
    with pytest.raises(shvit.InputError, match="began with epochs 1, not 7"):
        train(TrainRequest(folder, out=tmp_path / "run", model=start, resume=True, settings={"epochs": 7}))
    write_pictures(folder / "train" / "dark", 60, 1, first=800)
    with pytest.raises(shvit.Failure, match="not the data"):
        run(folder, start, tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"optimizer": "adamm"}, "optimizer must be one of"),
        ({"speed": 3}, "no speed"),
        ({"batch_size": 64}, "at most 40, the number of training images"),
    ],
)
def test_impossible_settings(folder, start, tmp_path, settings, reason):
    with pytest.raises((shvit.InputError, shvit.Failure), match=reason):
        run(folder, start, tmp_path / "run", **settings)


def test_few_images_make_small_batches(tmp_path, start):
    for name, shade in (("a", 60), ("b", 190)):
        write_pictures(tmp_path / "few" / name, shade, 6)
    result = train(
        TrainRequest(
            tmp_path / "few", out=tmp_path / "run", model=start, device="cpu", workers=0, settings={"epochs": 2}
        )
    )
    assert result.epochs == 2


def test_mixing_pairs_needs_even_batches(folder, start, tmp_path):
    with pytest.raises(shvit.InputError, match="batch size must be even, got 9"):
        run(folder, start, tmp_path / "run", batch_size=9, mixup=0.5)


def test_resuming_needs_neither_the_first_weights_nor_another_model(folder, start, tmp_path):
    run(folder, start, tmp_path / "run", epochs=1)
    Path(start).unlink()
    assert train(TrainRequest(folder, out=tmp_path / "run", resume=True, device="cpu", workers=0)).epochs == 1
    with pytest.raises(shvit.InputError, match="began with model"):
        train(TrainRequest(folder, out=tmp_path / "run", model="shvit_s2", resume=True))
    with pytest.raises(shvit.InputError, match="began with recipe scratch, not finetune"):
        train(TrainRequest(folder, out=tmp_path / "run", recipe="finetune", resume=True))


def test_a_distilled_network_is_fine_tuned_without_its_second_head(folder, tmp_path):
    shvit.save(
        ModelFile(tiny_architecture(3, distilled=True).build(), tuple("abc"), Preprocess(32)),
        tmp_path / "d.safetensors",
    )
    assert run(folder, str(tmp_path / "d.safetensors"), tmp_path / "run", epochs=1).epochs == 1


def test_infinite_weights_at_the_end_of_an_epoch_are_never_saved(folder, start, tmp_path, monkeypatch):
    step = loop.Trainer.train_step

    def breaking(self, batch):
        step(self, batch)
        if self.epoch == 1 and self.step == 4:
            self.model.head.linear.weight.data[0, 0] = torch.inf

    monkeypatch.setattr(loop.Trainer, "train_step", breaking)
    with pytest.raises(shvit.Failure, match=r"weights became infinite or NaN in epoch 2.*last\.safetensors"):
        run(folder, start, tmp_path / "run")
    assert shvit.load(tmp_path / "run" / "last.safetensors").metrics["epoch"] == 1


def test_unknown_recipes_and_models(folder, tmp_path):
    with pytest.raises(shvit.InputError, match="choose from scratch, finetune"):
        train(TrainRequest(folder, out=tmp_path / "run", recipe="paper"))
    with pytest.raises(shvit.InputError, match="unknown model"):
        train(TrainRequest(folder, out=tmp_path / "run", model="resnet"))


def test_a_timm_model_trains_through_the_same_loop(folder, tmp_path):
    result = train(
        TrainRequest(
            folder,
            out=tmp_path / "run",
            model="timm/test_resnet",
            device="cpu",
            workers=0,
            settings={**SETTINGS, "epochs": 2, "image_size": 32},
        )
    )
    assert result.epochs == 2
    assert shvit.load(tmp_path / "run" / "best.safetensors").architecture.name == "timm/test_resnet"


def test_fine_tuning_starts_from_the_weights(folder, start, tmp_path):
    run(folder, start, tmp_path / "first", epochs=8)
    trained = str(tmp_path / "first" / "last.safetensors")
    result = train(
        TrainRequest(
            folder,
            out=tmp_path / "second",
            model=trained,
            recipe="finetune",
            device="cpu",
            workers=0,
            settings={**SETTINGS, "epochs": 1, "lr": 1e-6},
        )
    )
    assert result.best["top1"] == 1.0


@pytest.mark.slow
def test_ctrl_c_saves_and_prints_how_to_resume(folder, start, tmp_path, begin):
    """Sends a real signal to the whole process group with its workers, as a terminal does."""
    command = [sys.executable, "-m", "shvit", "train", str(folder), "--model", start, "--out", str(tmp_path / "run")]
    flags = ["--epochs", "500", "--batch-size", "8", "--compile", "off", "--workers", "2"]
    process = begin([*command, *flags], start_new_session=True)
    wait_for(tmp_path / "run" / "metrics.jsonl", process)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 130, err
    assert "--resume" in out
    assert "Traceback" not in err
    reached = state(tmp_path / "run")
    assert reached["epoch"] >= 1
    resumed = subprocess.run([*command, "--resume", "--epochs", "7"], capture_output=True, text=True, timeout=120)
    assert resumed.returncode == 2
    assert "began with epochs 500, not 7" in resumed.stderr


def test_training_off_the_main_thread(folder, start, tmp_path):
    results = []
    thread = threading.Thread(target=lambda: results.append(run(folder, start, tmp_path / "run", epochs=1)))
    thread.start()
    thread.join()
    assert results[0].epochs == 1


@pytest.mark.slow
def test_compiled_training_learns(folder, start, tmp_path):
    if shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler on a CPU")
    assert run(folder, start, tmp_path / "run", epochs=8, compile="on").best["top1"] == 1.0


@pytest.mark.slow
def test_same_bits_with_any_workers_on_real_photographs(imagenette, tmp_path):
    """A real network in fp32 on a part of imagenette."""
    for split, count in (("train", 16), ("val", 4)):
        for name in ("church", "tench", "golf_ball"):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for path in sorted((SHARED / "imagenette160" / split / name).iterdir())[:count]:
                shutil.copy(path, tmp_path / "data" / split / name)
    reference = None
    for workers in (0, 1, 2):
        out = tmp_path / str(workers)
        settings = {"epochs": 1, "image_size": 96, "batch_size": 16, "compile": "off", "precision": "fp32"}
        train(
            TrainRequest(tmp_path / "data", out=out, model="shvit_s1", device="cpu", workers=workers, settings=settings)
        )
        reference = reference or state(out)["model"]
        assert same(state(out)["model"], reference)
