"""Which epoch is the best, and early stopping."""

import json
import math
import signal

import pytest
import torch
from safetensors.torch import load_file

import shvit
from conftest import tiny_architecture
from shvit.data.transforms import Preprocess
from shvit.modelfile import ModelFile, save
from shvit.requests.train import TrainRequest
from shvit.tasks.base import alone
from shvit.tasks.classify import Classify
from shvit.tasks.detect import Detect
from shvit.train import loop
from shvit.train.checkpoint import Checkpoint
from shvit.train.metrics import draw_curves, read_metrics
from shvit.train.recipe import Recipe
from shvit.train.run import train
from shvit.train.selection import Selection

FLAGS = {"epochs": 9, "batch_size": 40, "compile": "off", "precision": "fp32"}


@pytest.fixture
def start(tmp_path):
    save(ModelFile(tiny_architecture().build(), ("dark", "light"), Preprocess(32)), tmp_path / "start.safetensors")
    return str(tmp_path / "start.safetensors")


def go(data, start, out, resume=False, **settings):
    settings = {} if resume else {**FLAGS, "ema": 0.0, **settings}
    where = {"device": "cpu", "workers": 0, "resume": resume}
    return train(TrainRequest(data, out=out, model=start, recipe="scratch", settings=settings, **where))


def metrics(top1=0.5, balanced=0.5, loss=1.0):
    return {"top1": top1, "top5": 1.0, "balanced_accuracy": balanced, "macro_f1": 0.4, "loss": loss, "images": 12}


@pytest.fixture
def scripted(monkeypatch):
    """The evaluations of epochs, in their order, give these metrics, and steps are skipped."""

    def scripted(*results):
        left, measure = iter(results), Classify.evaluate

        def evaluate(self, predict, batches, gather=alone, keep=False):
            if keep:  # at the end of a run
                return measure(self, predict, batches, gather, keep)
            result = next(left)
            return type("Judged", (), {"metrics": lambda _: dict(result), "bad": {}})()

        monkeypatch.setattr(Classify, "evaluate", evaluate)
        monkeypatch.setattr(loop.Trainer, "train_step", lambda *_: None)

    return scripted


DISAGREE = [metrics(0.9, 0.5, 3.0), metrics(0.8, 0.7, 2.0), metrics(0.7, 0.6, 1.5), metrics(0.6, 0.5, 1.8)]


@pytest.mark.parametrize(
    ("select_by", "epoch", "key"),
    [(None, 1, "top1"), ("top1", 1, "top1"), ("balanced", 2, "balanced_accuracy"), ("loss", 3, "loss")],
)
def test_the_best_epoch_is_that_of_the_chosen_metric(folder, start, tmp_path, scripted, select_by, epoch, key):
    scripted(*DISAGREE)
    result = go(folder, start, tmp_path / "run", epochs=4, select_by=select_by)
    assert (result.best["epoch"], result.selected_by, result.stopped_early) == (epoch, key, False)
    saved = shvit.load(tmp_path / "run" / "best.safetensors")
    assert (saved.metrics["epoch"], saved.metrics[key]) == (epoch, DISAGREE[epoch - 1][key])
    assert Checkpoint.load(tmp_path / "run")[0].best_metrics.items() <= result.best.items()
    assert [row[f"model_{key}"] for row in read_metrics(tmp_path / "run")] == [each[key] for each in DISAGREE]
    assert [row["model_top1"] for row in read_metrics(tmp_path / "run")] == [0.9, 0.8, 0.7, 0.6]
    assert result.to_dict()["selected_by"] == key


@pytest.mark.parametrize(("select_by", "chosen"), [("top1", "ema"), ("balanced", "model"), ("loss", "model")])
def test_the_better_of_two_sets_of_weights_is_that_of_the_chosen_metric(
    folder, start, tmp_path, scripted, select_by, chosen
):
    scripted(metrics(0.9, 0.5, 3.0), metrics(0.8, 0.7, 2.0))  # the EMA weights are evaluated first
    go(folder, start, tmp_path / "run", epochs=1, ema=0.5, select_by=select_by)
    for name in ("best", "last"):
        assert shvit.load(tmp_path / "run" / f"{name}.safetensors").metrics["weights"] == chosen


def test_a_loss_that_is_not_a_number_is_never_the_better_one():
    selection = Selection(Classify(("a", "b")), Recipe(select_by="loss"))
    assert selection.improves({"epoch": 1, "loss": math.nan})  # the first evaluation, so that there is a file
    assert not selection.improves({"epoch": 2, "loss": math.nan})
    assert selection.improves({"epoch": 3, "loss": 5.0})
    assert not selection.improves({"epoch": 4, "loss": 5.0})
    assert selection.better({"ema": {"loss": math.nan}, "model": {"loss": 7.0}}) == "model"
    assert selection.better({"ema": {}, "model": {}}) == "ema"


def test_a_detector_is_selected_by_its_ap():
    selection = Selection(Detect(("cat",)), Recipe(name="small"))
    assert selection.metrics == ("AP",)
    assert selection.improves({"epoch": 1, "AP": 0.2})
    assert not selection.improves({"epoch": 2, "AP": 0.1})


def test_a_detector_has_no_other_selection(run, folder, start, tmp_path):
    out = tmp_path / "run"
    code, _, err = run("train", folder, "--task", "detect", "--select-by", "top1", "--out", out, "--model", start)
    assert (code, "recipes for task detect have no select_by" in err) == (2, True), err
    assert not out.exists()


RISE_AND_FALL = [metrics(top1) for top1 in (0.5, 0.7, 0.6, 0.8, 0.8, 0.7, 0.6, 0.9, 0.9)]


@pytest.mark.parametrize(
    ("settings", "epochs", "best"),
    [
        ({}, 9, 8),
        ({"patience": 0}, 9, 8),
        ({"patience": 1}, 3, 2),
        ({"patience": 2}, 6, 4),
        ({"patience": 3}, 7, 4),
        ({"patience": 4}, 9, 8),
        ({"patience": 2, "eval_every": 2, "epochs": 18}, 12, 8),
    ],
    ids=str,
)
def test_a_run_stops_after_evaluations_without_improvement(folder, start, tmp_path, scripted, settings, epochs, best):
    scripted(*RISE_AND_FALL)
    result = go(folder, start, tmp_path / "run", **settings)
    assert (result.epochs, result.best["epoch"]) == (epochs, best)
    assert result.stopped_early == (epochs < settings.get("epochs", 9))
    assert not result.interrupted
    assert len(read_metrics(tmp_path / "run")) == epochs
    assert shvit.load(tmp_path / "run" / "best.safetensors").metrics["epoch"] == best
    assert shvit.load(tmp_path / "run" / "last.safetensors").metrics["epoch"] == epochs
    assert Checkpoint.load(tmp_path / "run")[0].epoch == epochs


def test_patience_is_for_the_chosen_metric(folder, start, tmp_path, scripted):
    scripted(*(metrics(0.1 * epoch, loss=abs(epoch - 3.5)) for epoch in range(1, 10)))
    result = go(folder, start, tmp_path / "run", patience=3, select_by="loss")
    assert (result.epochs, result.best["epoch"], result.stopped_early) == (6, 3, True)


def test_patience_is_counted_across_resuming(folder, start, tmp_path, scripted, monkeypatch):
    """Stopped in epoch 6, one evaluation after the best: the whole run would stop after epoch 7."""
    scripted(*RISE_AND_FALL)

    def stopping(self, _):
        self.stopped_by = signal.SIGINT if self.epoch == 5 and not resumed else None

    resumed = False
    monkeypatch.setattr(loop.Trainer, "train_step", stopping)
    assert go(folder, start, tmp_path / "run", patience=3, batch_size=20).interrupted
    resumed = True
    result = go(folder, start, tmp_path / "run", resume=True)
    assert (result.epochs, result.best["epoch"], result.stopped_early, result.interrupted) == (7, 4, True, False)


def test_all_weights_are_evaluated_before_a_run_stops(folder, start, tmp_path, scripted, monkeypatch):
    """With many validation images, the model's own weights are evaluated only when the run may end."""
    rows = [metrics(0.6), metrics(0.5), metrics(0.9), metrics(0.5), metrics(0.4), metrics(0.3)]
    scripted(*rows)
    for index in range(60):
        (folder / "val" / "dark" / f"copy{index}.png").write_bytes((folder / "val" / "dark" / "100.png").read_bytes())
    result = go(folder, start, tmp_path / "run", ema=0.5, patience=1, epochs=6)
    written = read_metrics(tmp_path / "run")
    assert [row.get("model_top1") for row in written] == [None, 0.9, 0.4][: len(written)]
    assert (result.epochs, result.best["epoch"], result.best["weights"]) == (3, 2, "model")


def test_what_is_printed_and_what_resuming_says(run, folder, start, tmp_path, scripted):
    scripted(*RISE_AND_FALL)
    out = tmp_path / "run"
    flags = ["--epochs", 9, "--batch-size", 40, "--compile", "off", "--ema", 0, "--workers", 0, "--patience", 2]
    code, text, err = run("train", folder, "--model", start, "--out", out, *flags, "--select-by", "balanced")
    assert code == 0, err
    assert "stopped early: no improvement of balanced accuracy in 2 evaluations (best in epoch 1)" in text
    assert "best balanced accuracy 50.00%, top-1 50.00%, macro F1 40.00% in epoch 1: " in text
    assert "· balanced accuracy 50.00% · top-1 70.00% ·" in text
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    code, text, err = run("train", folder, "--out", out, "--resume", "--workers", 0, "--json")
    assert code == 0, err
    document = json.loads(text)
    assert (document["stopped_early"], document["epochs"], document["interrupted"]) == (True, 3, False)
    code, text, err = run("train", folder, "--out", out, "--resume", "--workers", 0)
    assert code == 0, err
    assert f"nothing to resume: the run in {out} is complete (3 of 9 epochs)" in text
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    code, text, _ = run("info", out / "best.safetensors")
    assert (code, "top-1 50.00%, balanced accuracy 50.00%, macro F1 40.00% on 12 images" in text) == (0, True)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--patience", 3, "--epochs", 4], "--patience has no effect with at most 4 evaluations"),
        (["--patience", 2, "--epochs", 9, "--eval-every", 4], "--patience has no effect with at most 3 evaluations"),
        (["--patience", -1], "patience must be a whole number of at least 0, got -1"),
    ],
)
def test_patience_without_effect(run, folder, start, tmp_path, flags, reason):
    code, _, err = run("train", folder, "--model", start, "--out", tmp_path / "run", *flags)
    assert (code, reason in err) == (2, True), err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("best", [0.5, -1.0], ids=["after an evaluation", "before the first evaluation"])
def test_a_checkpoint_of_an_earlier_version_is_resumed(folder, start, tmp_path, scripted, best):
    """These had a number `best`, and recipes without the new settings."""
    from shvit.train.checkpoint import _digest

    scripted(metrics(0.5), metrics(0.4), metrics(0.6))
    out = tmp_path / "run"
    go(folder, start, out, epochs=1)
    content = torch.load(out / "state.pt", weights_only=True)
    del content["digest"]
    content["best"] = best
    if best < 0:
        content |= {"epoch": 0, "best_metrics": {}}
    torch.save({**content, "digest": _digest(content)}, out / "state.pt")
    record = json.loads((out / "recipe.json").read_text())
    for name in ("balance", "select_by", "patience"):
        del record["recipe"][name]
    record["recipe"]["epochs"] = 3 if best > 0 else 2
    (out / "recipe.json").write_text(json.dumps(record))
    result = go(folder, start, out, resume=True)
    assert (result.epochs, result.best["top1"]) == ((3, 0.6) if best > 0 else (2, 0.6))
    assert load_file(out / "best.safetensors").keys() == load_file(out / "last.safetensors").keys()


@pytest.mark.drawn
@pytest.mark.parametrize("metric", ["top1", "balanced_accuracy", "loss"])
def test_curves_show_the_chosen_metric(tmp_path, monkeypatch, metric):
    from matplotlib.axes import Axes

    rows = [
        {"epoch": 1 + i, "train_loss": 2.0, **each, f"ema_{metric}": each[metric]} for i, each in enumerate(DISAGREE)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plot, drawn = Axes.plot, {}
    monkeypatch.setattr(
        Axes, "plot", lambda self, x, y, **k: drawn.update({k["label"]: (list(x), list(y))}) or plot(self, x, y, **k)
    )
    draw_curves(tmp_path, metric)
    assert drawn["EMA weights"] == ([1, 2, 3, 4], [each[metric] for each in DISAGREE])
    assert (tmp_path / "curves.png").stat().st_size > 1000
