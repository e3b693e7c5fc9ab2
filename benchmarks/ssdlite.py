"""torchvision's SSDLite320 with MobileNetV3-Large, as a peer of our detectors: training and evaluation.

Its backbone is timm's `mobilenetv3_large_100`, trained by `shvit train`. Its layers are those of torchvision's network,
in the same order. Training uses our reader of images, the same augmentation, and our optimizer, schedule and EMA.
"""

import math
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torchvision.models import mobilenet_v3_large
from torchvision.models.detection._utils import retrieve_out_channels
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.ssdlite import SSDLiteHead, _mobilenet_extractor
from torchvision.ops import batched_nms

from shvit.data.coco import CocoDataset
from shvit.data.letterbox import Letterbox
from shvit.data.loader import Loader, seeded
from shvit.data.transforms import Preprocess
from shvit.pretrained import load_model
from shvit.tasks.detect import DetectAnchors
from shvit.tasks.objects import Detections
from shvit.train.optim import make_optimizer, make_schedule, schedule_time
from shvit.train.recipe import Recipe

SIDE = 320


def ssdlite(classes: int, start: Path | None = None) -> nn.Module:
    """The network, with the weights of a trained classifier in its backbone. Class 0 is the background."""
    norm = partial(nn.BatchNorm2d, eps=1e-5, momentum=0.03)  # 1e-5 as in timm; the rest as in torchvision
    backbone = _mobilenet_extractor(mobilenet_v3_large(norm_layer=norm), 6, norm)
    anchors = DefaultBoxGenerator([[2, 3] for _ in range(6)], min_ratio=0.2, max_ratio=0.95)
    widths = retrieve_out_channels(backbone, (SIDE, SIDE))
    head = SSDLiteHead(widths, anchors.num_anchors_per_location(), classes + 1, norm)
    network = SSD(backbone, anchors, (SIDE, SIDE), classes + 1, head=head)
    if start is not None:
        given = load_model(start).model.state_dict()
        wanted = network.backbone.features.state_dict()
        values = [
            value for name, value in given.items() if not name.startswith(("network.conv_head", "network.classifier"))
        ]
        network.backbone.features.load_state_dict(dict(zip(wanted, values, strict=True)))
    return network


class Raw(nn.Module):
    """The network from pixels (0 to 255, normalized here) to class probabilities and boxes, without suppression."""

    def __init__(self, network: nn.Module, preprocess: Preprocess) -> None:
        super().__init__()
        self.network = network
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (preprocess.mean, preprocess.std))
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, images: Tensor) -> Tensor:
        network: Any = self.network
        x = (images.float() - self.mean) / self.std
        maps = list(network.backbone(x).values())
        outputs = network.head(maps)
        anchors = _anchors(network, maps, x)
        boxes = network.box_coder.decode_single(outputs["bbox_regression"].flatten(0, 1), anchors.repeat(len(x), 1))
        scores = outputs["cls_logits"].softmax(2)[..., 1:]
        return torch.cat([boxes.view(len(x), -1, 4), scores], 2)


def _anchors(network: Any, maps: list[Tensor], x: Tensor) -> Tensor:
    from torchvision.models.detection.image_list import ImageList

    return network.anchor_generator(ImageList(x, [(SIDE, SIDE)]), maps)[0]


def decode(rows: Tensor, letterbox: Letterbox) -> Detections:
    """The objects of an image, as torchvision selects them: 300 boxes of each class, NMS at an IoU of 0.55."""
    boxes, scores, labels = [], [], []
    for label in range(rows.shape[1] - 4):
        values, best = rows[:, 4 + label].topk(min(300, len(rows)))
        kept = values > 0.001
        boxes.append(letterbox.to_image(rows[best[kept], :4]))
        scores.append(values[kept])
        labels.append(torch.full_like(best[kept], label))
    box, score, label = torch.cat(boxes), torch.cat(scores), torch.cat(labels)
    kept = batched_nms(box, score, label, 0.55)[:100]
    return Detections(box[kept], score[kept], label[kept])


def train(source: CocoDataset, recipe: Recipe, preprocess: Preprocess, start: Path) -> tuple[Raw, float]:
    """Train with the recipe. Returns the EMA network and the seconds of training."""
    task = DetectAnchors(source.classes)
    with seeded(recipe.seed):
        network: Any = ssdlite(len(source.classes), start)
    reader = task.train_reader(preprocess, recipe)
    loader = Loader(source.train, reader, recipe.batch_size, 2, shuffle=True, seed=recipe.seed)
    network = network.to(memory_format=torch.channels_last).train()
    optimizer = make_optimizer(network, recipe)
    steps = len(loader)
    schedule, ema = make_schedule(optimizer, recipe, steps), ModelEmaV3(network, decay=recipe.ema, use_warmup=True)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (preprocess.mean, preprocess.std))
    started = time.perf_counter()
    for epoch in range(recipe.epochs):
        total = 0.0
        for step, batch in enumerate(loader.epoch(epoch)):
            schedule.step_update(schedule_time(recipe, epoch, step / steps, steps))
            images = (batch.images.float() - mean) / std
            _, targets = task.augment(images, batch)
            rows = [{"boxes": one.boxes, "labels": one.labels + 1} for one in targets]
            maps = list(network.backbone(images).values())
            outputs = network.head(maps)
            anchors = [_anchors(network, maps, images)] * len(rows)
            matched = [_matched(network, row["boxes"], anchors[0]) for row in rows]
            losses = network.compute_loss(rows, outputs, anchors, matched)
            loss = losses["bbox_regression"] + losses["classification"]
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            ema.update(network, step=epoch * steps + step)
            total += float(loss.detach())
            assert math.isfinite(total)
        print(
            f"ssdlite epoch {epoch + 1}/{recipe.epochs} loss {total / steps:.3f} {time.perf_counter() - started:.0f} s",
            flush=True,
        )
    return Raw(ema.module.eval(), preprocess).eval(), time.perf_counter() - started


def _matched(network: Any, boxes: Tensor, anchors: Tensor) -> Tensor:
    from torchvision.ops import box_iou

    if not len(boxes):
        return torch.full((len(anchors),), -1, dtype=torch.int64)
    return network.proposal_matcher(box_iou(boxes, anchors))


@torch.inference_mode()
def judge(network: Raw, source: CocoDataset, preprocess: Preprocess) -> dict[str, float]:
    """COCO's metrics on the validation images."""
    from shvit.tasks.objects import judge as coco_metrics

    task = DetectAnchors(source.classes)
    truths, found = [], []
    for batch in Loader(source.val, task.eval_reader(preprocess), 8):
        outputs = network(batch.images)
        truths += batch.targets
        found += [decode(rows, truth.letterbox) for rows, truth in zip(outputs, batch.targets, strict=True)]
    return coco_metrics(source.classes, truths, found, "bbox")[0]
