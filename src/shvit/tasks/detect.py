"""Detection: a box and a class for each object, by RetinaNet."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torchvision.ops import batched_nms

from ..data.coco import CocoDataset, open_coco
from ..data.dataset import DrawnBy
from ..data.decode import MAX_PIXELS, ImageInput
from ..data.letterbox import (
    DetectionEvalReader,
    DetectionTargets,
    DetectionTrainReader,
    GroundTruth,
    Letterbox,
    read_whole,
)
from ..data.loader import Batch
from ..data.transforms import Preprocess
from ..errors import Failure
from ..model.detector import Target
from .base import Gather, Predict, alone
from .objects import Detections, ObjectsEvaluation, check_tools, judge

THRESHOLD, OVERLAP, LIMIT = 0.05, 0.5, 100
"""Score from which, and overlap up to which a box is kept, and how many of an image: as COCO is usually judged."""
CANDIDATES = 2000
"""Boxes of an image that are compared with one another, the most certain."""


class Detect:
    """Focal loss of RetinaNet's classes and L1 loss of its boxes.

    Args:
        classes: Names, in the order of the scores.
        frozen_norms: What the backbone's BatchNorms keep as it is: `none`, `statistics`, or their weights, too (`all`);
            for batches too small to measure statistics on.
    """

    name: ClassVar[str] = "detect"
    detector: ClassVar[str] = "retinanet"
    headline = "AP"
    fits: ClassVar[tuple[str, ...]] = ("whole", "shorter")
    """Of `Preprocess`, with which its networks can see images."""
    kinds: ClassVar[tuple[str, ...]] = ("bbox",)
    least_score: ClassVar[float] = 0.0
    """The score from which the network gives objects; a network with `find_from` can be told another one."""

    def __init__(self, classes: Sequence[str], frozen_norms: str = "none") -> None:
        check_tools()
        self.classes = tuple(classes)
        self.frozen_norms = frozen_norms

    @staticmethod
    def open(data: str | Path, seed: int = 0, val_share: float = 0.2, drawn_by: DrawnBy = "content") -> CocoDataset:
        """As `open_coco`."""
        return open_coco(data, seed, val_share, drawn_by)

    def train_reader(self, preprocess: Preprocess, recipe: Any) -> DetectionTrainReader:
        scale = recipe.scale_min, recipe.scale_max
        masks = "segm" in self.kinds
        return DetectionTrainReader(preprocess, scale, recipe.flip, recipe.color_jitter, masks, recipe.max_pixels)

    def eval_reader(self, preprocess: Preprocess, max_pixels: int = MAX_PIXELS) -> DetectionEvalReader:
        return DetectionEvalReader(preprocess, max_pixels)

    def fast_reader(self, preprocess: Preprocess) -> Callable[[ImageInput], tuple[UInt8[Tensor, "3 h w"], Letterbox]]:
        """What `Predictor` reads with."""
        return partial(read_whole, preprocess=preprocess)

    def eval_batch(self, batch_size: int, processes: int) -> int:
        return min(batch_size, 8 * processes)

    def ready(self, network: Any) -> None:
        """Makes a network in training mode ready for the next steps."""
        if self.frozen_norms == "none":
            return
        for module in network.backbone.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval().requires_grad_(self.frozen_norms == "statistics")

    def augment(self, images: Float[Tensor, "b 3 h w"], batch: Batch) -> tuple[Float[Tensor, "b 3 h w"], list[Target]]:
        marked: list[DetectionTargets] = batch.targets
        return images, [_target(one).to(images.device) for one in marked]

    def loss(self, network: Any, images: Float[Tensor, "b 3 h w"], targets: list[Target]) -> Float[Tensor, ""]:
        return network(images, targets)

    def signal(self, outputs: Float[Tensor, "b anchors 4+classes"]) -> Float[Tensor, "b anchors classes"]:
        """The scores: most boxes are of anchors that nobody asks about."""
        return outputs[..., 4:]

    def evaluate(self, predict: Predict, batches: Iterable[Batch], gather: Gather = alone) -> ObjectsEvaluation:
        """COCO's numbers; every usable image is counted once.

        Raises:
            Failure: None of the images could be used.
        """
        truths: list[GroundTruth] = []
        found: list[Detections] = []
        bad: dict[int, str] = {}
        for batch in batches:
            bad |= batch.bad
            if len(batch):
                truths += batch.targets
                found += self.decode(predict(batch.images), [truth.letterbox for truth in batch.targets])
        all_truths, all_found, all_bad = zip(*gather((truths, found, bad)), strict=True)
        truths, found = list(chain(*all_truths)), list(chain(*all_found))
        bad = {index: reason for part in all_bad for index, reason in part.items()}
        if not truths:
            raise Failure(f"none of the {len(bad)} images could be used")
        judged = {kind: judge(self.classes, truths, found, kind) for kind in self.kinds}
        return ObjectsEvaluation(
            self.classes,
            {kind: numbers for kind, (numbers, _) in judged.items()},
            {kind: by_class for kind, (_, by_class) in judged.items()},
            len(truths),
            bad,
        )

    def decode(
        self, outputs: Float[Tensor, "b found values"], frames: Sequence[Letterbox], threshold: float = THRESHOLD
    ) -> list[Detections]:
        """The objects in each image, from what the network gives; their scores are `threshold` at least."""
        return [self._found(*pair, threshold) for pair in zip(outputs, frames, strict=False)]

    def _found(self, outputs: Float[Tensor, "anchors 4+classes"], frame: Letterbox, threshold: float) -> Detections:
        scores = outputs[:, 4:]
        anchors, labels = (scores >= threshold).nonzero(as_tuple=True)
        certain, best = scores[anchors, labels].topk(min(CANDIDATES, len(labels)))
        boxes, certain, labels = outputs[anchors[best], :4].cpu(), certain.cpu(), labels[best].cpu()
        boxes = frame.to_image(boxes)
        inside = (boxes[:, 2:] > boxes[:, :2]).all(1).nonzero()[:, 0]
        kept = inside[batched_nms(boxes[inside], certain[inside], labels[inside], OVERLAP)[:LIMIT]]
        return Detections(boxes[kept], certain[kept], labels[kept])


def _target(marks: DetectionTargets) -> Target:
    boxes, labels, crowds = (torch.from_numpy(part) for part in (marks.boxes, marks.labels, marks.crowds))
    return Target(boxes, labels, crowds, None if marks.masks is None else torch.from_numpy(marks.masks))
