"""The paper's comparisons: the networks that are compared, and what the paper found.

Source: Yun and Ro, "SHViT" (CVPR 2024), sections 2.1 and 4.4. The paper measured images/s on an A100 (batch 256), on a
Xeon Gold 5218R (batch 16, one thread), and on the same Xeon with ONNX Runtime.
"""

from dataclasses import replace

from .compare import Comparison, Entry

COMPARISONS = {
    "macro": Comparison(
        name="macro",
        title="Macro design: stem and stages",
        question=(
            "A 16x16 stem with three stages against a 4x4 stem with four stages. Both networks have the same blocks "
            "(depthwise convolution, single-head attention in the last two stages, feed-forward) and the same widths "
            "at 14x14 and 7x7 tokens. The three-stage network is also measured on larger images, and with attention in "
            "its first stage."
        ),
        claims=(
            "The paper compares two MetaFormer-style models of similar width, not variants of SHViT.",
            "The network with the 16x16 stem is 3.0 times as fast on a GPU and 2.8 times as fast on a CPU as the "
            "network with the 4x4 stem, and 1.5 points less accurate.",
            "Trained at 256 pixels, the network with the 16x16 stem is equally accurate and still much faster.",
            "In stage 1, attention is a worse trade-off of accuracy and speed than depthwise convolution alone.",
        ),
        size="s1",
        entries=(
            Entry("4x4 stem, 4 stages", "study/SIZE-four-stages", paper={"gpu": 1.0, "cpu": 1.0}),
            Entry("16x16 stem, 3 stages", "shvit_SIZE", paper={"gpu": 3.0, "cpu": 2.8}),
            Entry("16x16 stem, larger images", "shvit_SIZE", scale=256 / 224),
            Entry("16x16 stem, attention in stage 1", "study/SIZE-early-attention"),
        ),
        reference="4x4 stem, 4 stages",
    ),
    "ablation": Comparison(
        name="ablation",
        title="Ablation: multi-head, single-head and no attention",
        question=(
            "The same network with multi-head attention over all channels, without attention, and with a single head "
            "over 1/8, 1/4.67 (the paper's choice) or 1/2 of the channels."
        ),
        claims=(
            "Multi-head attention is 0.3 points more accurate than the single head. Its speed is 0.79 times that of "
            "the single head in ONNX Runtime on a CPU, 0.81 times in PyTorch on a CPU and 0.88 times on a GPU.",
            "Without attention, accuracy drops by 1.1 points.",
            "With 1/2 of the channels instead of 1/4.67, accuracy rises by 0.1 points.",
        ),
        size="s3",
        entries=tuple(
            Entry(label, model, paper={"gpu": gpu, "cpu": cpu, "cpu-onnx": onnx, "top1": top1})
            for label, model, gpu, cpu, onnx, top1 in (
                ("multi-head", "study/SIZE-multi-head", 18036, 50, 578, 77.7),
                ("no attention", "study/SIZE-no-attention", 22075, 61, 792, 76.3),
                ("single head, 1/8", "study/SIZE-ratio-8", 20666, 57, 754, 77.1),
                ("single head, 1/4.67", "shvit_SIZE", 20522, 62, 731, 77.4),
                ("single head, 1/2", "study/SIZE-ratio-2", 19976, 56, 673, 77.5),
            )
        ),
        reference="single head, 1/4.67",
    ),
    "designs": Comparison(
        name="designs",
        title="Three designs of single-head attention",
        question=(
            "A single head (a) instead of the 3x3 convolution of a ResNet bottleneck, (b) over all channels, (c) over "
            "some of the channels while the other channels go straight to the projection, as in SHViT. Here, all three "
            "networks have the widths and depths of the SHViT variant. The paper's network (b) has fewer parameters; "
            "the paper does not say which widths were reduced."
        ),
        claims=(
            "(c) is the fastest in ONNX Runtime: (a) has 0.84 times and (b) has 0.76 times the speed of (c).",
            "(c) is the most accurate: the top-1 of (a) is 1.6 points lower, and that of (b) is 0.1 points lower.",
        ),
        size="s2",
        entries=tuple(
            Entry(label, model, paper={"params": params, "cpu-onnx": onnx, "gpu": gpu, "top1": top1})
            for label, model, params, onnx, gpu, top1 in (
                ("(a) bottleneck", "study/SIZE-bottleneck", 10.6, 802, 27195, 73.6),
                ("(b) all channels", "study/SIZE-all-channels", 10.4, 724, 26432, 75.1),
                ("(c) partial channels", "shvit_SIZE", 11.4, 951, 26878, 75.2),
            )
        ),
        reference="(c) partial channels",
    ),
}


def make_comparison(name: str, size: str | None = None) -> Comparison:
    """Make a comparison at one size of SHViT. Default: the size that the paper uses.

    At other sizes, the paper's numbers are left out. `macro` keeps its numbers: they do not depend on a size of SHViT.
    """
    paper = COMPARISONS[name]
    size = size or paper.size
    keep = size == paper.size or name == "macro"
    entries = (
        replace(entry, model=entry.model.replace("SIZE", size), paper=entry.paper if keep else {})
        for entry in paper.entries
    )
    return replace(paper, size=size, entries=tuple(entries))
