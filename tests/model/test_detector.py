"""Detectors give the results of torchvision's detectors with the same weights, and ignore crowds."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torchvision.models.detection import MaskRCNN, RetinaNet
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.anchor_utils import AnchorGenerator

from conftest import random_images, randomize_norms, tiny_architecture
from shvit.data.letterbox import Letterbox
from shvit.data.transforms import Preprocess
from shvit.errors import InputError
from shvit.model.architecture import Architecture
from shvit.model.detector import BestForEach, Target, in_crowd, share_within
from shvit.model.fuse import fuse
from shvit.modelfile import ModelFile, load, save
from shvit.pretrained import onto_detector
from shvit.tasks.detect import DetectAnchors
from shvit.tasks.segment import Segment

SIDE = 128
WHOLE = Letterbox(SIDE, SIDE, 1.0, 1.0)
KINDS = ["retinanet", "mask_rcnn"]


def detector(kind: str, classes: int = 3, layout: str = "torchvision"):
    model = randomize_norms(tiny_architecture(classes, detector=kind, layout=layout).build()).eval()
    if kind == "retinanet":  # otherwise no score is above the threshold
        nn.init.normal_(model.head.classification_head.cls_logits.weight, std=0.05)
        nn.init.constant_(model.head.classification_head.cls_logits.bias, -1.0)
        nn.init.normal_(model.head.regression_head.bbox_reg.weight, std=0.001)  # otherwise boxes lie outside the image
    return model


class Levels(nn.Module):
    """Our pyramid with the interface of torchvision's backbones."""

    out_channels = 256

    def __init__(self, model) -> None:
        super().__init__()
        self.features = model.features

    def forward(self, images):
        return {str(level): x for level, x in enumerate(self.features(images))}


def images_and_targets(masks: bool = False):
    images = (random_images(2, SIDE) / 255 - 0.45) / 0.225
    boxes = torch.tensor([[10.0, 20, 70, 90], [64, 64, 120, 100], [5, 5, 25, 25]])
    drawn = torch.zeros(3, SIDE, SIDE, dtype=torch.uint8)
    for place, (left, top, right, bottom) in enumerate(boxes.int().tolist()):
        drawn[place, top:bottom, left:right] = 1
    none = torch.zeros(0, 4)
    full = Target(boxes, torch.tensor([0, 2, 1]), none, drawn if masks else None)
    empty = Target(none, torch.zeros(0, dtype=torch.int64), none, drawn[:0] if masks else None)
    return images, [full, empty]


def same_size(model, classes: int, **parts):
    """Arguments with which torchvision's detectors do not resize images."""
    return {
        "num_classes": classes,
        "min_size": SIDE,
        "max_size": SIDE,
        "image_mean": [0.0] * 3,
        "image_std": [1.0] * 3,
        **parts,
    }


def torchvisions_retinanet(model) -> RetinaNet:
    sizes = tuple(tuple(4 * stride * 2 ** (third / 3) for third in range(3)) for stride in model.strides)
    anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 5)
    parts = {"anchor_generator": anchors, "head": model.head, "detections_per_img": 100}
    return RetinaNet(Levels(model), **same_size(model, 3, **parts)).eval()


def torchvisions_mask_rcnn(model) -> MaskRCNN:
    sizes = tuple((8.0 * stride,) for stride in model.strides)
    theirs = MaskRCNN(
        Levels(model),
        **same_size(model, 4, rpn_anchor_generator=AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 5)),
    )
    theirs.rpn.head, theirs.roi_heads = model.rpn.head, model.roi_heads
    return theirs.eval()


@torch.no_grad()
def test_retinanet_is_torchvisions():
    model = detector("retinanet")
    theirs = torchvisions_retinanet(model)
    images, targets = images_and_targets()
    expected = theirs(list(images))
    assert all(len(one["scores"]) > 10 for one in expected)
    for found, one in zip(DetectAnchors("abc").decode(model(images), [WHOLE, WHOLE]), expected, strict=True):
        torch.testing.assert_close(found.scores, one["scores"])
        torch.testing.assert_close(found.boxes, one["boxes"], rtol=1e-4, atol=1e-3)
        assert found.labels.tolist() == one["labels"].tolist()
    theirs.train()
    rows = [{"boxes": target.boxes, "labels": target.labels} for target in targets]
    torch.testing.assert_close(model(images, targets), sum(theirs(list(images), rows).values()))


@torch.no_grad()
def test_mask_rcnn_is_torchvisions():
    model = detector("mask_rcnn")
    theirs = torchvisions_mask_rcnn(model)
    images, targets = images_and_targets(masks=True)
    expected = theirs(list(images))
    assert all(len(one["scores"]) > 10 for one in expected)
    found = Segment("abc").decode(model(images), [WHOLE, WHOLE])
    for mine, one in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.scores, one["scores"])
        torch.testing.assert_close(mine.boxes, one["boxes"], rtol=1e-4, atol=1e-3)
        assert (mine.labels + 1).tolist() == one["labels"].tolist()
        areas = torch.tensor([float(decoded(mask).sum()) for mask in mine.masks])
        torch.testing.assert_close(areas, (one["masks"] > 0.5).sum((1, 2, 3)).float(), rtol=0, atol=0)
    rows = [{"boxes": t.boxes, "labels": t.labels + 1, "masks": t.masks} for t in targets]
    theirs.train()  # this includes our heads, but not our backbone
    model.rpn.train()
    torch.manual_seed(0)
    own = model(images, targets)
    torch.manual_seed(0)
    torch.testing.assert_close(own, sum(theirs(list(images), rows).values()), rtol=1e-3, atol=0)


def decoded(code):
    from faster_coco_eval.core import mask

    return mask.decode(code)


@pytest.mark.parametrize("kind", KINDS)
def test_levels_are_at_their_strides(kind):
    model = detector(kind)
    sizes = [tuple(x.shape[1:]) for x in model.features(torch.zeros(1, 3, 128, 192))]
    assert sizes == [(256, -(-128 // stride), -(-192 // stride)) for stride in model.strides]
    with pytest.raises(InputError, match="multiples of 64 pixels high and wide, got 100x128"):
        model.features(torch.zeros(1, 3, 100, 128))


@pytest.mark.parametrize("layout", ["torchvision", "paper"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_learns(kind, layout):
    model = detector(kind, layout=layout).train()
    images, targets = images_and_targets(masks=kind == "mask_rcnn")
    model(images, targets).backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []


@torch.no_grad()
def test_the_authors_coarsest_level_is_computed_from_the_last_map():
    model, images = detector("retinanet", layout="paper"), torch.randn(1, 3, 128, 128)
    last = model.backbone.features(images)[-1]
    torch.testing.assert_close(model.features(images)[-1], model.pyramid.coarser[0](last))
    assert model.pyramid.coarser[0].in_channels == last.shape[1] != 256
    assert not any(isinstance(part, nn.GroupNorm) for part in model.head.modules())


@torch.no_grad()
def test_the_authors_loss_is_over_the_objects_of_all_images():
    model = detector("retinanet", layout="paper")
    images, [full, empty] = images_and_targets()
    one, other = model(images[:1], [full]), model(images[1:], [empty])
    anchors = model.anchors.on(model.features(images))
    count = int((model._match(anchors, full) >= 0).sum())
    assert count > 3
    torch.testing.assert_close(model(images, [full, empty]), (one * count + other) / (count + 1))


def test_the_authors_mask_rcnn():
    model = detector("mask_rcnn", layout="paper").train()
    assert [model.roi_heads.box_roi_pool.sampling_ratio, model.roi_heads.mask_roi_pool.sampling_ratio] == [0, 0]
    assert (model.rpn.pre_nms_top_n(), model.rpn.post_nms_top_n()) == (2000, 1000)
    deltas, wanted = torch.zeros(4, 4), torch.full((4, 4), 0.05)
    _, distance = model.rpn.compute_loss(torch.zeros(4, 1), deltas, [torch.ones(4)], [wanted])
    torch.testing.assert_close(distance, torch.tensor(4 * 0.05))  # L1; smooth L1 gives 4 * 0.05² * 9 / 2


def test_each_object_keeps_its_best_box():
    """Like mmdetection's MaxIoUAssigner with match_low_quality. torchvision assigns the box to the other object."""
    overlaps = torch.tensor([[0.9, 0.6, 0.1, 0.0], [0.8, 0.2, 0.3, 0.35], [0.0, 0.0, 0.0, 0.2]])
    assert BestForEach(0.7, 0.3, least=0.3)(overlaps).tolist() == [1, -2, -2, -2]
    assert BestForEach(0.7, 0.3, least=0.0)(overlaps).tolist() == [1, -2, -2, 2]
    assert Matcher(0.7, 0.3, allow_low_quality_matches=True)(overlaps).tolist() == [0, -2, -2, 1]
    assert BestForEach(0.5, 0.5, least=0.5)(torch.zeros(1, 2)).tolist() == [-1, -1]


@pytest.mark.parametrize("kind", KINDS)
def test_files_without_a_layout_have_the_old_one(kind, tmp_path):
    known = tiny_architecture(3, detector=kind).to_dict()
    del known["layout"]
    assert Architecture.from_dict(known) == tiny_architecture(3, detector=kind)
    with pytest.raises(InputError, match="layout of a detector must be one of torchvision, paper, got 'new'"):
        tiny_architecture(3, detector=kind, layout="new")


def test_crowds_are_ignored_in_training():
    model = detector("retinanet")
    anchors = model.anchors.on(model.features(torch.zeros(1, 3, SIDE, SIDE)))
    crowd = torch.tensor([[0.0, 0, 64, 64]])
    objects = torch.tensor([[70.0, 70, 110, 110]])
    matched = model._match(anchors, Target(objects, torch.tensor([0]), crowd))
    within = share_within(anchors, crowd)[:, 0] > 0.5
    assert within.any()
    assert set(matched[within].tolist()) <= {-2, 0}
    assert -2 not in model._match(anchors, Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), crowd[:0]))


def test_proposals_in_crowds_are_left_out():
    model = detector("mask_rcnn").train()
    crowd = torch.tensor([[0.0, 0, 64, 64]])
    boxes = torch.tensor([[0.0, 0, 30, 30], [96, 96, 126, 126], [70, 70, 110, 110]])
    target = {"boxes": boxes[2:], "labels": torch.tensor([1]), "crowds": crowd}
    [label], _ = model.rpn.assign_targets_to_anchors([boxes], [target])
    assert label.tolist() == [-1, 0, 1]
    model.roi_heads.crowds = [crowd]
    _, [label] = model.roi_heads.assign_targets_to_proposals([boxes], [boxes[2:]], [target["labels"]])
    assert label.tolist() == [-1, 0, 1]
    assert in_crowd(boxes, crowd[:0]).tolist() == [False] * 3


def test_an_image_with_only_a_crowd_has_a_loss():
    model = detector("mask_rcnn").train()
    nothing = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, SIDE, SIDE, dtype=torch.uint8)
    target = Target(nothing[0], nothing[1], torch.tensor([[-SIDE, -SIDE, 2.0 * SIDE, 2.0 * SIDE]]), nothing[2])
    assert model(torch.randn(1, 3, SIDE, SIDE), [target]).isfinite()


def test_share_within():
    boxes = torch.tensor([[0.0, 0, 10, 10], [5, 5, 15, 15], [20, 20, 30, 30]])
    assert share_within(boxes, torch.tensor([[0.0, 0, 10, 10]]))[:, 0].tolist() == [1.0, 0.25, 0.0]


@pytest.mark.parametrize("kind", KINDS)
def test_folding_and_files_change_nothing(kind, tmp_path):
    model = detector(kind)
    images, _ = images_and_targets()
    save(ModelFile(model, tuple("abc"), Preprocess(SIDE, fit="whole"), "detect"), tmp_path / "a.safetensors")
    again = load(tmp_path / "a.safetensors")
    assert (again.task, again.preprocess.fit, again.architecture.detector) == ("detect", "whole", kind)
    with torch.no_grad():
        expected = model.features(images)
        for other, tolerance in ((again.model, 0.0), (fuse(model), 1e-4)):
            for one, two in zip(other.features(images), expected, strict=True):
                torch.testing.assert_close(one, two, rtol=tolerance, atol=tolerance * float(two.abs().max()))


def test_backbones_transfer_between_tasks():
    classifier = randomize_norms(tiny_architecture(5).build())
    retinanet = onto_detector(classifier, tiny_architecture(3, detector="retinanet"))
    torch.testing.assert_close(retinanet.backbone.stem[0].state_dict(), classifier.stem[0].state_dict())
    mask_rcnn = onto_detector(retinanet, tiny_architecture(3, detector="mask_rcnn"))
    torch.testing.assert_close(mask_rcnn.backbone.state_dict(), retinanet.backbone.state_dict())
    other = onto_detector(retinanet, replace(retinanet.architecture, num_classes=7))
    known = retinanet.state_dict()
    fresh = [name for name, value in other.state_dict().items() if value.shape != known[name].shape]
    assert {name.rpartition(".")[0] + "." for name in fresh} == set(retinanet.class_layers)
    assert all(torch.equal(value, known[name]) for name, value in other.state_dict().items() if name not in fresh)


@pytest.mark.parametrize("kind", KINDS)
def test_timms_models_are_backbones(kind):
    model = Architecture("timm/mobilenetv3_small_050", 3, detector=kind).build().eval()
    with torch.no_grad():
        levels = model.features(torch.zeros(1, 3, 128, 128))
    assert [x.shape[2] for x in levels] == [-(-128 // stride) for stride in model.strides]
    with pytest.raises(InputError, match="each twice the previous one; got 16, 16, 16"):
        Architecture("timm/deit_tiny_patch16_224", 3, detector=kind).build()


def test_unknown_detectors_are_refused():
    with pytest.raises(InputError, match="detector must be one of light, light_masks, retinanet, mask_rcnn"):
        Architecture("shvit_s1", 3, detector="yolo")
