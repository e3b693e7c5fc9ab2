"""A new task is one class and one row of `TASKS`. Training, evaluation, prediction and export work unchanged."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest

import shvit
from conftest import tiny_architecture
from shvit.data.loader import Batch
from shvit.data.transforms import Preprocess
from shvit.modelfile import ModelFile, save
from shvit.requests.train import TrainRequest
from shvit.tasks import TASKS
from shvit.tasks.base import Gather, Predict, alone
from shvit.tasks.classify import Classify
from shvit.tasks.classify_evaluation import ClassifyEvaluation
from shvit.train.run import train


@dataclass(frozen=True)
class BalancedEvaluation(ClassifyEvaluation):
    """Classification by the mean accuracy of the classes."""

    def metrics(self) -> dict[str, Any]:
        shares = [share for share in self.per_class().values() if share is not None]
        return {"balanced": float(np.mean(shares)), **super().metrics()}

    def summary(self) -> str:
        return f"balanced accuracy {self.metrics()['balanced']:.1%}"


class Balanced(Classify):
    """A task with another metric, output name and batch size."""

    name: ClassVar[str] = "balanced"
    headline: ClassVar[str] = "balanced"
    output: ClassVar[str] = "votes"
    eval_batch_size: ClassVar[int] = 5
    parity_images: ClassVar[int] = 6

    def evaluate(
        self, predict: Predict, batches: Iterable[Batch], gather: Gather = alone, keep: bool = False
    ) -> BalancedEvaluation:
        return BalancedEvaluation(**vars(super().evaluate(predict, batches, gather, keep)))


@pytest.fixture
def balanced(monkeypatch):
    monkeypatch.setitem(TASKS, "balanced", Balanced)


def test_a_new_task_runs_through_every_verb(balanced, run, folder, tmp_path):
    pytest.importorskip("onnxruntime")
    save(ModelFile(tiny_architecture().build(), ("dark", "light"), Preprocess(32)), tmp_path / "start.safetensors")
    settings = {"epochs": 1, "batch_size": 8, "compile": "off", "precision": "fp32"}
    model, out = str(tmp_path / "start.safetensors"), tmp_path / "run"
    where: dict[str, Any] = {"device": "cpu", "workers": 0}
    result = train(TrainRequest(str(folder), model=model, task="balanced", out=out, settings=settings, **where))
    assert 0 <= result.best["balanced"] <= 1
    best = out / "best.safetensors"
    trained = shvit.load(best)
    assert trained.task == "balanced"
    assert trained.metrics["balanced"] == result.best["balanced"]

    code, text, err = run("eval", best, folder, "--workers", 0, "--out", tmp_path / "eval")
    assert (code, "balanced accuracy" in text) == (0, True), err
    judged = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert judged["balanced"] == pytest.approx(result.best["balanced"])

    code, text, err = run("predict", best, folder / "val", "--json", "--top-k", 1)
    assert code == 0, err
    assert {label for row in json.loads(text)["predictions"] for label in row["labels"]} <= {"dark", "light"}
    assert run("predict", best, folder / "val", "--threshold", 0.5)[0] == 2

    code, text, err = run("export", best, "--format", "onnx", "--calibrate", folder, "--json")
    assert code == 0, err
    assert json.loads(text)["parity"]["images"] == 6
    exported = shvit.load(best.with_suffix(".onnx"))
    assert exported.task == "balanced"
    code, text, err = run("eval", best.with_suffix(".onnx"), folder, "--workers", 0, "--json")
    assert (code, json.loads(text)["balanced"]) == (0, pytest.approx(judged["balanced"])), err


def test_another_task_is_refused(tiny, tmp_path):
    save(replace(tiny, task="balanced"), tmp_path / "other.safetensors")
    with pytest.raises(
        shvit.InputError,
        match="its task is 'balanced', but this version of shvit supports only classify, detect, segment",
    ):
        shvit.load(tmp_path / "other.safetensors")
