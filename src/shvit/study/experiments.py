"""The paper's comparisons as data: which networks, and what it says of them.

Source: Yun and Ro, "SHViT" (CVPR 2024), sections 2.1 and 4.4; images/s on an A100 (batch 256), a Xeon Gold 5218R (batch
16, one thread) and the same in ONNX Runtime.
"""

from ..errors import InputError
from .compare import Comparison, Entry
from .networks import SIZES

LARGER = 256 / 224


def macro(size: str = "s1") -> Comparison:
    """Stem and number of stages."""
    _check(size)
    return Comparison(
        name="macro",
        title="Macro design: stem and stages",
        question=(
            "A 16x16 stem and three stages against a 4x4 stem and four, with the same blocks (depthwise convolution, "
            "single-head attention in the last two stages, feed-forward), and as wide on maps of equal size: 14x14 and "
            "7x7 tokens. Then the three-stage network on larger images, and with attention in its first stage, too."
        ),
        claims=(
            "Its pair are two MetaFormer-style models of similar width on maps of equal size, no variants of SHViT.",
            "The 16x16-stem network is 3.0 times as fast on a GPU, 2.8 times on a CPU, and 1.5 points less accurate.",
            "Trained at 256 pixels it draws level in accuracy, and stays far faster.",
            "Attention in the first stage is a worse trade than depthwise convolution alone.",
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
    """The token mixer, and the share of channels that its head has."""
    _check(size)
    paper = size == "s3"

    def entry(label: str, model: str, gpu: int, cpu: int, onnx: int, top1: float) -> Entry:
        known = {"gpu": gpu, "cpu": cpu, "cpu-onnx": onnx, "top1": top1} if paper else {}
        return Entry(label, model, paper=known)

    return Comparison(
        name="ablation",
        title="Ablation: multi-head, single-head, none",
        question=(
            "The same network with multi-head attention over all channels, with no attention, and with one head over "
            "an eighth, 1/4.67 (the paper's choice) or a half of the channels."
        ),
        claims=(
            "Multi-head attention is 0.3 points more accurate than the single head and runs at 0.79 of its speed in "
            "ONNX Runtime, 0.81 in PyTorch on a CPU, 0.88 on a GPU.",
            "Without attention 1.1 points are lost.",
            "A larger share of the channels than 1/4.67 gains a tenth of a point.",
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
    """Where the single head stands."""
    _check(size)
    paper = size == "s2"

    def entry(label: str, model: str, params: float, onnx: int, gpu: int, top1: float) -> Entry:
        known = {"params": params, "cpu-onnx": onnx, "gpu": gpu, "top1": top1} if paper else {}
        return Entry(label, model, paper=known)

    return Comparison(
        name="designs",
        title="Three designs of single-head attention",
        question=(
            "One head (a) in place of the 3x3 convolution of a ResNet bottleneck, (b) over all channels, (c) over a "
            "part of the channels, the others passing by to the projection, as the paper has it. Widths and depths are "
            "those of the variant in all three; the paper's (b) has fewer parameters than that, by narrowings it does "
            "not tell."
        ),
        claims=(
            "(c) is the fastest in ONNX Runtime: (a) runs at 0.84 of its speed, (b) at 0.76.",
            "(c) is the most accurate: (a) has 1.6 points less, (b) 0.1.",
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
