"""A comparison measures what it can, and goes on where it was."""

from dataclasses import replace

import pytest

from shvit.errors import Failure, InputError
from shvit.export.export import export
from shvit.study import compare as module
from shvit.study import speeds
from shvit.study.accuracy import Training
from shvit.study.compare import Comparison, Entry, compare, need_model_file
from shvit.study.experiments import ablation
from shvit.study.speeds import How
from shvit.train.recipes import WEIGHT_DECAY

PAIR = Comparison(
    "pair", "A pair", "?", (), (Entry("one", "shvit_s1"), Entry("larger", "shvit_s1", 2.0, {"gpu": 1.0})), "one"
)
QUICK = How(32, ("onnx",), ("fp32",), (1,), 1, "cpu", 1)


def test_costs_speeds_and_time_of_each(tmp_path):
    seen = []
    found = compare(PAIR, QUICK, None, tmp_path, so_far=seen.append)
    one, larger = found.rows
    assert (one.image_size, larger.image_size) == (32, 64)
    assert one.params == larger.params
    assert larger.macs > 2 * one.macs
    assert larger.activation_bytes > 2 * one.activation_bytes
    assert one.speeds[0].ratio == 1.0
    assert larger.speeds[0].ratio == pytest.approx(larger.speeds[0].images_per_second / one.speeds[0].images_per_second)
    assert [part.engine for part in one.breakdowns] == ["onnx"]
    assert found.pairs() == [("onnx", "fp32", 1)]
    assert [len(one.speeds) for one in seen[-1].rows] == [1, 1]


def test_an_engine_that_fails_costs_the_others_nothing(tmp_path, monkeypatch):
    measured = speeds.bench

    def bench(request, *rest):
        if request.engines == ("torch",):
            raise Failure("out of luck")
        return measured(request, *rest)

    def profiled(model, engine, *rest):
        raise RuntimeError("no profile")

    monkeypatch.setattr(speeds, "bench", bench)
    monkeypatch.setattr(module, "breakdown", profiled)
    found = compare(PAIR, How(32, ("torch", "onnx"), ("fp32",), (1,), 1, "cpu", 1), None, tmp_path)
    assert [speed.engine for row in found.rows for speed in row.speeds] == ["onnx", "onnx"]
    assert "torch: out of luck" in found.omitted
    assert "where the time goes, one, onnx: RuntimeError: no profile" in found.omitted


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        (How(32, ("onnx", "abacus")), "there is no such engine"),
        (How(32, ("onnx",), ("fp4",)), "cannot run in 'fp4'"),
        (How(32, batch_sizes=(0,)), "--batch-size must be at least 1, got 0"),
        (How(32, rounds=0), "--rounds must be at least 1, got 0"),
        (How(16), "32 to 8192 pixels"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is(tmp_path, monkeypatch, how, reason):
    monkeypatch.setattr(speeds, "bench", lambda *_: pytest.fail("measured"))
    with pytest.raises(InputError, match=reason):
        compare(PAIR, how, None, tmp_path)


def test_an_exported_file_has_no_modules_to_look_into(tiny, tmp_path):
    export(tiny, "onnx", tmp_path / "tiny.onnx")
    with pytest.raises(InputError, match=r"tiny\.onnx is an exported file: give the model file"):
        need_model_file(str(tmp_path / "tiny.onnx"))


def test_all_networks_of_a_comparison_are_trained_alike(folder):
    reference = next(entry.model for entry in ablation().entries if entry.model.startswith("shvit_"))
    alike = Training(str(folder), 3).like(reference)
    assert alike.settings == {"weight_decay": 2 * WEIGHT_DECAY["shvit_s3"]}  # as fitted to little data
    with pytest.raises(InputError, match="--seeds must be at least 1, got 0"):
        Training(str(folder), 3, 0).like(reference)
    with pytest.raises(InputError, match="epochs must be"):
        Training(str(folder), 0).like(reference)


def test_ctrl_c_while_timing_ends_the_study_with_what_was_timed(tmp_path, monkeypatch):
    measured, asked = speeds.bench, []

    def bench(request, *rest):
        asked.append(request.engines)
        result = measured(request, *rest)
        return replace(result, request=replace(result.request, rounds=0))  # as after Ctrl-C in the middle

    monkeypatch.setattr(speeds, "bench", bench)
    seen = []
    with pytest.raises(KeyboardInterrupt):
        compare(PAIR, replace(QUICK, engines=("onnx", "torch")), None, tmp_path, so_far=seen.append)
    assert asked == [("onnx",)]
    assert [len(row.speeds) for row in seen[-1].rows] == [1, 1]


@pytest.mark.slow
def test_training_goes_on_where_it_was(tmp_path, folder, monkeypatch):
    monkeypatch.setattr("shvit.train.metrics.draw_curves", lambda *_: None)
    settings = {"batch_size": 8, "compile": "off"}
    training = Training(str(folder), 1, 2, 32, settings, "cpu", 0)
    monkeypatch.setattr(module, "timed", lambda *_: [])
    monkeypatch.setattr(module, "_with_breakdowns", lambda found, told: [])
    seen = []

    def stop(found):
        seen.append([len(row.top1) for row in found.rows])
        if seen[-1] == [1, 1]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(PAIR, QUICK, training, tmp_path, so_far=stop)
    weights = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/best.safetensors")}
    assert len(weights) == 2
    found = compare(PAIR, QUICK, training, tmp_path)
    assert [len(row.top1) for row in found.rows] == [2, 2]
    assert all(path.stat().st_mtime_ns == when for path, when in weights.items())
    assert len(list(tmp_path.glob("runs/*/best.safetensors"))) == 4
    assert all(0 <= top1 <= 1 for row in found.rows for top1 in row.top1)
