"""Measure the limits of the machine: peak matmul FLOP/s in each precision, and memory bandwidth.

The fraction of the peak that a network reaches is `2 * MACs * images/s` divided by the peak FLOP/s. The peak is the
highest speed of any available library call, both on matrices that fit into the caches and on larger matrices. The
result names the fastest call, which depends on the processor.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor

from ..engines.threads import torch_threads
from ..suppress import unwarned

CPU_SIDES = (128, 256, 512, 1024, 2048)
GPU_SIDES = (1024, 2048, 4096, 8192)
CACHE_BYTES, MEMORY_BYTES = 2**17, 2**28
REPEAT_SECONDS = 0.1
"""Time spent on each library call and size. Sizes at which one call takes over four times this time are skipped."""

TimedCall = Callable[[], object]


@dataclass(frozen=True)
class Product:
    """The fastest matrix product in a precision."""

    rate: float
    """FLOP/s, counting a multiply-accumulate as two operations."""
    side: int
    """Side of the square matrices."""
    by: str
    """Name of the library call."""


@dataclass(frozen=True)
class Machine:
    """The measurements of a machine."""

    products: dict[str, Product]
    """The fastest matrix product of each precision."""
    copy_cache: float
    """Bytes/s of a copy that fits into the caches, counting bytes read and bytes written."""
    copy_memory: float
    """Bytes/s of a copy that does not fit into the caches, counted in the same way."""

    def share(self, precision: str, operations: float) -> float | None:
        """Operations/s as a fraction of the peak. None if the peak of this precision was not measured."""
        product = self.products.get(precision)
        return operations / product.rate if product else None


def measure_machine(threads: int | None, device: str) -> Machine:
    """Measure peak FLOP/s and bandwidth in a few seconds. On CUDA, `fp32` uses TF32 if torch's convolutions do.

    `threads` is the number of CPU threads. None: torch's default.
    """
    sides = CPU_SIDES if device == "cpu" else GPU_SIDES
    products: dict[str, Product] = {}
    with _settings(threads):
        for precision, by, make in _products(threads, device):
            for side in sides:
                seconds = _best(make(side), device)
                product = Product(2 * side**3 / seconds, side, by)
                if precision not in products or product.rate > products[precision].rate:
                    products[precision] = product
                if 8 * seconds > 4 * REPEAT_SECONDS:  # a matrix of twice the side takes eight times the work
                    break
        copies = [_copy(size, device) for size in (CACHE_BYTES, MEMORY_BYTES)]
    return Machine(products, *copies)


def _products(threads: int | None, device: str) -> Iterator[tuple[str, str, Callable[[int], TimedCall]]]:
    """For each product of square matrices, yield its precision, the name of the library call, and a factory."""

    def of(dtype: torch.dtype, product: Callable[[Tensor, Tensor], Tensor]) -> Callable[[int], TimedCall]:
        def make(side: int) -> TimedCall:
            a, b = (torch.randint(-9, 9, (side, side)).to(device, dtype) for _ in range(2))
            return lambda: product(a, b)

        return make

    yield "fp32", "torch.mm", of(torch.float32, torch.mm)
    yield "bf16", "torch.mm", of(torch.bfloat16, torch.mm)
    if device != "cpu":
        yield "fp16", "torch.mm", of(torch.float16, torch.mm)
    if not device.startswith("mps"):
        yield "int8", "torch._int_mm", of(torch.int8, torch._int_mm)  # torch has no public name for this
    if device == "cpu" and find_spec("onnx") and find_spec("onnxruntime"):
        yield "int8", "onnxruntime MatMulInteger", lambda side: _matmul_integer(side, threads)


def _matmul_integer(side: int, threads: int | None) -> TimedCall:
    """ONNX Runtime's product of a uint8 and an int8 matrix. This product is fast even without VNNI."""
    import numpy as np
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    shape, random = [side, side], np.random.default_rng(0)
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["a", "b"], ["c"])],
        "product",
        [helper.make_tensor_value_info("a", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info("c", TensorProto.INT32, shape)],
        [numpy_helper.from_array(random.integers(-9, 9, shape, np.int8), "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    a = random.integers(0, 9, shape, np.uint8)
    return lambda: session.run(None, {"a": a})


def _copy(size: int, device: str) -> float:
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / _best(lambda: target.copy_(source), device)


def _best(call: TimedCall, device: str) -> float:
    """Seconds of the fastest of several calls."""
    best, end = float("inf"), time.perf_counter() + REPEAT_SECONDS
    call()
    while best == float("inf") or time.perf_counter() < end:
        synchronize(device)
        before = time.perf_counter()
        call()
        synchronize(device)
        best = min(best, time.perf_counter() - before)
    return best


def synchronize(device: str) -> None:
    """Wait until the device has finished its work."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    elif device.startswith("mps"):
        torch.mps.synchronize()


@contextmanager
def _settings(threads: int | None) -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    try:
        with torch_threads(threads), torch.inference_mode(), unwarned():
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
