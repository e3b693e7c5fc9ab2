"""A whole run, small and real."""

import json
from dataclasses import replace

import pytest

import shvit
from shvit.bench.case import Worker, free_memory
from shvit.bench.run import bench
from shvit.bench.timing import interleave
from shvit.engines import TorchEngine
from shvit.engines.base import ExportJob
from shvit.errors import Failure, InputError
from shvit.requests.bench import BenchRequest

ROW = {
    "model", "engine", "precision", "batch_size", "image_size", "device", "threads", "images_per_second", "seconds",
    "p95_seconds", "spread", "round_seconds", "share_of_ceiling",
    "detail", "memory_bytes", "params", "macs", "weights",
    "calibration", "published_top1", "own_top1", "task", "part", "head",
}  # fmt: skip


@pytest.fixture
def model(tiny, tmp_path):
    shvit.save(tiny, tmp_path / "tiny.safetensors")
    return str(tmp_path / "tiny.safetensors")


def test_a_failing_configuration_costs_only_its_row(quick_machine, model):
    told = []
    request = BenchRequest(
        (model, "timm/levit_128s"),
        engines=("torch",),
        precisions=("fp32",),
        batch_sizes=(1, 2),
        image_sizes=(64,),
        threads=1,
        device="cpu",
        rounds=2,
    )
    result = bench(request, lambda *step: told.append(step))
    assert [(row.case.model, row.case.batch_size) for row in result.rows] == [(model, 1), (model, 2)]
    assert [row.what for row in result.failed] == [
        f"timm/levit_128s, torch fp32, batch {batch}, 64 pixels" for batch in (1, 2)
    ]
    assert "does not accept 64x64" in result.failed[0].reason
    assert told[-1] == ("timing", 2, 2)

    document = json.loads(json.dumps(result.to_dict()))
    assert {"what", "value", "unit", "threads", "commit", "versions", "hardware", "command", "date"} <= set(document)
    assert {"machine", "request", "rows", "skipped", "failed"} <= set(document)
    for row in document["rows"]:
        assert set(row) == ROW
        assert row["images_per_second"] == pytest.approx(row["batch_size"] / row["seconds"])
        assert len(row["round_seconds"]) == 2
        assert row["share_of_ceiling"] > 0
        assert row["weights"] == "given"
    assert document["value"] == max(row["images_per_second"] for row in document["rows"])


@pytest.fixture
def one_by_one(monkeypatch):
    """Memory that holds one case at a time."""
    values = iter([1.0])
    monkeypatch.setattr("shvit.bench.run.free_memory", lambda: next(values, 0.1))


def three_batches(model):
    return BenchRequest(
        (model,), engines=("torch",), precisions=("fp32",), batch_sizes=(1, 2, 3), device="cpu", rounds=2
    )


def test_cases_that_memory_does_not_hold_together_are_timed_in_groups(quick_machine, model, monkeypatch):
    loaded, most = [], []

    class Watched(Worker):
        def __init__(self, case):
            super().__init__(case)
            loaded.append(self)
            most.append(len(loaded))

        def close(self):
            super().close()
            loaded.remove(self)

    monkeypatch.setattr("shvit.bench.run.Worker", Watched)
    monkeypatch.setattr("shvit.bench.run.free_memory", lambda: 0.5 if len(loaded) < 2 else 0.1)
    result = bench(three_batches(model))
    assert [row.case.batch_size for row in result.rows] == [1, 2, 3]
    assert max(most) == 2
    assert (result.groups, result.to_dict()["groups"], result.failed, result.interrupted) == (2, 2, (), False)


def test_ctrl_c_in_a_round_keeps_what_was_timed(quick_machine, model, monkeypatch, one_by_one):
    calls = []

    def interrupted_in_the_second_group(subjects, rounds, after_round):
        calls.append(subjects)
        return interleave(subjects, rounds - (len(calls) == 2), after_round)

    monkeypatch.setattr("shvit.bench.run.interleave", interrupted_in_the_second_group)
    result = bench(three_batches(model))
    assert [(row.case.batch_size, len(row.timing.rounds)) for row in result.rows] == [(1, 2), (2, 1)]
    assert [row.reason for row in result.failed] == ["interrupted"]
    assert result.interrupted


def test_ctrl_c_in_the_only_round_is_noticed(quick_machine, model, monkeypatch):
    profiled = []

    class Profiled(Worker):
        def profile(self):
            profiled.append(self)
            return super().profile()

    def interrupted(subjects, rounds, after_round):
        """As if Ctrl-C came after the last sample of the only round."""
        return interleave(subjects, rounds, lambda: None)

    monkeypatch.setattr("shvit.bench.run.Worker", Profiled)
    monkeypatch.setattr("shvit.bench.run.interleave", interrupted)
    result = bench(replace(three_batches(model), rounds=1, profile=True))
    assert result.interrupted
    assert (len(result.rows), profiled) == (3, [])


def test_ctrl_c_during_loading_keeps_what_was_timed(quick_machine, model, monkeypatch, one_by_one):
    def load(case):
        if case.batch_size == 2:
            raise KeyboardInterrupt
        return Worker(case)

    monkeypatch.setattr("shvit.bench.run.Worker", load)
    result = bench(three_batches(model))
    assert [row.case.batch_size for row in result.rows] == [1]
    assert [row.reason for row in result.failed] == ["interrupted", "interrupted"]
    assert result.interrupted


@pytest.mark.parametrize("text", ["", "MemTotal: 100 kB\n", "MemTotal: 100 kB\n\nMemAvailable: 25 kB\n"])
def test_free_memory(monkeypatch, text):
    monkeypatch.setattr("pathlib.Path.read_text", lambda self, encoding: text)
    assert free_memory() == (0.25 if "Available" in text else 1.0)


@pytest.mark.filterwarnings("ignore:No complete tensor found")  # of torch.export.save
def test_an_exported_file_brings_its_size_and_costs(quick_machine, tiny, tmp_path):
    path = tmp_path / "tiny.pt2"
    TorchEngine.export(ExportJob(tiny, path, "fp32"))
    [row] = bench(BenchRequest((str(path),), batch_sizes=(2,), rounds=1, device="cpu")).rows
    assert (row.case.image_size, row.case.engine, row.case.precision) == (32, "torch", "fp32")
    assert row.cost.params == sum(p.numel() for p in shvit.fuse(tiny.model).parameters())


@pytest.mark.slow
def test_the_papers_protocol(quick_machine):
    result = bench(BenchRequest(("shvit_s1", "timm/mobilenetv3_small_100"), protocol="paper-cpu", rounds=1))
    ours, peer = result.to_dict()["rows"]
    assert ours["ratio_to_shvit_s1"] == ours["paper_ratio_to_shvit_s1"] == 1.0
    assert peer["paper_images_per_second"] == 167
    assert peer["paper_ratio_to_shvit_s1"] == pytest.approx(167 / 143)
    assert peer["published_top1"]["percent"] == 67.638
    assert (ours["weights"], ours["engine"], ours["batch_size"]) == ("random", "torch-traced", 16)


def test_nothing_that_runs_is_a_failure(quick_machine):
    with pytest.raises(Failure, match="no configuration could run; for example, timm/levit_128s, torch fp32"):
        bench(
            BenchRequest(
                ("timm/levit_128s",), engines=("torch",), precisions=("fp32",), image_sizes=(64,), device="cpu"
            )
        )


def test_unknown_models_are_refused():
    with pytest.raises(InputError, match="timm has no model"):
        bench(BenchRequest(("timm/no_such_network",)))
