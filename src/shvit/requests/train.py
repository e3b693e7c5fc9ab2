"""The options of `shvit train`."""

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from . import Device, Workers


@Parameter(name="*")
@dataclass(frozen=True)
class TrainRequest:
    """What to train, on which data, and how. `recipe` and `settings` alone define the training method."""

    data: str
    """Dataset. For classify: a folder with train/<class>/… and val/<class>/…; a folder with <class>/…; a CSV file with
    the columns path and label; WebDataset shards (path or URL of a folder, of shards.json or of data-{000..127}.tar);
    hf://NAME (from the Hugging Face hub); hf://./FOLDER (a local Hugging Face dataset); or digits (of scikit-learn).
    For detect and segment: a folder in the format COCO, YOLO or Pascal VOC, also as exported by labelling tools; the
    YAML file of a YOLO dataset; or a COCO annotation file."""
    _: KW_ONLY
    out: Path | None = None
    """New folder for best.safetensors, last.safetensors, report.html, metrics.jsonl, curves.png and more. Required,
    except with --profile."""
    model: str | None = None
    """Published weights such as shvit_s1.in1k, or a model file to start from; or a network with random weights:
    shvit_s1 to shvit_s4, or timm/NAME. Default: shvit_s1.in1k for classify, otherwise shvit_s1."""
    recipe: str | None = None
    """For classify: scratch, finetune, distill, highres or highres-paper. For detect and segment: small or coco_1x.
    Default for classify: finetune for trained weights, scratch for random weights. Otherwise: small."""
    task: str | None = None
    """classify, detect (boxes) or segment (masks). Default: classify."""
    resume: bool = False
    """Resume the run in --out from its last checkpoint, with the same model and recipe."""
    device: Device = "auto"
    workers: Workers = 2
    save_every: int = 500
    """Steps between checkpoints. Each epoch also ends with a checkpoint, unless it is not evaluated and the last one is
    at most 10 seconds old."""
    teacher_cache: Path | None = None
    """Cache teacher logits in this folder. Requires --mixup 0 --cutmix 0 --random-erasing 0 --repeats 1
    --balance none.
    Recommended with --views, because later epochs then reuse the logits."""
    track: Literal["tensorboard"] | None = None
    """tensorboard: also write TensorBoard curves to the subfolder tensorboard of --out."""
    profile: bool = False
    """Do not train. Measure the throughput of data loading and of training steps, and show which of them limits
    the speed."""
    settings: Annotated[Mapping[str, Any], Parameter(parse=False)] = field(default_factory=dict)
    """Recipe fields that the user sets. `budget.fit` adapts the other fields to the dataset."""
