"""Detection: a box and a class for each object, by the light detector or by RetinaNet."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torchvision.ops import batched_nms, box_iou

from ..confidence import UNCALIBRATED, Calibration
from ..data.coco import CocoDataset
from ..data.dataset import DrawnBy
from ..data.decode import MAX_PIXELS, ImageInput
from ..data.letterbox import DetectionEvalReader, DetectionTargets, Letterbox, read_whole
from ..data.loader import Batch
from ..data.object_augmentation import DetectionTrainReader
from ..data.object_formats import open_objects
from ..data.transforms import Preprocess
from ..errors import Failure, counted
from ..model.detector import Target
from ..report.blocks import Card
from . import object_parity
from .base import Gather, GraphText, Predict, Prediction, ReportSubject, Results, Task, TaskReport, alone
from .object_matching import best_f1
from .object_report import object_cards, report_objects
from .objects import THRESHOLD, Detections, ObjectOutputs, ObjectsEvaluation, check_tools, judge

OVERLAP, LIMIT = 0.5, 100
"""IoU threshold of non-maximum suppression, and maximum number of objects per image: the usual values for COCO."""
DEFAULT_THRESHOLD = 0.3
"""Minimum score of objects, if the best one for the model is not known."""
PLAIN_SHARE = 0.1
"""Share of the epochs, at the end of training, without mosaics."""
CANDIDATES = 2000
"""Number of boxes per image that enter non-maximum suppression: those with the highest scores."""


INSIDE = """
    size_f = Cast <to=1> (size)
    resized_f = Cast <to=1> (resized)
    scales = Div (resized_f, size_f)
    scale = Gather (scales, x_and_y)
    edges = Gather (size_f, x_and_y)
    rows = Squeeze (objects, zero)
    given = Slice (rows, zero, four, values)
    whole = Div (given, scale)
    positive = Max (whole, zero_f)
    inside = Min (positive, edges)
    starts = Gather <axis=1> (inside, left_top)
    ends = Gather <axis=1> (inside, right_bottom)
    lengths = Sub (ends, starts)
"""
"""From `objects` to boxes in pixels of the image (`whole`), clipped to the image (`inside`), and their `lengths`."""
_EVERY = """
    above = GreaterOrEqual (certain, least)
    places_and_classes = NonZero (above)
    positions = Transpose <perm=[1, 0]> (places_and_classes)
"""
"""Selects every score of at least `least`."""
_SUPPRESSED = """
    by_class = Transpose <perm=[1, 0]> (certain)
    all_boxes = Unsqueeze (inside, zero)
    all_scores = Unsqueeze (by_class, zero)
    selected = NonMaxSuppression (all_boxes, all_scores, limit, overlap, least)
    positions = Gather <axis=1> (selected, class_and_place)
"""
"""Selects scores of at least `least` by non-maximum suppression."""
_RESULTS = f"""{INSIDE}
    shortest = ReduceMin <keepdims=1> (lengths, values)
    not_empty = Greater (shortest, zero_f)
    usable = Cast <to=1> (not_empty)
    by_place = Slice (rows, four, end, values)
    certain = Mul (by_place, usable)
    {{selection}}
    kept_scores = GatherND (certain, positions)
    kept = Shape (kept_scores)
    count = Min (kept, limit)
    scores, order = TopK (kept_scores, count)
    best = Gather (positions, order)
    place_column = Slice (best, zero, one, values)
    class_column = Slice (best, one, end, values)
    best_places = Squeeze (place_column, values)
    classes = Squeeze (class_column, values)
    boxes = Gather (inside, best_places)
"""
"""The nodes of `Detect.results_graph`, with one of the selections above. A box that is empty inside the image gets
score zero."""


class Detect(Task):
    """Detection with the light detector, which finds each object once, so that boxes need no suppression.

    Args:
        classes: Names, in the order of the scores.
        frozen_norms: What is frozen in the backbone's BatchNorms: `none` (nothing), `statistics`, or `all` (statistics
            and weights). Freeze the statistics if batches are too small to measure them.
    """

    name = "detect"
    recipe_family = "detect"
    headline = "AP"
    output = "objects"
    result_names = ("boxes", "scores", "classes")
    labels_images = False
    head = "light"
    detector = "light"
    min_evaluated_score: ClassVar[float] = 0.001
    """Minimum score of objects that are evaluated, as usual for detectors with a score for each class: 0.001 without
    anchors, where the scores of rare classes are low (RTMDet, YOLOv10), and 0.05 with anchors."""
    suppresses: ClassVar[bool] = False
    """Whether the network finds an object several times, so that non-maximum suppression must select one box."""
    fits = ("whole", "shorter")
    any_size = False
    eval_batch_size = 8
    predict_batch_size = 4
    parity_images = 16
    ranking_images = 8
    predict_flags = ("threshold", "draw", "annotations")
    kinds: ClassVar[tuple[str, ...]] = ("bbox",)
    """What is evaluated, by COCO's names: boxes are `bbox`, masks are `segm`."""

    def __init__(self, classes: Sequence[str], frozen_norms: str = "none") -> None:
        check_tools()
        self.classes = tuple(classes)
        self.frozen_norms = frozen_norms

    @classmethod
    def from_recipe(cls, classes: Sequence[str], recipe: Any, device: str) -> "Detect":
        """The task for training, with BatchNorms frozen as in the recipe."""
        return cls(classes, recipe.frozen_norms)

    @classmethod
    def threshold(cls, metrics: Mapping[str, Any]) -> float:
        """The score with the best F1 on the validation images (`best_f1`), or 0.3 if the metrics do not have it."""
        best = metrics.get("best_f1")
        known = best.get("threshold") if isinstance(best, Mapping) else None
        if not isinstance(known, int | float) or not 0 <= known <= 1:
            return DEFAULT_THRESHOLD
        return max(float(known), cls.min_score)

    @staticmethod
    def new_fit(fit: str) -> str:
        """`whole`: after a change of the image size, a detector gets the whole image in a square."""
        return "whole"

    @staticmethod
    def open(data: str | Path, seed: int = 0, val_share: float = 0.2, drawn_by: DrawnBy = "hash") -> CocoDataset:
        """Open a dataset with boxes or masks; see `open_objects`."""
        return open_objects(data, seed, val_share, drawn_by)

    def train_reader(self, preprocess: Preprocess, recipe: Any) -> DetectionTrainReader:
        """A reader of images with their objects, with the recipe's augmentation. The last tenth has no mosaics."""
        return DetectionTrainReader(
            preprocess,
            (recipe.scale_min, recipe.scale_max),
            recipe.flip,
            recipe.color_jitter,
            self.has_masks,
            recipe.max_pixels,
            recipe.hsv,
            recipe.mosaic,
            mosaic_epochs=recipe.epochs - math.ceil(PLAIN_SHARE * recipe.epochs),
        )

    def eval_reader(self, preprocess: Preprocess, max_pixels: int = MAX_PIXELS) -> DetectionEvalReader:
        """A reader of whole images with their ground truth."""
        return DetectionEvalReader(preprocess, max_pixels)

    def fast_reader(self, preprocess: Preprocess) -> Callable[[ImageInput], tuple[UInt8[Tensor, "3 h w"], Letterbox]]:
        """A function that reads the same pixels as `eval_reader`."""
        return partial(read_whole, preprocess=preprocess)

    def eval_batch(self, batch_size: int, processes: int) -> int:
        """The batch size for training, up to 8 images per process."""
        return min(batch_size, 8 * processes)

    def ready(self, network: Any) -> None:
        """Freeze the backbone's BatchNorms as `frozen_norms` requires."""
        if self.frozen_norms == "none":
            return
        for module in network.backbone.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval().requires_grad_(self.frozen_norms == "statistics")

    def augment(self, images: Float[Tensor, "b 3 h w"], batch: Batch) -> tuple[Float[Tensor, "b 3 h w"], list[Target]]:
        """The images unchanged, and their targets on the same device."""
        return images, [_target(one).to(images.device) for one in batch.targets]

    def loss(self, network: Any, images: Float[Tensor, "b 3 h w"], targets: list[Target]) -> Float[Tensor, ""]:
        return network(images, targets)

    def signal(self, outputs: Float[Tensor, "b places 4+classes"]) -> Float[Tensor, "b places classes"]:
        """The scores. Boxes are not compared, since most belong to places without an object."""
        return outputs[..., 4:]

    def evaluate(
        self, predict: Predict, batches: Iterable[Batch], gather: Gather = alone, keep: bool = False
    ) -> ObjectsEvaluation:
        truths, found, indices, bad = [], [], [], {}
        for batch in batches:
            bad |= batch.bad
            if len(batch):
                truths += batch.targets
                indices += batch.indices
                letterboxes = [truth.letterbox for truth in batch.targets]
                found += self.decode(predict(batch.images), letterboxes, self.min_evaluated_score)
        *columns, all_bad = zip(*gather((truths, found, indices, bad)), strict=True)
        truths, found, indices = (list(chain(*column)) for column in columns)
        bad = {index: reason for part in all_bad for index, reason in part.items()}
        if not truths:
            raise Failure(f"none of {counted(len(bad), 'image')} could be used")
        judged = {kind: judge(self.classes, truths, found, kind) for kind in self.kinds}
        return ObjectsEvaluation(
            self.classes,
            {kind: numbers for kind, (numbers, _) in judged.items()},
            {kind: by_class for kind, (_, by_class) in judged.items()},
            len(truths),
            bad,
            ObjectOutputs(indices, truths, found) if keep else None,
            best_f1(len(self.classes), truths, found),
        )

    def decode(
        self, outputs: Float[Tensor, "b found values"], letterboxes: Sequence[Any], threshold: float = THRESHOLD
    ) -> list[Detections]:
        """The objects in each image with a score of at least `threshold`."""
        return [self._decode_one(*pair, threshold) for pair in zip(outputs, letterboxes, strict=False)]

    def _decode_one(
        self, outputs: Float[Tensor, "places 4+classes"], letterbox: Letterbox, threshold: float
    ) -> Detections:
        scores = outputs[:, 4:]
        places, labels = (scores >= threshold).nonzero(as_tuple=True)
        certain, best = scores[places, labels].topk(min(CANDIDATES, len(labels)))
        boxes, certain, labels = outputs[places[best], :4].cpu(), certain.cpu(), labels[best].cpu()
        boxes = letterbox.to_image(boxes)
        inside = (boxes[:, 2:] > boxes[:, :2]).all(1).nonzero()[:, 0]
        if self.suppresses:
            inside = inside[batched_nms(boxes[inside], certain[inside], labels[inside], OVERLAP)]
        kept = inside[:LIMIT]
        return Detections(boxes[kept], certain[kept], labels[kept])

    def predictions(
        self,
        outputs: Float[Tensor, "b found values"],
        letterboxes: Sequence[Letterbox | None],
        top_k: int = 5,
        threshold: float = 0.3,
        calibration: Calibration = UNCALIBRATED,
    ) -> Iterator[Prediction]:
        yield from map(self._prediction, self.decode(outputs, letterboxes, threshold))

    def _prediction(self, found: Detections) -> Prediction:
        labels = tuple(self.classes[label] for label in found.labels.tolist())
        boxes = tuple(tuple(box) for box in found.boxes.tolist())
        masks = None if found.masks is None else tuple(found.masks)
        return Prediction("", labels, tuple(found.scores.tolist()), None, boxes, masks)

    def results_graph(self) -> GraphText:
        """Boxes in pixels of the image; see `Detect.decode`.

        The outputs are `boxes`, float32 (n, 4): left, top, right, bottom; `scores`, float32 (n,), highest first, at
        least `THRESHOLD`; and `classes`, int64 (n,): class indices.
        """
        constants = {
            **{
                name: np.array(value)
                for name, value in {"zero": [0], "one": [1], "four": [4], "end": [2**31 - 1]}.items()
            },
            **{"x_and_y": np.array([1, 0, 1, 0]), "limit": np.array([LIMIT]), "values": np.array([1])},
            **{"left_top": np.array([0, 1]), "right_bottom": np.array([2, 3])},
            **{"zero_f": np.zeros(1, np.float32), "least": np.array([THRESHOLD], np.float32)},
        }
        if self.suppresses:
            constants |= {"class_and_place": np.array([2, 1]), "overlap": np.array([OVERLAP], np.float32)}
        nodes = _RESULTS.format(selection=_SUPPRESSED if self.suppresses else _EVERY)
        inputs = f"float[1, places, {4 + len(self.classes)}] objects, int64[2] size, int64[2] resized"
        return GraphText(inputs, "float[n, 4] boxes, float[n] scores, int64[n] classes", nodes, constants)

    def to_results(self, outputs: Float[Tensor, "1 found values"], letterbox: Letterbox | None) -> Results:
        [found] = self.decode(outputs, [letterbox])
        return {"boxes": found.boxes.numpy(), "scores": found.scores.numpy(), "classes": found.labels.numpy()}

    def best(self, results: Results, count: int) -> tuple[tuple[int, ...], tuple[tuple[float, ...], ...]]:
        boxes = tuple(tuple(round(side, 1) for side in box) for box in results["boxes"][:count].tolist())
        return tuple(results["classes"][:count].tolist()), boxes

    def scores_of(self, results: Results, classes: Sequence[int], boxes: Any) -> list[float]:
        """The score of the object that overlaps each box most, if its class is the same and its IoU at least 0.5."""
        if not len(classes) or not len(results["scores"]):
            return [0.0] * len(classes)
        overlaps = box_iou(torch.tensor(boxes), torch.from_numpy(results["boxes"])).numpy()
        overlaps[np.array(classes)[:, None] != results["classes"]] = 0
        scores = results["scores"][overlaps.argmax(1)]
        return np.where(overlaps.max(1) >= OVERLAP, scores, 0).tolist()

    def from_results(
        self,
        results: Results,
        height: int,
        width: int,
        top_k: int = 5,
        threshold: float = 0.3,
        calibration: Calibration = UNCALIBRATED,
    ) -> Prediction:
        return self._prediction(self.objects_of(results, height, width, threshold))

    def objects_of(self, results: Results, height: int, width: int, threshold: float) -> Detections:
        """The objects of an end-to-end file with a score of at least `threshold`, in an image of this size."""
        boxes, scores, labels = (torch.from_numpy(results[name]) for name in ("boxes", "scores", "classes"))
        kept = scores >= threshold
        return Detections(boxes[kept], scores[kept], labels[kept])

    def compare_results(
        self, found: Sequence[Results], outputs: Tensor, letterboxes: Sequence[Any], precision: str
    ) -> tuple[dict[str, Any], str | None]:
        """Compare objects by class, box, score and mask; see `object_parity`."""
        sizes = [(letterbox.height, letterbox.width) for letterbox in letterboxes]
        objects = [self.objects_of(one, *size, THRESHOLD) for one, size in zip(found, sizes, strict=True)]
        pairs = list(zip(objects, self.decode(outputs, letterboxes), strict=True))
        return object_parity.compare(pairs, precision)

    def compare(
        self, outputs: Tensor, expected: Tensor, precision: str, side: int
    ) -> tuple[dict[str, Any], str | None]:
        """Compare objects by class, box, score and mask; see `object_parity`."""
        letterboxes = [Letterbox(side, side, 1.0, 1.0)] * len(outputs)
        pairs = zip(self.decode(outputs, letterboxes, 0.0), self.decode(expected, letterboxes, 0.0), strict=True)
        return object_parity.compare(list(pairs), precision)

    @staticmethod
    def compared(numbers: Mapping[str, Any]) -> str:
        if not numbers["objects"]:
            return "no objects in these images, so this proves little: use --calibrate with images that have objects"
        masks = f", mask IoU {numbers['mask_overlap']:.3f}" if numbers["mask_overlap"] is not None else ""
        return (
            f"{numbers['matched']:.1%} of {counted(numbers['objects'], 'object')} found by both PyTorch and the file, "
            f"scores differ by at most {numbers['score_difference']:.1e} (allowed {numbers['bound']:g}){masks}"
        )

    @staticmethod
    def csv_header(top_k: int, judged: bool = False) -> list[str]:
        """path, label, score, left, top, right, bottom, error. Boxes are in pixels."""
        return ["path", "label", "score", "left", "top", "right", "bottom", "error"]

    @staticmethod
    def csv_rows(prediction: Prediction, judged: bool = False) -> Iterator[list[str]]:
        """One row per object, or one row without a label if there are no objects."""
        for label, score, box in zip(prediction.labels, prediction.scores, prediction.boxes or (), strict=True):
            yield [prediction.path, label, f"{score:.6f}", *(f"{side:.2f}" for side in box), ""]
        if not prediction.labels:
            yield [prediction.path, *[""] * 6, prediction.error or ""]

    @staticmethod
    def line(prediction: Prediction) -> str:
        found = zip(prediction.labels, prediction.scores, prediction.boxes or (), strict=True)
        objects = [f"{name} {score:.0%} ({', '.join(f'{side:.0f}' for side in box)})" for name, score, box in found]
        return "  ".join(objects) or "no objects"

    @staticmethod
    def class_counts(split: Any, classes: int) -> tuple[str, np.ndarray]:
        """Objects, without crowds."""
        labels = [one.labels[~one.crowd] for one in split.objects]
        return "objects", np.bincount(np.concatenate([np.empty(0, np.int64), *labels]), minlength=classes)

    def cards(self, metrics: Mapping[str, Any]) -> tuple[Card, ...]:
        return object_cards(metrics)

    def report(self, evaluation: ObjectsEvaluation, subject: ReportSubject) -> TaskReport:
        """Precision and recall, scores of each class, misses and false alarms."""
        return report_objects(evaluation, subject)


class DetectAnchors(Detect):
    """Detection with RetinaNet, trained with its focal loss of the classes and L1 loss of the boxes."""

    head = "retinanet"
    detector = "retinanet"
    min_evaluated_score = THRESHOLD
    suppresses = True


def _target(targets: DetectionTargets) -> Target:
    boxes, labels, crowds = (torch.from_numpy(part) for part in (targets.boxes, targets.labels, targets.crowds))
    return Target(boxes, labels, crowds, None if targets.masks is None else torch.from_numpy(targets.masks))
