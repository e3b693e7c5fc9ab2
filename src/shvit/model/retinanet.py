"""RetinaNet: a class and a box for each anchor in one pass. Uses torchvision's head, losses and box coder.

Source: T.-Y. Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017.
"""

from collections.abc import Sequence
from functools import partial
from math import ceil

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import box_iou

from .detector import LAYOUTS, Anchors, Backbone, BestForEach, Detector, Target, in_crowd
from .pyramid import WIDTH

GROUPS = 32
"""Groups of the head's GroupNorm, as in torchvision's `retinanet_resnet50_fpn_v2`. With GroupNorm, the network
learns much faster. Layout `paper` has no norm in the head."""
ANCHORS_PER_POSITION = 9
"""Three anchor sizes, each with three aspect ratios."""
ANCHOR_SCALES = tuple(4 * 2 ** (third / 3) for third in range(3))


class RetinaNet(Detector):
    """Boxes with a score for each class, from nine anchors at each position of five levels.

    The sides of the images must be multiples of the backbone's coarsest stride, 64 for SHViT.
    """

    strides = (8, 16, 32, 64, 128)
    class_layers = ("head.classification_head.cls_logits.",)

    def __init__(self, backbone: Backbone, num_classes: int, layout: str = LAYOUTS[0]) -> None:
        super().__init__(backbone, num_classes, layout)
        norm = None if self.as_published else partial(nn.GroupNorm, GROUPS)
        self.anchors = Anchors(self.strides, ANCHOR_SCALES)
        self.head = RetinaNetHead(WIDTH, ANCHORS_PER_POSITION, num_classes, norm_layer=norm)
        self.coder = BoxCoder((1.0, 1.0, 1.0, 1.0))
        published = BestForEach(0.5, 0.4, least=0.0)
        self.matcher = published if self.as_published else Matcher(0.5, 0.4, allow_low_quality_matches=True)

    @staticmethod
    def output_width(classes: int) -> int | None:
        """Number of values in an output row: a box, and a score for each class."""
        return 4 + classes

    @classmethod
    def rows_at(cls, side: int, classes: int) -> int | None:
        """Number of anchors of a square image with this side."""
        return ANCHORS_PER_POSITION * sum(ceil(side / stride) ** 2 for stride in cls.strides)

    def forward(
        self, x: Float[Tensor, "b in h w"], targets: Sequence[Target] | None = None
    ) -> Float[Tensor, "b anchors 4+classes"] | Float[Tensor, ""]:
        """Boxes (left, top, right, bottom in pixels), then class scores (0 to 1). With targets, returns the loss."""
        maps = self.features(x)
        outputs = {name: values.float() for name, values in self.head(maps).items()}
        anchors = self.anchors.on(maps)
        if targets is not None:
            return self._loss(outputs, anchors, targets)
        deltas, batch = outputs["bbox_regression"], x.shape[0]
        boxes = self.coder.decode_single(deltas.flatten(0, 1), anchors.repeat(batch, 1))
        return torch.cat([boxes.view_as(deltas), outputs["cls_logits"].sigmoid()], 2)

    def _loss(
        self, outputs: dict[str, Tensor], anchors: Float[Tensor, "anchors 4"], targets: Sequence[Target]
    ) -> Float[Tensor, ""]:
        """Focal loss of classes plus L1 loss of boxes. Each image's loss is divided by its number of anchors that are
        matched to an object, then averaged over the images. Layout `paper` instead divides the sum of the losses of
        all images by the number of such anchors in all images.
        """
        matched = [self._match(anchors, target) for target in targets]
        rows = [{"boxes": target.boxes, "labels": target.labels} for target in targets]
        if not self.as_published:
            return _sum_of(self.head.compute_loss(rows, outputs, [anchors] * len(rows), matched))
        counts = [max(1, int((found >= 0).sum())) for found in matched]
        loss = torch.zeros((), device=anchors.device)
        for index, (row, found) in enumerate(zip(rows, matched, strict=True)):
            one = {name: values[index : index + 1] for name, values in outputs.items()}
            loss = loss + _sum_of(self.head.compute_loss([row], one, [anchors], [found])) * counts[index]
        return loss / sum(counts)

    def _match(self, anchors: Float[Tensor, "anchors 4"], target: Target) -> Int64[Tensor, " anchors"]:
        """The index of the object that each anchor is matched to. -1 is background, -2 is ignored."""
        if len(target.boxes):
            matched = self.matcher(box_iou(target.boxes, anchors))
        else:
            matched = anchors.new_full((len(anchors),), Matcher.BELOW_LOW_THRESHOLD, dtype=torch.int64)
        background = matched == Matcher.BELOW_LOW_THRESHOLD
        matched[background & in_crowd(anchors, target.crowds)] = Matcher.BETWEEN_THRESHOLDS
        return matched


def _sum_of(losses: dict[str, Tensor]) -> Float[Tensor, ""]:
    return losses["classification"] + losses["bbox_regression"]
