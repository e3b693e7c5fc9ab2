"""Mask R-CNN: proposals, then a class, box and mask for each proposal. Built from torchvision's parts.

Source: K. He et al., "Mask R-CNN", ICCV 2017.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, maskrcnn_loss
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import MultiScaleRoIAlign

from .detector import LAYOUTS, Anchors, Backbone, BestForEach, Detector, Target, in_crowd
from .pyramid import WIDTH

DETECTIONS = 100
MASK_SIDE = 28
IGNORED = -1
"""The label that torchvision's samplers ignore."""
BETA = 1 / 9
"""`beta` of torchvision's smooth L1 loss: the loss of smaller differences is quadratic. With 0, the loss is L1."""
POSITIVE = 0.25
"""Maximum fraction of the sampled proposals that are matched to an object."""


class CrowdAwareRPN(RegionProposalNetwork):
    """torchvision's RPN, except that anchors in crowds are not trained as background."""

    beta = BETA

    def assign_targets_to_anchors(
        self, anchors: list[Tensor], targets: list[dict[str, Tensor]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Ignore background anchors within crowds."""
        labels, boxes = super().assign_targets_to_anchors(anchors, targets)
        for label, anchor, target in zip(labels, anchors, targets, strict=True):
            if "crowds" in target:
                label[(label == 0) & in_crowd(anchor, target["crowds"])] = IGNORED
        return labels, boxes

    def compute_loss(
        self, objectness: Tensor, pred_bbox_deltas: Tensor, labels: list[Tensor], regression_targets: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The losses of objectness and boxes, over the sampled anchors."""
        positive, negative = (torch.cat(drawn).nonzero()[:, 0] for drawn in self.fg_bg_sampler(labels))
        drawn, wanted = torch.cat([positive, negative]), torch.cat(regression_targets)[positive]
        boxes = F.smooth_l1_loss(pred_bbox_deltas[positive], wanted, beta=self.beta, reduction="sum") / len(drawn)
        return F.binary_cross_entropy_with_logits(objectness.flatten()[drawn], torch.cat(labels)[drawn]), boxes


class CrowdAwareRoIHeads(RoIHeads):
    """torchvision's RoI heads, except that proposals in crowds are not trained as background."""

    beta = BETA
    crowds: Sequence[Float[Tensor, "m 4"]] = ()
    """The crowds in each image of the current training step."""

    def select_training_samples(self, proposals: list[Tensor], targets: Any) -> Any:
        """Store the crowds, then sample proposals."""
        self.crowds = [target["crowds"] for target in targets if "crowds" in target]
        return super().select_training_samples(proposals, targets)

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: Any = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """The objects in each image. In training, the losses of classes, boxes and masks instead."""
        if not self.training:
            return super().forward(features, proposals, image_shapes)
        proposals, matched, labels, wanted = self.select_training_samples(proposals, targets)
        logits, deltas = self.box_predictor(self.box_head(self.box_roi_pool(features, proposals, image_shapes)))
        label = torch.cat(labels)
        positive = (label > 0).nonzero()[:, 0]
        found = deltas.view(len(label), -1, 4)[positive, label[positive]]
        distance = F.smooth_l1_loss(found, torch.cat(wanted)[positive], beta=self.beta, reduction="sum")
        held = [(one > 0).nonzero()[:, 0] for one in labels]
        boxes, matched = ([one[index] for one, index in zip(part, held, strict=True)] for part in (proposals, matched))
        assert self.mask_roi_pool
        assert self.mask_head
        assert self.mask_predictor
        masks = self.mask_predictor(self.mask_head(self.mask_roi_pool(features, boxes, image_shapes)))
        masks_given, labels_given = ([target[name] for target in targets] for name in ("masks", "labels"))
        losses = {
            "loss_classifier": F.cross_entropy(logits, label),
            "loss_box_reg": distance / len(label),
            "loss_mask": maskrcnn_loss(masks, boxes, masks_given, labels_given, matched),
        }
        return [], losses

    def assign_targets_to_proposals(
        self, proposals: list[Tensor], gt_boxes: list[Tensor], gt_labels: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Ignore background proposals within crowds."""
        matched, labels = super().assign_targets_to_proposals(proposals, gt_boxes, gt_labels)
        for label, boxes, crowds in zip(labels, proposals, self.crowds, strict=False):
            label[(label == 0) & in_crowd(boxes, crowds)] = IGNORED
            if (label == IGNORED).all():
                label[-1:] = 0  # without any proposal, the loss would be NaN: use the one with the lowest score
        return matched, labels


class MaskRCNN(Detector):
    """Finds up to 100 objects per image, those with the highest scores: box, score, class and mask of each.

    The sides of the images must be multiples of the backbone's coarsest stride, 64 for SHViT.
    """

    strides = (4, 8, 16, 32, 64)
    class_layers = ("roi_heads.box_predictor.", "roi_heads.mask_predictor.mask_fcn_logits.")
    any_batch = False

    def __init__(self, backbone: Backbone, num_classes: int, layout: str = LAYOUTS[0]) -> None:
        super().__init__(backbone, num_classes, layout)
        samples = 0 if self.as_published else 2
        self.rpn = CrowdAwareRPN(
            Anchors(self.strides, (8.0,)),
            RPNHead(WIDTH, 3),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=256,
            positive_fraction=0.5,
            pre_nms_top_n={"training": 2000, "testing": 1000},
            post_nms_top_n={"training": 1000 if self.as_published else 2000, "testing": 1000},
            nms_thresh=0.7,
        )
        levels = [str(level) for level in range(len(self.strides) - 1)]
        self.roi_heads = CrowdAwareRoIHeads(
            MultiScaleRoIAlign(levels, 7, samples),
            TwoMLPHead(WIDTH * 7 * 7, 1024),
            FastRCNNPredictor(1024, num_classes + 1),
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=512,
            positive_fraction=POSITIVE,
            bbox_reg_weights=None,
            score_thresh=0.05,
            nms_thresh=0.5,
            detections_per_img=DETECTIONS,
            mask_roi_pool=MultiScaleRoIAlign(levels, 14, samples),
            mask_head=MaskRCNNHeads(WIDTH, (256, 256, 256, 256), 1),
            mask_predictor=MaskRCNNPredictor(256, 256, num_classes + 1),
        )
        if self.as_published:
            self.rpn.beta = self.roi_heads.beta = 0.0
            self.rpn.proposal_matcher = BestForEach(0.7, 0.3, least=0.3)
            self.roi_heads.proposal_matcher = BestForEach(0.5, 0.5, least=0.5)

    def set_proposals(self, proposals: int) -> None:
        """Set the number of proposals that are sampled from each training image for the losses."""
        self.roi_heads.fg_bg_sampler = BalancedPositiveNegativeSampler(proposals, POSITIVE)

    def set_min_score(self, score: float) -> None:
        """Set the score that objects must exceed. It is 0.05 in a new network."""
        self.roi_heads.score_thresh = score

    def forward(
        self, x: Float[Tensor, "b in h w"], targets: Sequence[Target] | None = None
    ) -> Float[Tensor, "b 100 790"] | Float[Tensor, ""]:
        """One row per object, highest score first, padded with zeros: box (left, top, right, bottom in pixels), score,
        class, and 28x28 mask (probabilities inside the box). With targets, returns the loss instead.
        """
        maps = {str(level): values.float() for level, values in enumerate(self.features(x))}
        size = (x.shape[2], x.shape[3])
        images, sizes = ImageList(x, [size] * x.shape[0]), [size] * x.shape[0]
        with torch.autocast(x.device.type, enabled=False):
            if targets is not None:
                return self._loss(images, maps, targets)
            proposals, _ = self.rpn(images, maps)
            found, _ = self.roi_heads(maps, proposals, sizes)
        return torch.stack([_rows(one) for one in found])

    def _loss(self, images: ImageList, maps: dict[str, Tensor], targets: Sequence[Target]) -> Float[Tensor, ""]:
        """The sum of five losses: objectness, classes, masks, and the boxes of each of the two stages."""
        rows = [{**vars(target), "labels": target.labels + 1} for target in targets]  # 0 is background
        proposals, first = self.rpn(images, maps, rows)
        _, second = self.roi_heads(maps, proposals, images.image_sizes, rows)
        return sum([*first.values(), *second.values()], torch.zeros((), device=images.tensors.device))


def _rows(found: dict[str, Tensor]) -> Float[Tensor, "100 790"]:
    columns = [found["boxes"], found["scores"][:, None], (found["labels"] - 1)[:, None], found["masks"].flatten(1)]
    rows = torch.cat([column.float() for column in columns], 1)
    return torch.cat([rows, rows.new_zeros(DETECTIONS, rows.shape[1])])[:DETECTIONS]
