"""A comparison measures what it can, and goes on where it was."""

from dataclasses import replace

import pytest

from shvit.errors import Failure, InputError
from shvit.export.export import export_model
from shvit.requests.study import ComparisonRequest, SpeedOptions
from shvit.study import compare as module
from shvit.study import speeds
from shvit.study.accuracy import Training
from shvit.study.compare import Comparison, Entry, need_model_file, run_comparison
from shvit.study.experiments import make_comparison
from shvit.train.recipes import WEIGHT_DECAY

PAIR = Comparison(
    "pair", "A pair", "?", (), "s1", (Entry("one", "shvit_s1"), Entry("larger", "shvit_s1", 2.0, {"gpu": 1.0})), "one"
)
QUICK = SpeedOptions(("onnx",), ("fp32",), (1,), 1, "cpu", 1)


def request(out, speed=QUICK, image_size=32) -> ComparisonRequest:
    return ComparisonRequest(out=out, image_size=image_size, speed=speed)


def test_costs_speeds_and_time_of_each(tmp_path):
    seen = []
    result = run_comparison(PAIR, request(tmp_path), None, on_update=seen.append)
    one, larger = result.rows
    assert (one.image_size, larger.image_size) == (32, 64)
    assert one.params == larger.params
    assert larger.macs > 2 * one.macs
    assert larger.activation_bytes > 2 * one.activation_bytes
    assert one.speeds[0].ratio == 1.0
    assert larger.speeds[0].ratio == pytest.approx(larger.speeds[0].images_per_second / one.speeds[0].images_per_second)
    assert [part.engine for part in one.breakdowns] == ["onnx"]
    assert result.pairs() == [("onnx", "fp32", 1)]
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
    monkeypatch.setattr(module, "time_breakdown", profiled)
    result = run_comparison(PAIR, request(tmp_path, replace(QUICK, engines=("torch", "onnx"))), None)
    assert [speed.engine for row in result.rows for speed in row.speeds] == ["onnx", "onnx"]
    assert "torch: out of luck" in result.omitted
    assert "where the time goes, one, onnx: RuntimeError: no profile" in result.omitted


@pytest.mark.parametrize(
    ("speed", "image_size", "reason"),
    [
        (SpeedOptions(("onnx", "abacus")), 32, "there is no such engine"),
        (SpeedOptions(("onnx",), ("fp4",)), 32, "cannot run in 'fp4'"),
        (SpeedOptions(batch_sizes=(0,)), 32, "batch_size must be at least 1, got 0"),
        (SpeedOptions(rounds=0), 32, "rounds must be at least 1, got 0"),
        (SpeedOptions(), 16, "32 to 8192 pixels"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is(tmp_path, monkeypatch, speed, image_size, reason):
    monkeypatch.setattr(speeds, "bench", lambda *_: pytest.fail("measured"))
    with pytest.raises(InputError, match=reason):
        run_comparison(PAIR, request(tmp_path, speed, image_size), None)


def test_an_exported_file_has_no_modules_to_look_into(tiny, tmp_path):
    export_model(tiny, "onnx", tmp_path / "tiny.onnx")
    with pytest.raises(InputError, match=r"tiny\.onnx is an exported file: give the model file"):
        need_model_file(str(tmp_path / "tiny.onnx"))


def test_all_networks_of_a_comparison_are_trained_alike(folder):
    reference = next(entry.model for entry in make_comparison("ablation").entries if entry.model.startswith("shvit_"))
    alike = Training(str(folder), 3).like(reference)
    assert alike.settings == {"weight_decay": 2 * WEIGHT_DECAY["shvit_s3"]}  # as fitted to little data
    with pytest.raises(InputError, match="seeds must be at least 1, got 0"):
        Training(str(folder), 3, 0).like(reference)
    with pytest.raises(InputError, match="epochs must be"):
        Training(str(folder), 0).like(reference)


def test_ctrl_c_while_timing_ends_the_study_with_what_was_timed(tmp_path, monkeypatch):
    measured, asked = speeds.bench, []

    def bench(request, *rest):
        asked.append(request.engines)
        result = measured(request, *rest)
        return replace(result, interrupted=True)

    monkeypatch.setattr(speeds, "bench", bench)
    seen = []
    with pytest.raises(KeyboardInterrupt):
        run_comparison(PAIR, request(tmp_path, replace(QUICK, engines=("onnx", "torch"))), None, on_update=seen.append)
    assert asked == [("onnx",)]
    assert [len(row.speeds) for row in seen[-1].rows] == [1, 1]


@pytest.mark.slow
def test_training_goes_on_where_it_was(tmp_path, folder, monkeypatch):
    monkeypatch.setattr("shvit.train.metrics.draw_curves", lambda *_: None)
    settings = {"batch_size": 8, "compile": "off"}
    training = Training(str(folder), 1, 2, 32, settings, "cpu", 0)
    monkeypatch.setattr(module, "timed", lambda *_: [])
    monkeypatch.setattr(module, "_profile", lambda *_: None)
    seen = []

    def stop(result):
        seen.append([len(row.top1) for row in result.rows])
        if seen[-1] == [1, 1]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_comparison(PAIR, request(tmp_path), training, on_update=stop)
    weights = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/best.safetensors")}
    assert len(weights) == 2
    result = run_comparison(PAIR, request(tmp_path), training)
    assert [len(row.top1) for row in result.rows] == [2, 2]
    assert all(path.stat().st_mtime_ns == when for path, when in weights.items())
    assert len(list(tmp_path.glob("runs/*/best.safetensors"))) == 4
    assert all(0 <= top1 <= 1 for row in result.rows for top1 in row.top1)
