"""Models to compare SHViT with, their published accuracy and training, and the speeds published in the paper."""

from dataclasses import dataclass, field
from typing import Any

from ..model.architecture import TIMM_PREFIX
from ..model.config import VARIANTS
from ..pretrained import PUBLISHED_TOP1
from ..requests.bench import BenchRequest

PEERS = (
    "timm/mobilenetv3_small_100",
    "timm/mobilenetv4_conv_small",
    "timm/efficientvit_m5",
    "timm/levit_128s",
    "timm/levit_192",
    "timm/repvit_m0_9",
    "timm/fastvit_t8",
    "timm/starnet_s4",
    "timm/mobilevitv2_100",
    "timm/hgnetv2_b0.ssld_stage2_ft_in1k",
    "timm/hgnetv2_b1.ssld_stage2_ft_in1k",
    "timm/mobilenetv3_large_100.miil_in21k_ft_in1k",
    "timm/efficientnet_b0.ra4_e3600_r224_in1k",
    "timm/mobilenetv4_conv_medium",
)
"""Default models to compare with. A name has a tag (after the dot) if the weights are not timm's default weights."""
DEFAULT_MODELS = (*VARIANTS, *PEERS)

_BACKBONES = (*VARIANTS, "timm/mobilenetv3_large_100", "timm/resnet50")
DETECTION_MODELS = {
    "detect": (*_BACKBONES, "torchvision/retinanet_resnet50_fpn_v2", "torchvision/fasterrcnn_mobilenet_v3_large_fpn"),
    "segment": (*_BACKBONES, "torchvision/maskrcnn_resnet50_fpn_v2"),
}
"""Default models by task. The two timm networks have the layers of torchvision's ResNet-50 and MobileNetV3."""
DETECTION_SIZE = 512
"""Image side, in pixels, at which the paper timed backbones."""
PAPER_BACKBONES = {"shvit_s4": (0.28, 5.0), "timm/resnet50": (None, 19.0), "timm/mobilenetv3_large_100": (None, 7.5)}
"""Milliseconds per image of each backbone on a GPU (batch size 32) and on a CPU (batch size 16), from the paper's COCO
experiments: Yun and Ro, arXiv:2401.16456. None: unknown."""


@dataclass(frozen=True)
class Top1:
    """A published accuracy on ImageNet-1K, or the accuracy stored in a model file."""

    percent: float
    image_size: int
    """Side of the images in pixels."""
    source: str
    training: str = ""
    """Training data (`in1k`: ImageNet-1K; `in21k`, `in22k`: pretrained on a larger ImageNet), and distillation."""
    own: bool = False
    """Whether training or `shvit calibrate-bn` measured the accuracy and stored it in a model file."""
    distilled: bool = field(init=False)
    """Whether the network was trained with a larger network as teacher. Such distillation adds about one point."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "distilled", "distilled" in self.training)


TIMM_TABLE = "timm, results/results-imagenet.csv at 7479d451a6df"
NEWER_TABLE = "timm, results/results-imagenet.csv at 4e5207c7bb65"
STARNET = "the authors' list of their weights, github.com/ma-xu/Rewrite-the-Stars at e7fef11af6e3"

_TOP1 = {
    **{
        name: Top1(PUBLISHED_TOP1[f"{name}.in1k"], config.image_size, "timm", "in1k")
        for name, config in VARIANTS.items()
    },
    "mobilenetv3_small_100": Top1(67.638, 224, TIMM_TABLE, "in1k"),  # .lamb_in1k
    "mobilenetv4_conv_small": Top1(73.730, 224, TIMM_TABLE, "in1k"),  # .e2400_r224_in1k
    "efficientvit_m5": Top1(77.082, 224, TIMM_TABLE, "in1k"),  # .r224_in1k
    "levit_128s": Top1(76.522, 224, TIMM_TABLE, "in1k, distilled"),  # .fb_dist_in1k
    "levit_192": Top1(79.850, 224, TIMM_TABLE, "in1k, distilled"),  # .fb_dist_in1k
    "repvit_m0_9": Top1(78.654, 224, TIMM_TABLE, "in1k, distilled"),  # .dist_300e_in1k
    "fastvit_t8": Top1(76.184, 256, TIMM_TABLE, "in1k"),  # .apple_in1k
    "starnet_s4": Top1(78.8, 224, STARNET, "in1k"),  # .in1k
    "mobilevitv2_100": Top1(78.092, 256, TIMM_TABLE, "in1k"),  # .cvnets_in1k
    "hgnetv2_b0.ssld_stage2_ft_in1k": Top1(77.362, 224, NEWER_TABLE, "in22k, distilled"),
    "hgnetv2_b1.ssld_stage2_ft_in1k": Top1(78.884, 224, NEWER_TABLE, "in22k, distilled"),
    "mobilenetv3_large_100.miil_in21k_ft_in1k": Top1(77.920, 224, NEWER_TABLE, "in21k"),
    "efficientnet_b0.ra4_e3600_r224_in1k": Top1(78.568, 224, NEWER_TABLE, "in1k"),
    "mobilenetv4_conv_medium": Top1(79.916, 256, NEWER_TABLE, "in1k"),  # .e500_r256_in1k
}
"""Published accuracies by name. A name without a tag stands for timm's default weights."""


def published_top1(name: str, image_size: int) -> Top1 | None:
    """The published accuracy of this network at this size; None if unknown."""
    top1 = _TOP1.get(name.removeprefix(TIMM_PREFIX).removesuffix(".in1k"))
    return top1 if top1 and top1.image_size == image_size else None


@dataclass(frozen=True)
class Protocol:
    """The settings of one of the paper's speed measurements. Users can change only the models."""

    settings: BenchRequest
    about: str
    images_per_second: dict[str, int]
    """Published images/s of the paper's models."""


TRACED = "torch-traced"
"""PyTorch as in the paper's scripts. The network is folded and traced. Images are fp32 on the device."""
EAGER = "torch-eager"
"""PyTorch in eager mode. The network is folded and in channels_last."""
COMPILED = "torch-compiled"
"""torch.compile with mode max-autotune. The network is folded, in the faster of NCHW and channels_last."""


def yardsticks(device: str) -> dict[str, tuple[str, ...]]:
    """The precisions of each name in `case.YARDSTICKS`. A yardstick is timed only if the user names it."""
    if device == "cpu":
        return {TRACED: ("fp32",), EAGER: ("fp32", "bf16"), COMPILED: ("fp32", "bf16")}
    return {TRACED: ("fp16", "fp32"), EAGER: ("fp16", "bf16", "fp32"), COMPILED: ("fp16", "bf16", "fp32")}


_PAPER = {
    "shvit_s1": (33489, 143, 1111),
    "shvit_s2": (26878, 99, 951),
    "shvit_s3": (20522, 62, 731),
    "shvit_s4": (14283, 36, 509),
    "timm/mobilenetv3_small_100": (31477, 167, 1172),
    "timm/efficientvit_m2": (30377, 147, 781),
    "timm/efficientvit_m4": (26201, 113, 616),
    "timm/efficientvit_m5": (18722, 64, 456),
    "timm/fasternet_t0": (23518, 92, 844),
    "timm/fasternet_t1": (17827, 41, 552),
    "timm/fasternet_t2": (11181, 21, 417),
    "timm/fastvit_t8": (5978, 23, 140),
    "timm/fastvit_t12": (4197, 14, 92),
    "timm/poolformer_s12": (5432, 13, 120),
    "timm/efficientnet_b0": (8433, 26, 267),
    "timm/efficientnet_b1": (4982, 11, 156),
    "timm/mobileone_s2": (9355, 22, 581),
    "timm/mobileone_s4": (5281, 11, 281),
    "timm/mobilevitv2_100": (4345, 7, 63),
}
"""Images/s on a GPU, on a CPU, and on a CPU with ONNX Runtime: Yun and Ro, arXiv:2401.16456. The paper's
ShuffleNetV2 is left out because timm does not have it."""


def _protocol(column: int, engine: str, precision: str, batch_size: int, about: str, **settings: Any) -> Protocol:
    request = BenchRequest(engines=(engine,), precisions=(precision,), batch_sizes=(batch_size,), **settings)
    return Protocol(request, about, {model: speeds[column] for model, speeds in _PAPER.items()})


_ON_CPU = "the paper used a Xeon Gold 5218R"
PROTOCOLS = {
    "paper-cpu": _protocol(1, TRACED, "fp32", 16, f"PyTorch, folded and traced; {_ON_CPU}", threads=1, device="cpu"),
    "paper-onnx": _protocol(2, "onnx", "fp32", 16, f"ONNX Runtime with default options; {_ON_CPU}", device="cpu"),
    "paper-gpu": _protocol(
        0, TRACED, "fp16", 256, "PyTorch, folded, traced, fp16 autocast; the paper used an A100", device="cuda"
    ),
}
