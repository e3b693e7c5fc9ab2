"""Time each operation of a network in fp32 on the CPU, with the profiler of the engine that runs the network."""

import json
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function

from ..modelfile import ModelFile
from ..suppress import silent
from .onnx import OnnxEngine
from .openvino import build
from .openvino_runtime import CompiledNetwork
from .portable import portable
from .torch import TorchEngine

CALLS = 10
"""Number of profiled calls, after one warm-up call."""
PART = "part:"
"""Prefix of module names in PyTorch's profile."""
MODULE = "__module."
"""Prefix of operation names in OpenVINO. The module's path follows it."""
DISPATCHERS = (
    "conv2d", "convolution", "linear", "matmul", "batch_norm", "group_norm", "layer_norm", "instance_norm", "reshape",
    "contiguous", "to", "scaled_dot_product_attention",
)  # fmt: skip
"""PyTorch operations that only call other operations."""


@dataclass(frozen=True)
class Operation:
    """One operation that ran during a call of a network."""

    part: str
    """Name of the innermost module that contains the operation, as in `named_modules`."""
    name: str
    """The engine's name for this type of operation."""
    seconds: float
    depthwise: bool = False
    """Whether the operation is a depthwise convolution."""
    overhead: bool = False
    """Whether the operation only calls other operations."""
    fused: tuple[str, ...] = ()
    """Names of the operations that were fused into this one."""


Call = list[Operation]


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
            yield [_torch_operation(event) for event in watched.events() or () if event.name.startswith("aten::")]


def _torch_operation(event: Any) -> Operation:
    name = event.name.removeprefix("aten::").lstrip("_")
    depthwise = "conv" in name and _is_depthwise(event.input_shapes or [])
    return Operation(_part_of(event), name, event.self_cpu_time_total / 1e6, depthwise, name in DISPATCHERS)


def _record(hooks: ExitStack, module: nn.Module, name: str) -> None:
    """Group the module's operations under this name in the profile."""
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


def _is_depthwise(shapes: Sequence[Sequence[int]]) -> bool:
    """Whether a convolution with these input and weight shapes is depthwise."""
    return len(shapes) > 1 and len(shapes[1]) == 4 and shapes[1][1] == 1 and shapes[1][0] > 1


def _onnx(model: ModelFile, images: UInt8[Tensor, "b 3 h w"], threads: int | None) -> Iterator[Call]:
    with tempfile.TemporaryDirectory() as folder:
        session = OnnxEngine(model, "fp32", "cpu", threads).network.session(
            tuple(images.shape), Path(folder) / "profile"
        )
        for _ in range(1 + CALLS):
            session.run(None, {"images": images.numpy()})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    nodes = [event for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")]
    each = len(nodes) // (1 + CALLS)
    parts = {name for name, _ in portable(model).named_modules()}
    for first in range(each, len(nodes), each):  # skips the warm-up call
        part, call = "", []
        for event in nodes[first : first + each]:
            part = _part_of_onnx(event["name"], parts) or part  # no path: same module as the node before
            name = event["args"]["op_name"]
            shapes = [shape for one in event["args"].get("input_type_shape", ()) for shape in one.values()]
            call.append(Operation(part, name, event["dur"] / 1e6, "Conv" in name and _is_depthwise(shapes)))
        yield call


def _part_of_onnx(node: str, parts: Collection[str]) -> str:
    """The module of a node. Node names repeat container names: /network/stem/stem.0/Conv is in network.stem.0."""
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
    compiled = CompiledNetwork(build(model, "fp32"), "fp32", threads, PERF_COUNT=True)
    request = compiled.request(tuple(images.shape), channels_last=False)
    running = request.get_compiled_model().get_runtime_model().get_ops()
    origins = {node.get_friendly_name(): node.get_rt_info()["originalLayersNames"].astype(str) for node in running}
    request.infer([images.numpy()])
    for _ in range(CALLS):
        request.infer([images.numpy()])
        part, call = "", []
        for node in request.profiling_info:
            paths = [path for path in origins.get(node.node_name, "").split(",") if path.startswith(MODULE)]
            if paths:  # otherwise, the node belongs to the module of the node before
                part = paths[0].partition("/")[0].removeprefix(MODULE)
            name, seconds = node.node_type, node.real_time.total_seconds()
            fused = tuple(path.rpartition("/")[2] for path in paths) if name == "Subgraph" else ()
            call.append(Operation(part, name, seconds, name == "GroupConvolution", fused=fused))
        yield call


PROFILERS: dict[str, Callable[[ModelFile, Tensor, int | None], Iterator[Call]]] = {
    "onnx": _onnx,
    "openvino": _openvino,
    "torch": _torch,
}
"""Profilers by engine. Each runs a model several times on images, and yields the operations of each call."""
