"""Backbones and whole detectors, side by side."""

import json
from dataclasses import replace

import pytest
import torch
from torchvision.models import get_model

import shvit
from conftest import tiny_architecture
from shvit.bench.case import BACKBONE, WHOLE, Case, Subject, open_model
from shvit.bench.plan import _cannot, plan, settle
from shvit.bench.run import Row
from shvit.bench.timing import Timing
from shvit.bench.torchvision import TorchvisionDetector
from shvit.data.transforms import Preprocess
from shvit.errors import InputError
from shvit.modelfile import ModelFile, save
from shvit.requests.bench import BenchRequest


def test_defaults_are_the_papers():
    settled = settle(BenchRequest(task="detect", device="cpu"))
    assert (settled.image_sizes, settled.batch_sizes, settled.engines) == ((512,), (16, 1), ("torch",))
    assert {"shvit_s4", "timm/resnet50", "timm/mobilenetv3_large_100"} < set(settled.models)
    assert settle(BenchRequest(("shvit_s1",), task="segment", batch_sizes=(2,))).batch_sizes == (2,)


@pytest.mark.parametrize("name", ["model.safetensors", "torchvision/ssdlite320_mobilenet_v3_large"])
def test_a_head_is_only_for_networks_given_by_name(name):
    with pytest.raises(InputError, match="leave it out for models with a detector of their own, here"):
        settle(BenchRequest((name,), task="detect", head="light", device="cpu"))
    assert settle(BenchRequest((name, "shvit_s1"), task="detect", head="light", device="cpu")).head == "light"


def test_each_model_is_a_backbone_and_a_detector():
    request = settle(
        BenchRequest(("shvit_s1",), engines=("torch", "onnx"), image_sizes=(64,), batch_sizes=(1,), task="detect")
    )
    cases, omitted = plan(request, {"shvit_s1": open_model("shvit_s1", 64, "detect")})
    assert [(case.engine, case.part) for case in cases if case.precision == "fp32"] == [
        (engine, part) for part in (BACKBONE, WHOLE) for engine in ("torch", "onnx")
    ]
    assert not omitted


def test_engines_without_regions_are_left_out():
    if shvit.engines.ENGINES["executorch"].unavailable("cpu"):
        pytest.skip("needs executorch")
    request = settle(BenchRequest(("shvit_s1",), engines=("executorch",), image_sizes=(64,), task="segment"))
    cases, omitted = plan(request, {"shvit_s1": open_model("shvit_s1", 64, "segment")})
    assert {case.part for case in cases} == {BACKBONE}
    expected = "models with detector mask_rcnn run only on onnx (fp32), openvino (fp32, int8), torch (fp32)"
    assert {row.reason for row in omitted} == {expected}


def test_the_kernels_compute_the_backbone_of_shvit():
    model = open_model("shvit_s1", 64, "detect")
    assert _cannot("shvit_s1", model, "classify", "cuda", "fp16") is None
    for task, name in (("detect", "shvit_s1"), ("classify", "timm/resnet50")):
        assert "its kernels" in _cannot(name, open_model(name, 64, "detect"), task, "cuda", "fp16").reason


def test_the_papers_numbers_stand_beside_what_they_were_measured_of():
    case = Case("shvit_s4", "torch", "fp32", 16, 512, "cpu", 1, "detect", BACKBONE)
    row = Row(case, Timing((1.0,), 1.0), None, None, None)
    assert (row.paper_milliseconds, row.random_weights) == (5.0, True)
    for change in ({"batch_size": 1}, {"image_size": 224}, {"part": WHOLE}, {"precision": "int8"}, {"device": "mps"}):
        assert replace(row, case=replace(case, **change)).paper_milliseconds is None
    assert replace(row, case=replace(case, device="cuda:1", batch_size=32)).paper_milliseconds == 0.28


def test_torchvision_runs_on_pytorch():
    name = "torchvision/retinanet_resnet50_fpn_v2"
    request = settle(BenchRequest((name,), image_sizes=(64,), batch_sizes=(1,), task="detect"))
    [case] = plan(request, {name: open_model(name, 64, "detect")})[0]
    assert (case.engine, case.precision, case.part) == ("torch-eager", "fp32", WHOLE)


@pytest.mark.parametrize("task", ["detect", "segment"])
def test_what_is_opened(task):
    backbone, whole = (open_model("shvit_s1", 128, task, part) for part in (BACKBONE, WHOLE))
    assert (backbone.task, backbone.architecture.num_classes, backbone.architecture.detector) == ("classify", 1, None)
    assert (whole.task, len(whole.classes), whole.preprocess.fit) == (task, 80, "whole")


@pytest.mark.parametrize(("task", "kind"), [("detect", "retinanet"), ("segment", "mask_rcnn")])
def test_files_of_detectors(task, kind, tmp_path):
    model = replace(tiny_architecture(3), detector=kind).build()
    path = str(tmp_path / "m.safetensors")
    save(ModelFile(model, ("a", "b", "c"), Preprocess(96, fit="shorter"), task), path)
    opened = open_model(path, 128, task)
    assert (opened.classes, opened.preprocess.image_size, opened.preprocess.fit) == (("a", "b", "c"), 128, "whole")
    assert open_model(path, 128, task, BACKBONE).architecture.config == model.architecture.config
    with pytest.raises(InputError, match=f"has the task {task}, but --task is classify"):
        open_model(path)
    subject = Subject(Case(path, "torch", "fp32", 2, 64, "cpu", 1, task))
    assert min(subject.time()) > 0


@pytest.mark.slow
def test_the_command(run, quick_machine):
    flags = ["--task", "detect", "--engine", "torch", "--precision", "fp32", "--image-size", 64, "--rounds", 1]
    theirs = "torchvision/fasterrcnn_mobilenet_v3_large_320_fpn"
    code, printed, errors = run("bench", "shvit_s1", theirs, *flags, "--batch-size", 1, "--json")
    assert code == 0, errors
    rows = json.loads(printed)["rows"]
    assert [(row["part"], row["engine"]) for row in rows] == [
        ("backbone", "torch"),
        ("whole", "torch"),
        ("whole", "torch-eager"),
    ]
    assert rows[0]["macs"] < rows[1]["macs"]
    assert {row["weights"] for row in rows} == {"random"}
    assert "ms per image" in errors
    assert "top-1" not in errors


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["torchvision/retinanet_resnet50_fpn"], "is a detector: give --task detect or segment"),
        (["torchvision/resnet50", "--task", "detect"], "torchvision/NAME must be one of"),
        (["--task", "detect", "--protocol", "paper-cpu"], "--protocol works only for classifiers"),
        (["--task", "detect", "--plot", "a.png"], "--plot works only for classifiers"),
        (["timm/deit_tiny_patch16_224", "--task", "detect"], "or 16, 32 and 64; got 16, 16, 16"),
    ],
)
def test_what_is_refused(run, flags, reason):
    code, _, errors = run("bench", *flags)
    assert (code, reason in errors) == (2, True), errors


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ours", "theirs"), [("resnet50", "resnet50"), ("mobilenetv3_large_100", "mobilenet_v3_large")]
)
def test_the_peers_are_torchvisions_networks(ours, theirs):
    """The same weights, in the order of the layers, give the same outputs."""
    mine, other = shvit.create_model(f"timm/{ours}").eval(), get_model(theirs, weights=None).eval()
    weights = [value for value in mine.network.state_dict().values() if value.ndim]
    names = [name for name, value in other.state_dict().items() if value.ndim]
    with torch.no_grad():
        for name, value in zip(names, weights, strict=True):
            other.state_dict()[name].copy_(value.view_as(other.state_dict()[name]))
        for norm in other.modules():
            if isinstance(norm, torch.nn.BatchNorm2d):
                norm.eps = 1e-5  # torchvision's MobileNetV3 has 1e-3: as fast
        images = torch.randn(2, 3, 224, 224)
        torch.testing.assert_close(other(images), mine(images), rtol=1e-3, atol=1e-4)


def test_torchvisions_names():
    with pytest.raises(InputError, match="got 'ssd300_vgg16'"):
        TorchvisionDetector("ssd300_vgg16", 64)
