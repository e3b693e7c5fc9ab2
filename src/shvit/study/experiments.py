"""The paper's comparisons: their networks, and what the paper says about them.

Source: Yun and Ro, "SHViT" (CVPR 2024), sections 2.1 and 4.4. Images/s are on an A100 (batch 256), a Xeon Gold 5218R
(batch 16, one thread), and the same Xeon with ONNX Runtime.
"""

from ..errors import InputError
from .compare import Comparison, Entry
from .networks import SIZES

LARGER = 256 / 224


def macro(size: str = "s1") -> Comparison:
    """Compare the stem and the number of stages."""
    _check(size)
    return Comparison(
        name="macro",
        title="Macro design: stem and stages",
        question=(
            "A 16x16 stem with three stages against a 4x4 stem with four. Both have the same blocks (depthwise "
            "convolution, single-head attention in the last two stages, feed-forward) and the same widths at 14x14 and "
            "7x7 tokens. Also the three-stage network on larger images, and with attention in its first stage."
        ),
        claims=(
            "The paper compares two MetaFormer-style models of similar width, not variants of SHViT.",
            "The network with the 16x16 stem is 3.0 times as fast on a GPU and 2.8 times as fast on a CPU, and 1.5 "
            "points less accurate.",
            "Trained at 256 pixels it reaches the same accuracy and is still much faster.",
            "Attention in the first stage is a worse trade-off than depthwise convolution alone.",
        ),
        entries=(
            Entry("4x4 stem, 4 stages", f"study/{size}-four-stages", paper={"gpu": 1.0, "cpu": 1.0}),
            Entry("16x16 stem, 3 stages", f"shvit_{size}", paper={"gpu": 3.0, "cpu": 2.8}),
            Entry("16x16 stem, larger images", f"shvit_{size}", LARGER),
            Entry("16x16 stem, attention in stage 1", f"study/{size}-early-attention"),
        ),
        reference="4x4 stem, 4 stages",
    )


def ablation(size: str = "s3") -> Comparison:
    """Compare token mixers, and ratios of attended channels."""
    _check(size)
    paper = size == "s3"

    def entry(label: str, model: str, gpu: int, cpu: int, onnx: int, top1: float) -> Entry:
        known = {"gpu": gpu, "cpu": cpu, "cpu-onnx": onnx, "top1": top1} if paper else {}
        return Entry(label, model, paper=known)

    return Comparison(
        name="ablation",
        title="Ablation: multi-head, single-head, none",
        question=(
            "The same network with multi-head attention over all channels, without attention, and with a single head "
            "over 1/8, 1/4.67 (the paper's choice) or 1/2 of the channels."
        ),
        claims=(
            "Multi-head attention is 0.3 points more accurate than the single head. Its speed is 0.79 times that of "
            "the single head in ONNX Runtime, 0.81 times in PyTorch on a CPU and 0.88 times on a GPU.",
            "Without attention, accuracy drops by 1.1 points.",
            "With 1/2 of the channels instead of 1/4.67, accuracy rises by 0.1 points.",
        ),
        entries=(
            entry("multi-head", f"study/{size}-multi-head", 18036, 50, 578, 77.7),
            entry("no attention", f"study/{size}-no-attention", 22075, 61, 792, 76.3),
            entry("single head, 1/8", f"study/{size}-ratio-8", 20666, 57, 754, 77.1),
            entry("single head, 1/4.67", f"shvit_{size}", 20522, 62, 731, 77.4),
            entry("single head, 1/2", f"study/{size}-ratio-2", 19976, 56, 673, 77.5),
        ),
        reference="single head, 1/4.67",
    )


def designs(size: str = "s2") -> Comparison:
    """Compare designs of single-head attention."""
    _check(size)
    paper = size == "s2"

    def entry(label: str, model: str, params: float, onnx: int, gpu: int, top1: float) -> Entry:
        known = {"params": params, "cpu-onnx": onnx, "gpu": gpu, "top1": top1} if paper else {}
        return Entry(label, model, paper=known)

    return Comparison(
        name="designs",
        title="Three designs of single-head attention",
        question=(
            "A single head (a) instead of the 3x3 convolution of a ResNet bottleneck, (b) over all channels, (c) over "
            "some of the channels while the others go straight to the projection, as in SHViT. All three have the "
            "widths and depths of the variant. The paper's (b) has fewer parameters; the paper does not say how it was "
            "narrowed."
        ),
        claims=(
            "(c) is the fastest in ONNX Runtime: the speed of (a) is 0.84 times, of (b) 0.76 times that of (c).",
            "(c) is the most accurate: (a) is 1.6 points worse, (b) 0.1 points.",
        ),
        entries=(
            entry("(a) bottleneck", f"study/{size}-bottleneck", 10.6, 802, 27195, 73.6),
            entry("(b) all channels", f"study/{size}-all-channels", 10.4, 724, 26432, 75.1),
            entry("(c) partial channels", f"shvit_{size}", 11.4, 951, 26878, 75.2),
        ),
        reference="(c) partial channels",
    )


COMPARISONS = {"macro": macro, "ablation": ablation, "designs": designs}


def _check(size: str) -> None:
    if size not in SIZES:
        raise InputError(f"--size must be one of {', '.join(SIZES)}, got {size!r}")
