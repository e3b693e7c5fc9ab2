"""What kind of operation a network's time goes to, and in which of its parts, as each engine's own profiler tells.

Source: Yun and Ro, "SHViT" (CVPR 2024): most of a multi-head layer's time is work bound by memory.
"""

import json
import tempfile
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function

from ..engines import ENGINES
from ..engines.onnx import OnnxEngine
from ..engines.openvino import build
from ..engines.openvino_runtime import Compiled
from ..engines.portable import portable
from ..engines.torch import TorchEngine
from ..errors import InputError
from ..modelfile import ModelFile
from ..suppress import silent

CALLS = 10

PRODUCT, FUSED, DEPTHWISE, NORM, MOVE, SOFTMAX, ELEMENTWISE, OTHER = KINDS = (
    "matrix product",
    "fused attention",
    "depthwise convolution",
    "normalisation",
    "reshape and copy",
    "softmax",
    "elementwise and means",
    "the engine's own",
)
"""Dense convolutions are matrix products. Fused attention is products and softmax in one kernel. The last is time that
belongs to no operation: choosing kernels, mostly."""
MEMORY_BOUND = (DEPTHWISE, NORM, MOVE, SOFTMAX, ELEMENTWISE)
"""Kinds that do a few operations for each byte that they read."""

WORDS: Sequence[tuple[str, tuple[str, ...]]] = (
    (ELEMENTWISE, ("convert", "upsample")),  # which hold "conv" and "linear"
    (FUSED, ("attention", "mha")),
    (SOFTMAX, ("softmax",)),
    (NORM, ("norm", "mvn")),
    (PRODUCT, ("conv", "mm", "matmul", "gemm", "fullyconnected", "linear")),
    (MOVE, (
        "reshape", "reorder", "transpose", "permute", "copy", "clone", "contiguous", "concat", "cat", "split", "slice",
        "flatten", "squeeze", "expand", "view", "stack", "chunk", "narrow", "select", "roll", "pad", "gather", "shape",
        "index", "as_strided", "empty", "fill", "zero", "broadcast", "tile", "resize", "resolve", "alias", "unbind",
    )),
    (ELEMENTWISE, (
        "add", "sub", "mul", "div", "pow", "sqrt", "relu", "gelu", "erf", "clip", "clamp", "threshold", "sigmoid",
        "tanh", "exp", "mean", "reduce", "pool", "sum", "max", "min", "cast", "to", "quantize", "math",
        "eltwise", "swish", "silu", "identity", "where", "subgraph",
    )),
)  # fmt: skip
"""What the names of operations hold, in the order in which they are looked for."""


@dataclass(frozen=True)
class PartTime:
    """One kind of operation in one part of the network, over one call."""

    part: str
    """Name of the innermost module, as in `named_modules`; `network` what its own `forward` does, empty what is done to
    the pixels before. What an engine fuses belongs to one of the modules."""
    kind: str
    seconds: float


@dataclass(frozen=True)
class Breakdown:
    """Of one network in one engine."""

    model: str
    """As it was named."""
    engine: str
    batch_size: int
    image_size: int
    spent: tuple[PartTime, ...]

    def seconds(self, kinds: Sequence[str] = KINDS, within: Callable[[str], bool] = lambda part: True) -> float:
        """A call's, of some kinds, in some parts."""
        return sum(row.seconds for row in self.spent if row.kind in kinds and within(row.part))

    def shares(self, within: Callable[[str], bool] = lambda part: True) -> dict[str, float]:
        """Of each kind in the time of these parts; empty where they took none."""
        whole = self.seconds(within=within)
        return {kind: self.seconds([kind], within) / whole for kind in KINDS} if whole else {}

    def memory_bound(self, within: Callable[[str], bool] = lambda part: True) -> float | None:
        """The share of time of what is bound by memory, not by arithmetic; None where nothing was seen."""
        shares = self.shares(within)
        return sum(shares[kind] for kind in MEMORY_BOUND) if shares else None


def able(names: Sequence[str] = ()) -> list[str]:
    """The engines that can be looked into here, or those named. Raises InputError for one that cannot."""
    here = [name for name in PROFILERS if ENGINES[name].unavailable("cpu") is None]
    for name in names:
        if name not in here:
            reason = ENGINES[name].unavailable("cpu") if name in PROFILERS else "its time cannot be looked into"
            raise InputError(f"engine {name!r}: {reason}; here can be looked into {', '.join(here)}")
    return list(names) or here


def breakdown(
    model: ModelFile, engine: str, batch_size: int, threads: int | None = None, name: str | None = None
) -> Breakdown:
    """Run batches of random images of the model's size in fp32 on the CPU, and ask where the time went.

    Args:
        model: A classifier.
        engine: One of `able()`.
        batch_size: Images a call.
        threads: As for `shvit bench`.
        name: Of the model; default: its architecture's.

    Raises:
        InputError: The engine cannot be looked into.
    """
    [engine] = able([engine])
    side = model.preprocess.image_size
    images = torch.randint(0, 256, (batch_size, 3, side, side), dtype=torch.uint8)
    calls = []
    for call in PROFILERS[engine](model, images, threads):
        seen: dict[tuple[str, str], float] = defaultdict(float)
        for part, kind, seconds in call:
            seen[part.removeprefix("network."), kind] += seconds
        calls.append(seen)
    keys = dict.fromkeys(key for seen in calls for key in seen)
    rows = (PartTime(part, kind, median(seen[part, kind] for seen in calls)) for part, kind in keys)
    return Breakdown(
        name or model.architecture.name, engine, batch_size, side, tuple(row for row in rows if row.seconds)
    )


Call = Iterable[tuple[str, str, float]]
"""Part, kind and seconds of each operation."""


@torch.inference_mode()
def _torch(model: ModelFile, images: UInt8[Tensor, "b 3 h w"], threads: int | None) -> Iterator[Call]:
    engine = TorchEngine(model, "fp32", "cpu", threads)
    with ExitStack() as hooks:
        for name, module in engine.network.named_modules():
            if name:
                _record(hooks, module, f"{PART}{name}")
        engine(images)
        for _ in range(CALLS):
            with silent(), profile(activities=[ProfilerActivity.CPU], record_shapes=True) as watched:
                engine(images)
            yield [
                (_part_of(event), _kind_of_aten(event.name, event.input_shapes or []), event.self_cpu_time_total / 1e6)
                for event in watched.events() or ()
                if event.name.startswith("aten::")
            ]


PART = "part:"


def _record(hooks: ExitStack, module: nn.Module, name: str) -> None:
    """The module's calls, and all in them, show up in the profile under this name."""
    running: list[Any] = []

    def enter(*_: Any) -> None:
        running.append(record_function(name))
        running[-1].__enter__()

    def leave(*_: Any) -> None:
        running.pop().__exit__(None, None, None)

    hooks.callback(module.register_forward_pre_hook(enter).remove)
    hooks.callback(module.register_forward_hook(leave, always_call=True).remove)


def _part_of(event: Any) -> str:
    while event is not None and not event.name.startswith(PART):
        event = event.cpu_parent
    return event.name.removeprefix(PART) if event else ""


def _kind_of_aten(name: str, shapes: Sequence[Sequence[int]]) -> str:
    """What only hands over to other operations is the engine's own."""
    bare = name.removeprefix("aten::").lstrip("_")
    if bare in HANDS_OVER:
        return OTHER
    return DEPTHWISE if "conv" in bare and _is_depthwise(shapes) else kind_of(bare)


def _is_depthwise(shapes: Sequence[Sequence[int]]) -> bool:
    """By the shapes of a convolution's images and weights."""
    return len(shapes) > 1 and len(shapes[1]) == 4 and shapes[1][1] == 1 and shapes[1][0] > 1


HANDS_OVER = (
    "conv2d", "convolution", "linear", "matmul", "batch_norm", "group_norm", "layer_norm", "instance_norm", "reshape",
    "contiguous", "to", "scaled_dot_product_attention",
)  # fmt: skip


def _onnx(model: ModelFile, images: UInt8[Tensor, "b 3 h w"], threads: int | None) -> Iterator[Call]:
    with tempfile.TemporaryDirectory() as folder:
        session = OnnxEngine(model, "fp32", "cpu", threads).session(tuple(images.shape), Path(folder) / "profile")
        for _ in range(1 + CALLS):
            session.run(None, {"images": images.numpy()})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    nodes = [event for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")]
    each = len(nodes) // (1 + CALLS)
    parts = {name for name, _ in portable(model).named_modules()}
    for first in range(each, len(nodes), each):  # the first call is left out
        part, call = "", []
        for event in nodes[first : first + each]:
            part = _part_of_onnx(event["name"], parts) or part  # what has no path is there for what comes before it
            operation = event["args"]["op_name"]
            shapes = [shape for one in event["args"].get("input_type_shape", ()) for shape in one.values()]
            kind = DEPTHWISE if "Conv" in operation and _is_depthwise(shapes) else kind_of(operation)
            call.append((part, kind, event["dur"] / 1e6))
        yield call


def _part_of_onnx(node: str, parts: Collection[str]) -> str:
    """The exporter's /network/stem/stem.0/Conv is in network.stem.0: containers are named again by their members."""
    found = ""
    for step in node.removeprefix("fused ").strip("/").split("/"):
        _, _, last = found.rpartition(".")
        ways = [f"{found}.{step}" if found else step, f"{found.removesuffix(last)}{step}"]
        inner = [way for way in ways if way in parts]
        if not inner:
            break
        found = inner[0]
    return found


def _openvino(model: ModelFile, images: UInt8[Tensor, "b 3 h w"], threads: int | None) -> Iterator[Call]:
    compiled = Compiled(build(model, "fp32"), "fp32", threads, PERF_COUNT=True)
    request = compiled.request(tuple(images.shape), channels_last=False)
    running = request.get_compiled_model().get_runtime_model().get_ops()
    made_of = {node.get_friendly_name(): node.get_rt_info()["originalLayersNames"].astype(str) for node in running}
    request.infer([images.numpy()])
    for _ in range(CALLS):
        request.infer([images.numpy()])
        part, call = "", []
        for node in request.profiling_info:
            paths = [path for path in made_of.get(node.node_name, "").split(",") if path.startswith(OF_MODULE)]
            if paths:  # what has none is there for what comes before it
                part = paths[0].partition("/")[0].removeprefix(OF_MODULE)
            call.append((part, _kind_of_openvino(node.node_type, paths), node.real_time.total_seconds()))
        yield call


OF_MODULE = "__module."
"""How OpenVINO's names of operations begin where a module's path follows."""


def _kind_of_openvino(node: str, paths: Sequence[str]) -> str:
    """By the node's type and, of a fused subgraph, by the operations that it was made of."""
    if node == "GroupConvolution":
        return DEPTHWISE
    made_of = {kind_of(path.rpartition("/")[2]) for path in paths} if node == "Subgraph" else set()
    return next((kind for kind in (FUSED, NORM, SOFTMAX) if kind in made_of), kind_of(node))


PROFILERS: dict[str, Callable[[ModelFile, Tensor, int | None], Iterator[Call]]] = {
    "onnx": _onnx,
    "openvino": _openvino,
    "torch": _torch,
}


def kind_of(operation: str) -> str:
    """By an operation's name in any engine."""
    name = operation.lower()
    for kind, words in WORDS:
        if any(word in name for word in words):
            return kind
    return OTHER
