"""What is asked for runs as asked, or is refused in one line; what was not asked for is left out and listed."""

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from shvit import engines
from shvit.bench.case import Case, open_model
from shvit.bench.peers import DEFAULT_MODELS, PROTOCOLS, TRACED, published_top1
from shvit.bench.plan import plan, settle
from shvit.data.transforms import Preprocess
from shvit.engines import CudaEngine, Exported, TorchEngine
from shvit.errors import InputError
from shvit.model.config import VARIANTS
from shvit.requests.bench import BenchRequest


class Quantising(TorchEngine):
    name: ClassVar[str] = "quantising"
    runs: ClassVar = {None: ("int8", "fp32")}

    @classmethod
    def precisions(cls, device):
        return ("int8", "fp32")


class Absent(TorchEngine):
    name: ClassVar[str] = "absent"

    @classmethod
    def unavailable(cls, device):
        return "not installed: pip install 'shvit[absent]'"


@pytest.fixture
def many_engines(monkeypatch):
    monkeypatch.setattr(engines, "ENGINES", {"quantising": Quantising, "absent": Absent, "torch": TorchEngine})


def cases_of(request, tiny=None):
    request = settle(request)
    return plan(request, {name: tiny or open_model(name) for name in request.models})


def test_the_default_is_shvit_beside_its_peers(tiny):
    request = settle(BenchRequest())
    assert request.models == DEFAULT_MODELS
    assert set(VARIANTS) < set(request.models)
    assert len(request.models) == 18
    assert request.engines == (engines.load(tiny, precision="fp32", device="cpu").name,)
    assert settle(BenchRequest(engines=("torch",))).engines == ("torch",)


def test_all_that_can_run_here_runs(many_engines, tiny):
    cases, omitted = cases_of(BenchRequest(("shvit_s1",), batch_sizes=(1, 4), device="cpu"), tiny)
    pairs = [(engine, p) for engine in ("quantising", "torch") for p in engines.ENGINES[engine].precisions("cpu")]
    assert [(case.engine, case.precision, case.batch_size) for case in cases] == [
        (*pair, batch) for batch in (1, 4) for pair in pairs
    ]
    assert {case.image_size for case in cases} == {32}
    assert [(row.what, row.reason) for row in omitted] == [("absent", Absent.unavailable("cpu"))]


def test_named_engines_and_precisions_that_have_one_another(many_engines, tiny):
    request = BenchRequest(
        ("shvit_s1",), engines=("torch", "quantising"), precisions=("fp32", "int8"), image_sizes=(64, 96), device="cpu"
    )
    cases, omitted = cases_of(request, tiny)
    pairs = [("torch", "fp32"), ("quantising", "int8"), ("quantising", "fp32")]
    assert [(case.engine, case.precision, case.image_size) for case in cases] == [
        (*pair, size) for size in (64, 96) for pair in pairs
    ]
    assert [row.what for row in omitted] == ["torch int8"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"engines": ("abacus",)}, "engine 'abacus' cannot run: there is no such engine; available here: quantising"),
        ({"engines": ("absent",)}, r"pip install 'shvit\[absent\]'; available here: quantising"),
        ({"precisions": ("fp4",)}, "cannot run in 'fp4'; available here: quantising in int8, fp32; torch in"),
        ({"engines": ("torch",), "precisions": ("int8",)}, "torch on cpu cannot run in 'int8'"),
        ({"threads": 0}, "threads must be at least 1, got 0"),
        ({"rounds": 0}, "rounds must be at least 1"),
        ({"batch_sizes": (4, 0)}, "batch_size must be at least 1, got 0"),
        ({"image_sizes": (16,)}, "image_size must be at least 32, got 16"),
        ({"device": "tpu"}, "device 'tpu' is not available"),
        ({"protocol": "paper-tpu"}, "unknown protocol 'paper-tpu': choose from paper-cpu, paper-onnx, paper-gpu"),
    ],
)  # fmt: skip
def test_refusals(many_engines, tiny, settings, message):
    with pytest.raises(InputError, match=message):
        cases_of(BenchRequest(("shvit_s1",), **{"device": "cpu", **settings}), tiny)


@pytest.mark.parametrize(
    ("settings", "flag"),
    [
        ({"engines": ("onnx",)}, "--engine"),
        ({"precisions": ("bf16",)}, "--precision"),
        ({"batch_sizes": (1,)}, "--batch-size"),
        ({"image_sizes": (512,)}, "--image-size"),
        ({"threads": 2}, "--threads"),
        ({"device": "cuda"}, "--device"),
    ],
)
def test_a_protocol_fixes_everything_but_the_models(settings, flag):
    with pytest.raises(InputError, match=f"--protocol paper-cpu already sets {flag}: remove {flag}"):
        settle(BenchRequest(protocol="paper-cpu", **settings))


def test_what_a_protocol_means():
    cases, omitted = cases_of(
        BenchRequest(("shvit_s1", "shvit_s4"), protocol="paper-cpu", threads=1, batch_sizes=(16,))
    )
    assert cases == [
        Case("shvit_s1", TRACED, "fp32", 16, 224, "cpu", 1),
        Case("shvit_s4", TRACED, "fp32", 16, 256, "cpu", 1),
    ]
    assert omitted == []
    assert settle(BenchRequest(protocol="paper-cpu")).models == tuple(PROTOCOLS["paper-cpu"].images_per_second)
    assert PROTOCOLS["paper-onnx"].images_per_second["shvit_s4"] == 509


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_the_gpu_protocol_needs_a_gpu():
    with pytest.raises(InputError, match="--protocol paper-gpu needs cuda: device 'cuda' is not available"):
        settle(BenchRequest(protocol="paper-gpu"))


def test_exported_files_run_as_they_were_written():
    exported = Exported(Path("a.pt2"), "torch", "bf16", ("a",), Preprocess(96))
    request = settle(
        BenchRequest(
            ("a.pt2",), engines=("torch",), precisions=("fp32",), batch_sizes=(2,), image_sizes=(32, 64), device="cpu"
        )
    )
    cases, _ = plan(request, {"a.pt2": exported})
    assert cases == [Case("a.pt2", "torch", "bf16", 2, 96, "cpu", None)]
    with pytest.raises(InputError, match=r"cannot time exported files, such as a\.pt2"):
        plan(settle(BenchRequest(("a.pt2",), protocol="paper-cpu")), {"a.pt2": exported})


def test_only_networks_without_weights_are_quantised_on_noise(many_engines, tiny):
    cases, omitted = cases_of(BenchRequest(("best.safetensors",), engines=("quantising",), device="cpu"), tiny)
    assert [case.precision for case in cases] == ["fp32"]
    assert "shvit export --precision int8" in omitted[0].reason
    with pytest.raises(InputError, match="int8 needs calibration images"):
        cases_of(BenchRequest(("best.safetensors",), engines=("quantising",), precisions=("int8",), device="cpu"), tiny)


def test_published_accuracies_are_of_one_size():
    assert published_top1("shvit_s4", 256).percent == 79.362
    assert (
        published_top1("shvit_s4.in1k", 256) == published_top1("timm/shvit_s4", 256) == published_top1("shvit_s4", 256)
    )
    assert published_top1("shvit_s4", 512) is None
    assert published_top1("timm/levit_192", 224).distilled
    assert published_top1("timm/hgnetv2_b0.ssld_stage2_ft_in1k", 224).training == "in22k, distilled"
    assert not published_top1("timm/mobilenetv3_large_100.miil_in21k_ft_in1k", 224).distilled
    assert published_top1("timm/resnet50", 224) is None
    assert all(
        published_top1(name, open_model(name).preprocess.image_size)
        for name in (*DEFAULT_MODELS[:6], *DEFAULT_MODELS[-5:])
    )


def test_yardsticks_are_there_by_name(many_engines, tiny):
    request = BenchRequest(
        ("shvit_s1",), engines=("torch-eager", "torch-compiled", "torch"), precisions=("fp32",), device="cpu"
    )
    cases, _ = cases_of(request, tiny)
    assert [case.engine for case in cases] == ["torch-eager", "torch-compiled", "torch"]
    with pytest.raises(InputError, match="there is no such engine"):
        cases_of(replace(request, engines=("torch-clever",)), tiny)
    with pytest.raises(InputError, match="torch-traced on cpu cannot run in 'bf16'"):
        cases_of(replace(request, engines=("torch-traced",), precisions=("bf16",)), tiny)


def test_the_kernels_are_for_shvit_alone(monkeypatch):
    class OnGpu(TorchEngine):
        name: ClassVar[str] = "cuda"
        every_network: ClassVar[bool] = False
        refuses = CudaEngine.refuses

    monkeypatch.setattr(engines, "ENGINES", {"cuda": OnGpu, "torch": TorchEngine})
    cases, omitted = cases_of(BenchRequest(("shvit_s1", "timm/resnet10t"), precisions=("fp32",), device="cpu"))
    assert [(case.model, case.engine) for case in cases] == [
        ("shvit_s1", "cuda"),
        ("shvit_s1", "torch"),
        ("timm/resnet10t", "torch"),
    ]
    assert [row.what for row in omitted] == ["timm/resnet10t, cuda"]
    assert settle(BenchRequest(device="cpu")).engines == ("cuda", "torch")
