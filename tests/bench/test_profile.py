"""Where time goes: what the profiler sees, put together by name or by layer."""

import io
from dataclasses import replace
from types import SimpleNamespace

import pytest
from rich.console import Console
from test_report import made_up

from shvit.bench.case import Case, Subject
from shvit.bench.machine import Machine, Product
from shvit.bench.profile import PROFILED_CALLS, OpTime, by_layer, by_name
from shvit.bench.report import show

MACHINE = Machine({"fp16": Product(1e12, 4096, "torch.mm")}, 5e11, 1e11)


def launch(layer, kernel, operations=0, moved=0):
    return SimpleNamespace(layer=layer, kernel=SimpleNamespace(__name__=kernel), operations=operations, bytes=moved)


def test_by_name_adds_up_and_sorts():
    rows = by_name([("copy", 1e-6), ("gemm", 5e-6), ("gemm", 3e-6), ("nothing", 0.0)] * PROFILED_CALLS)
    assert [(row.what, row.times) for row in rows] == [("gemm", 2), ("copy", 1)]
    assert rows[0].seconds == pytest.approx(8e-6)


def test_kernels_of_the_cuda_engine_are_told_by_layer():
    launches = [
        launch("stem", "convolve", 100, 10),
        launch("stage 1", "attend", 200, 20),
        launch("stage 1", "attend", 200, 20),
        launch("classifier", "classify"),
    ]
    call = [("Memcpy HtoD", 4e-6), ("convolve", 1e-6), ("attend", 2e-6), ("attend", 3e-6), ("classify", 1e-6)]
    rows = by_layer(call * PROFILED_CALLS, launches)
    assert [(row.what, row.times) for row in rows] == [
        ("stem", 1),
        ("stage 1", 2),
        ("classifier", 1),
        ("Memcpy HtoD", 1),
    ]
    assert rows[1].seconds == pytest.approx(5e-6)
    assert (rows[1].operations, rows[1].bytes) == (400, 40)
    assert rows[3].operations is None

    lost = by_layer(call * (PROFILED_CALLS - 1), launches)  # the profiler has missed some: no telling which
    assert {row.what for row in lost} == {"Memcpy HtoD", "convolve", "attend", "classify"}
    assert all(row.operations is None for row in lost)


def test_the_floor_is_the_larger_of_arithmetic_and_memory():
    assert OpTime("", 1, 1.0, operations=10**9, bytes=10**3).floor(MACHINE, "fp16") == pytest.approx(1e-3)
    assert OpTime("", 1, 1.0, operations=10**3, bytes=10**9).floor(MACHINE, "fp16") == pytest.approx(1e-2)
    assert OpTime("", 1, 1.0).floor(MACHINE, "fp16") is None
    assert OpTime("", 1, 1.0, 1, 1).floor(MACHINE, "fp4") is None


def test_operations_of_pytorch_on_a_cpu():
    subject = Subject(Case("shvit_s1", "torch-eager", "fp32", 2, 64, "cpu", 1))
    rows = subject.profile()
    names = {row.what for row in rows}
    assert names & {"aten::mkldnn_convolution", "aten::_slow_conv2d_forward"}
    assert "aten::_softmax" in names
    assert rows == sorted(rows, key=lambda row: -row.seconds)


def test_engines_that_keep_to_themselves_show_nothing():
    pytest.importorskip("onnxruntime")
    assert Subject(Case("shvit_s1", "onnx", "fp32", 1, 64, "cpu", 1)).profile() == []


def test_the_table_of_a_profile():
    result = made_up(models=("shvit_s1", "shvit_s2"), sizes=(224,), precisions=("fp16",))
    spent = (OpTime("stem 1+2", 1, 4e-6, 2 * 10**6, 10**5), OpTime("a_name_" * 20, 3, 1e-6))
    rows = (replace(result.rows[0], profile=spent), result.rows[1])
    result = replace(result, rows=rows, machine=MACHINE, request=replace(result.request, profile=True))
    stream = io.StringIO()
    show(Console(file=stream, width=200), result)
    text = stream.getvalue()
    [line] = [line for line in text.splitlines() if line.startswith("stem 1+2")]
    assert line.split() == ["stem", "1+2", "1", "4.0", "80.0%", "0.00", "0.1", "50%"]
    assert "the minimum times of the layers add up to 2.0 µs" in text
    assert max(len(line) for line in text.splitlines() if "a_name_" in line) < 120
    assert "PyTorch's profiler cannot record the operations of torch" in text
    document = result.to_dict()["rows"]
    assert document[0]["profile"][0]["floor_seconds"] == pytest.approx(2e-6)
    assert document[1]["profile"] == []
