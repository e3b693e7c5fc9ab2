"""Detectors in other runtimes: the file finds what PyTorch finds, or it never appears."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import shvit
from conftest import random_images, randomize_norms, tiny_architecture, write_coco
from shvit import engines
from shvit.cli.describe import describe
from shvit.data.coco import open_coco
from shvit.data.transforms import Preprocess
from shvit.engines.base import Candidate, ExportJob, Shapes
from shvit.engines.exported import EngineError, ExportError
from shvit.errors import InputError
from shvit.export.accuracy_floor import Judge
from shvit.export.export import export_model
from shvit.modelfile import ModelFile, save
from shvit.predict.predictor import Predictor
from shvit.tasks import object_parity
from shvit.tasks.detect import DetectAnchors
from shvit.tasks.objects import Detections, ObjectsEvaluation, encode
from shvit.tasks.segment import Segment

TASKS = {"light": "detect", "light_masks": "segment", "retinanet": "detect", "mask_rcnn": "segment"}
"""The task of each kind of detector."""
SUFFIXES = {
    **{"onnx": "m.onnx", "openvino": "m.xml", "torch": "m.pt2", "executorch": "m.pte", "litert": "m.tflite"},
    "coreml": "m.mlpackage",
}


def detector(kind: str, background: float = 0.0, most: int = 4, **options) -> ModelFile:
    """Untrained; that its second stage finds less with more `background` makes the number of objects vary."""
    torch.manual_seed(0)
    model = randomize_norms(replace(tiny_architecture(3), detector=kind).build()).eval()
    if kind == "mask_rcnn":
        torch.nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=0.1)
        model.roi_heads.box_predictor.cls_score.bias.data[0] = background
        model.roi_heads.detections_per_img = most  # masks take most of the time
    if kind in ("light", "light_masks"):
        torch.nn.init.normal_(model.head.classes.weight, std=1.0)
        torch.nn.init.constant_(model.head.classes.bias, -1.0)
    if kind == "light_masks":  # otherwise, all probabilities are about 0.5, or masks are empty
        torch.nn.init.normal_(model.prototypes[3].weight, std=5.0)
        torch.nn.init.normal_(model.head.boxes.weight[4:], std=0.5)
        with torch.no_grad():
            prototypes = model.prototypes(model.features((random_images(1, 128) / 255 - 0.45) / 0.225)[0])
            model.prototypes[3].bias -= prototypes.mean((0, 2, 3))
    return ModelFile(model, ("a", "b", "c"), Preprocess(**{"image_size": 128, "fit": "whole", **options}), TASKS[kind])


def skip_without(engine: str) -> None:
    if reason := engines.ENGINES[engine].absent():
        pytest.skip(reason)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "engine"),
    [(kind, engine) for kind in TASKS for engine in ("onnx", "openvino")]
    + [("retinanet", "torch"), ("light_masks", "torch")]
    + [("light", engine) for engine in ("torch", "executorch", "litert")],
)
def test_a_file_finds_what_pytorch_finds(kind, engine, tmp_path):
    skip_without(engine)
    model_file, out = detector(kind), tmp_path / SUFFIXES[engine]
    report = export_model(model_file, engine, out)["parity"]
    assert (report["images"], report["matched"]) == (16, 1)
    assert report["objects"] > 16
    assert report["score_difference"] < 1e-4
    assert (report["mask_overlap"] or 1) > 0.999
    costs = describe(str(out))
    assert costs["params"] == sum(parameter.numel() for parameter in model_file.model.parameters())
    assert (costs["macs"] is None) == (kind == "mask_rcnn")  # they depend on what is found

    facts = shvit.load(out)
    assert (facts.task, facts.classes, facts.preprocess.fit) == (TASKS[kind], model_file.classes, "whole")
    images = random_images(3, 128)
    expected = engines.load(model_file, "torch", "fp32", "cpu")(images)
    run = engines.load(facts, device="cpu")
    for part in (run(images), torch.cat([run(images[:1]), run(images[1:])])):
        if kind == "light_masks":  # rounding may change the order of rows with almost equal scores
            part, expected = part[..., 4], expected[..., 4] if expected.ndim == 3 else expected
        torch.testing.assert_close(part, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["onnx", "openvino"])
@pytest.mark.parametrize("background", [3.0, 9.0])
def test_however_many_objects_there_are(engine, background):
    skip_without(engine)
    model_file, images = detector("mask_rcnn", background, 100), random_images(2, 128)
    expected = engines.load(model_file, "torch", "fp32", "cpu")(images)
    found = (expected[..., 4] > 0).sum(1)
    assert {3.0: 0 < found.min() < 100, 9.0: found.max() == 0}[background], found
    outputs = engines.load(model_file, engine, device="cpu")(images)
    torch.testing.assert_close(outputs, expected, rtol=1e-3, atol=1e-3)


def test_several_at_once_in_a_file_of_fixed_size(tmp_path):
    skip_without("onnx")
    model_file = detector("mask_rcnn")
    engines.ENGINES["onnx"].export(ExportJob(model_file, tmp_path / "m.onnx", "fp32", Shapes(batch=2)))
    images = random_images(3, 128)
    expected = engines.load(model_file, "torch", "fp32", "cpu")(images)
    outputs = engines.load(shvit.load(tmp_path / "m.onnx"))(images)
    torch.testing.assert_close(outputs, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "rows"), [("light", 16**2 + 8**2 + 4**2), ("retinanet", 9 * (16**2 + 8**2 + 4**2 + 2**2 + 1))]
)
def test_core_ml_has_the_raw_outputs(kind, rows, tmp_path):
    pytest.importorskip("coremltools.proto", exc_type=ImportError)
    report = export_model(detector(kind), "coreml", tmp_path / "m.mlpackage")
    if not report["ran"]:
        assert report["specification"]["outputs"] == {"objects": f"array 1x{rows}x7 FLOAT32"}
        assert report["specification"]["inputs"] == {"image": "image 128x128 RGB"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "predictor"),
    [("light", "head.boxes/"), ("retinanet", "cls_logits/"), ("mask_rcnn", "mask_fcn_logits/")],
)
def test_int8_is_held_to_average_precision(tmp_path, kind, predictor):
    skip_without("openvino")
    source = open_coco(write_coco(tmp_path / "data"))
    model = replace(detector(kind), classes=("tree", "cat", "c"))
    report = export_model(model, "openvino", tmp_path / "m.xml", "int8", source=source, max_drop=100)
    floor = report["floor"]
    assert floor["metric"] == "AP"
    assert floor["AP"] == floor["score"]
    assert floor["drop"] == pytest.approx(100 * (floor["reference"] - floor["AP"]))
    assert floor["layers"] > 20
    exported = shvit.load(tmp_path / "m.xml")
    assert exported.precision == "int8"
    heads = engines.openvino.core().read_model(tmp_path / "m.xml").get_ops()
    predictors = [node for node in heads if predictor in node.get_friendly_name() and "Conv" in node.get_type_name()]
    assert predictors
    assert not any("FakeQuantize" in node.input_value(0).get_node().get_type_name() for node in predictors)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["onnx", "openvino", "litert"])
def test_int8_does_not_quantize_boxes_and_scores(engine, tmp_path, monkeypatch):
    skip_without(engine)
    monkeypatch.setitem(object_parity.MATCHED, "int8", 0.0)  # which untrained networks may fail
    source = open_coco(write_coco(tmp_path / "data"))
    model, out = replace(detector("light"), classes=("tree", "cat", "c")), tmp_path / SUFFIXES[engine]
    export_model(model, engine, out, "int8", source=source, max_drop=100)
    rows = engines.load(shvit.load(out), engine, threads=1)(random_images(1, 128, 128))
    for columns in (slice(0, 4), slice(4, None)):
        assert len(rows[..., columns].unique()) > 300  # of about 1,000


def test_images_without_objects_hold_no_floor():
    class Nothing:
        name, headline = "detect", "AP"

        def evaluate(self, predict, batches):
            return ObjectsEvaluation(("a",), {"bbox": {"AP": -1.0, "AP50": -1.0}}, {"bbox": [-1.0]}, 1)

    with pytest.raises(InputError, match="no validation image has an object"):
        Judge(Nothing(), [], 1.0)(Candidate(None, None))


def test_boxes_do_not_count_where_layers_are_ranked():
    """Of RetinaNet the scores alone; of Mask R-CNN neither boxes nor which object is which."""
    outputs = torch.rand(2, 5, 7)
    moved = outputs.clone()
    moved[..., :4] += 10
    detect = DetectAnchors(("a", "b", "c"))
    assert torch.equal(detect.signal(outputs), detect.signal(moved))
    assert not torch.equal(detect.signal(outputs), detect.signal(outputs * 0.9))
    rows = torch.rand(2, 100, 790)
    others = rows.clone()
    others[..., 5:] = 0
    segment = Segment(("a",))
    assert torch.equal(segment.signal(rows), segment.signal(others))
    assert not torch.equal(segment.signal(rows), segment.signal(rows * 0.9))


@pytest.mark.parametrize(
    ("kind", "engine", "options", "shapes", "reason"),
    [
        (
            "mask_rcnn",
            "executorch",
            {},
            Shapes(),
            "models of task segment with detector mask_rcnn can be written as onnx, openvino, web, not",
        ),
        (
            "light",
            "plan",
            {},
            Shapes(),
            "unknown format 'plan': allowed are onnx, openvino, torch, executorch, litert, coreml",
        ),
        ("light", "onnx", {}, Shapes(dynamic_size=True), "exported detectors take images of one size"),
        ("light", "onnx", {"fit": "shorter"}, Shapes(), "its file can take only one: set --image-size"),
        ("light", "onnx", {"image_size": 100}, Shapes(), "must be a multiple of 64 pixels, got 100"),
    ],
)
def test_refusals(kind, engine, options, shapes, reason, tmp_path):
    if engine in engines.FORMATS:
        skip_without(engine)
    with pytest.raises(shvit.InputError, match=reason):
        export_model(detector(kind, **options), engine, tmp_path / SUFFIXES.get(engine, "m.plan"), shapes=shapes)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_of_images_of_many_sizes_one_is_chosen(tmp_path, run):
    skip_without("onnx")
    save(detector("light", fit="shorter"), tmp_path / "m.safetensors")
    code, _, errors = run("export", tmp_path / "m.safetensors", "--format", "onnx", "--image-size", 192)
    assert code == 0, errors
    assert shvit.load(tmp_path / "m.onnx").preprocess == Preprocess(192, fit="whole")


@pytest.mark.slow
def test_a_file_that_finds_something_else_never_appears(tmp_path, monkeypatch):
    skip_without("onnx")
    kind = engines.ENGINES["onnx"]
    write, model_file = kind.export, detector("retinanet")
    torch.nn.init.normal_(model_file.model.head.classification_head.cls_logits.weight, std=0.05)
    other = replace(model_file, model=randomize_norms(model_file.architecture.build()))
    monkeypatch.setattr(kind, "export", classmethod(lambda cls, job: write(replace(job, model_file=other))))
    with pytest.raises(ExportError, match=r"m\.onnx is not kept: 0\.0% of its objects match PyTorch's"):
        export_model(model_file, "onnx", tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def found(*rows: tuple[float, ...], masks=None) -> Detections:
    """Rows of label, score, left, top, right, bottom."""
    values = torch.tensor(rows).view(-1, 6)
    return Detections(values[:, 2:], values[:, 1], values[:, 0].long(), masks)


ONE = (1.0, 0.9, 10.0, 10.0, 50.0, 50.0)


@pytest.mark.parametrize(
    ("other", "share", "fault"),
    [
        (ONE, 1.0, None),
        ((1.0, 0.905, 10.0, 10.0, 50.0, 51.0), 1.0, None),
        ((1.0, 0.8, 10.0, 10.0, 50.0, 50.0), 1.0, "its scores differ by 0.1, more than the allowed 0.02"),
        ((2.0, 0.9, 10.0, 10.0, 50.0, 50.0), 0.0, "0.0% of its objects match PyTorch's, less than the required 90%"),
        ((1.0, 0.9, 10.0, 10.0, 50.0, 60.0), 0.0, "0.0% of its objects"),
    ],
)
def test_planted_differences(other, share, fault):
    numbers, found_fault = object_parity.compare([(found(other), found(ONE))], "fp16")
    assert numbers["matched"] == share
    assert (found_fault or "").startswith(fault or "")
    assert (found_fault is None) == (fault is None)


def test_boxes_may_move_more_in_int8():
    pair = found((1.0, 0.9, 10.0, 10.0, 50.0, 60.0)), found(ONE)  # they overlap by 0.8
    assert object_parity.compare([pair], "int8")[1] is None
    assert object_parity.compare([pair], "fp32")[1] is not None


def test_what_either_side_lacks_counts():
    assert object_parity.compare([(found(), found())], "fp16")[1] is None
    for pair in ((found(), found(ONE)), (found(ONE), found())):
        assert "0.0% of its objects match" in object_parity.compare([pair], "fp16")[1]
    twice = found(ONE, (0.0, 0.9, 60.0, 60.0, 90.0, 90.0))
    assert object_parity.compare([(twice, found(ONE))], "int8")[0]["matched"] == pytest.approx(2 / 3)


def test_rounding_may_decide_which_box_of_an_object_gets_the_high_score():
    boxes = (10.0, 10.0, 50.0, 50.0), (10.0, 10.0, 50.0, 48.0)
    one, other = (found((1.0, 0.9, *first), (1.0, 0.06, *second)) for first, second in (boxes, boxes[::-1]))
    numbers, fault = object_parity.compare([(one, other)], "int8")
    assert (numbers["objects"], numbers["score_difference"], fault) == (2, 0, None)
    wrong = found((1.0, 0.06, *boxes[0]))
    assert object_parity.compare([(wrong, other)], "fp16")[1].startswith("its scores differ by 0.84")
    assert object_parity.compare([(wrong, other)], "int8")[1].startswith("0.0% of its objects match")


def test_masks_are_compared():
    masks = [np.zeros((64, 64), np.uint8) for _ in range(2)]
    masks[0][10:50, 10:50] = 1
    masks[1][10:30, 10:50] = 1
    whole, half = (found(ONE, masks=[encode(mask)]) for mask in masks)
    assert object_parity.compare([(whole, whole)], "fp16")[0]["mask_overlap"] == 1
    numbers, fault = object_parity.compare([(whole, half)], "fp16")
    assert numbers["mask_overlap"] == pytest.approx(0.5)
    assert fault == "its masks have a mean IoU of 0.50 with PyTorch's, below the required 0.9"


def test_other_engines_of_segmentation_are_refused():
    with pytest.raises(EngineError, match=r"mask_rcnn \(fit whole\) run on onnx, openvino, torch"):
        engines.load(detector("mask_rcnn"), "executorch")
    with pytest.raises(EngineError, match="precision 'bf16' is not available on cpu: openvino has fp32, int8"):
        engines.load(detector("light"), "openvino", "bf16")


def test_the_certain_ones_count_where_there_are_any():
    noise = [(0.0, 0.01, 5.0 * place, 0.0, 5.0 * place + 4, 4.0) for place in range(10)]
    numbers, fault = object_parity.compare([(found(ONE), found(ONE, *noise))], "fp16")
    assert (numbers["objects"], numbers["matched"], fault) == (2, 1, None)
    assert object_parity.compare([(found(*noise), found(*noise[:5]))], "fp16")[0]["matched"] == pytest.approx(10 / 15)


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
@pytest.mark.parametrize("kind", TASKS)
def test_end_to_end_objects_are_those_of_predict(kind, engine, tmp_path):
    skip_without(engine)
    model, out = detector(kind), tmp_path / SUFFIXES[engine]
    if kind == "retinanet":  # otherwise, all scores are below 0.05
        torch.nn.init.normal_(model.model.head.classification_head.cls_logits.weight, std=0.02)
        torch.nn.init.constant_(model.model.head.classification_head.cls_logits.bias, -2)
    export_model(model, engine, out, end_to_end=True)
    with pytest.raises(InputError, match=r"threshold must be at least 0\.05 for"):
        Predictor(out, threshold=0.01)
    images = [
        np.ascontiguousarray(one.permute(1, 2, 0))
        for size in ((90, 200), (128, 128), (250, 60))
        for one in random_images(2, *size)
    ]
    arguments = {"threshold": 0.2, "threads": 1}
    found, expected = Predictor(out, **arguments)(images), Predictor(model, "torch", "fp32", "cpu", **arguments)(images)
    assert any(one.labels for one in expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.scores[:20], other.scores[:20], atol=0.01)
        rows = [np.array([*box, score]) for box, score in zip(one.boxes, one.scores, strict=True)]
        for label, score, box in zip(other.labels[:20], other.scores, other.boxes, strict=False):
            same = [row for name, row in zip(one.labels, rows, strict=True) if name == label]
            differences = np.abs(np.array(same) - [*box, score])  # the order of almost equal scores may differ
            assert ((differences[:, :4] <= 2).all(1) & (differences[:, 4] <= 0.01)).any()
        assert (one.masks is None) == (other.masks is None)
