"""ExecuTorch, for phones and small boards: one `.pte` file, run by XNNPACK on the CPU in fp32 or int8."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from threading import RLock
from typing import Any, ClassVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.export import ExportedProgram

from ..modelfile import HEADER_KEY, ModelFile
from ..suppress import quiet, silent
from .base import Engine, ExportJob, Precisions, Runnable, in_batches
from .decompose import XNNPACK
from .exported import EngineError, Exported, check_interface, described, unreadable
from .portable import portable

_runs = RLock()
"""A thread holds this lock while it uses or replaces the thread pool."""
DAMAGED = "is truncated, damaged or not a .pte file"


class ExecuTorchEngine(Engine):
    """Runs a `.pte` file. A model file is first lowered to a `.pte` file in memory, which takes some seconds.

    XNNPACK has one thread pool for the whole process, and a program works only with the pool that existed when the
    program was loaded. Therefore, only one engine runs at a time. If the previous engine used a different number of
    threads, a new pool is created and the program is loaded again. This takes milliseconds.
    """

    name: ClassVar[str] = "executorch"
    suffix: ClassVar[str] = ".pte"
    extra: ClassVar[str | None] = "executorch"
    modules: ClassVar[tuple[str, ...]] = ("executorch",)
    runs: ClassVar[Precisions] = dict.fromkeys((None, "light", "light_masks", "retinanet"), ("fp32",))
    writes: ClassVar[Precisions] = {
        None: ("fp32", "int8"),
        **dict.fromkeys(("light", "light_masks", "retinanet"), ("fp32",)),
    }

    _pools: ClassVar[int] = 0
    """Number of pools created so far. A program that was loaded with an earlier pool must not run."""

    def __init__(self, model: Runnable, precision: str, device: str, threads: int | None = None) -> None:
        self.precision = precision
        with _runs:
            default = _default_threads()  # read once, before an engine changes it
        self.threads = threads or default
        if isinstance(model, Exported):
            self.path, self._file = model.path, model.path.read_bytes()
        else:
            self.path = Path("in memory")
            self._file = _lower(model, described(model, self.path, self.name, precision))
        self._load()

    @classmethod
    def write(cls, job: ExportJob, facts: Exported) -> None:
        """Write a file that takes exactly `shapes.batch` images per call (default 1). XNNPACK needs constant shapes."""
        if job.shapes.dynamic_size:
            raise EngineError(f"{cls.suffix} files take images of one size only: leave out --dynamic-size")
        job.path.write_bytes(_lower(job.model_file, facts, job.shapes.batch or 1, job.calibration))

    @classmethod
    def read(cls, path: Path) -> Exported:
        runtime, _ = _executorch()
        with _runs, silent(), unreadable(path, DAMAGED, RuntimeError):
            program = runtime.load_program(path.read_bytes())
            facts = program.load_method(HEADER_KEY).execute([])[0] if HEADER_KEY in program.method_names else None
            exported = Exported.from_json(path, facts)
            ends = program.metadata("forward")
            check_interface(exported, ends.input_tensor_meta(0).sizes(), ends.output_tensor_meta(0).sizes())
        return exported

    def __call__(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        with _runs:
            if self._pool != ExecuTorchEngine._pools:
                self._load()
            return in_batches(lambda batch: self._method.execute([batch.contiguous()])[0], images, self._batch)

    def _load(self) -> None:
        runtime, pool = _executorch()
        with _runs, silent(), unreadable(self.path, DAMAGED, RuntimeError):
            if pool._threadpool_get_thread_count() != self.threads:
                pool._unsafe_reset_threadpool(self.threads)
                ExecuTorchEngine._pools += 1
            # the bytes that a program was loaded from must live as long as the program
            self._method = runtime.load_program(self._file).load_method("forward")
            self._pool = ExecuTorchEngine._pools
        self._batch = self._method.metadata.input_tensor_meta(0).sizes()[0]


def _executorch() -> tuple[Any, Any]:
    """Return the runtime (it loads programs) and the module that controls the thread pool."""
    with quiet():
        from executorch.extension.pybindings import portable_lib
        from executorch.runtime import Runtime
    return Runtime.get(), portable_lib


@cache
def _default_threads() -> int:
    _, pool = _executorch()
    with silent():
        return pool._threadpool_get_thread_count()


def _lower(model_file: ModelFile, facts: Exported, batch: int = 1, calibration: Sequence[Tensor] = ()) -> bytes:
    """The bytes of a `.pte` file. `facts` are the metadata of the file, and name the precision to use."""
    side = model_file.preprocess.image_size
    images = torch.zeros(batch, 3, side, side, dtype=torch.uint8)
    with quiet():
        program = torch.export.export(portable(model_file), (images,)).run_decompositions(XNNPACK)
        if facts.precision == "int8":
            program = _quantize(program, images, torch.cat(list(calibration)))
        return delegate(program, {HEADER_KEY: facts.to_json()}).to_executorch().buffer


def delegate(program: ExportedProgram, constants: dict[str, Any]) -> Any:
    """Let XNNPACK run the operations that it supports. Returns an `EdgeProgramManager` with `constants` as methods."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.backends.xnnpack.utils.configs import get_transform_passes
    from executorch.exir import to_edge_transform_and_lower

    return to_edge_transform_and_lower(
        program,
        transform_passes=get_transform_passes(),
        partitioner=[XnnpackPartitioner()],
        constant_methods=constants,
    )


def _quantize(
    program: ExportedProgram, example: UInt8[Tensor, "b 3 h w"], images: UInt8[Tensor, "n 3 h w"]
) -> ExportedProgram:
    """Quantize the weights of each output channel, and the activations with the ranges measured on these images."""
    from executorch.backends.xnnpack.quantizer import xnnpack_quantizer as xnnpack
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    per_channel = xnnpack.get_symmetric_quantization_config(is_per_channel=True)
    quantizer = xnnpack.XNNPACKQuantizer().set_global(per_channel)
    observed = prepare_pt2e(program.module(), quantizer)
    batch = len(example)
    for start in range(0, len(images), batch):
        observed(images[torch.arange(start, start + batch) % len(images)])  # fills the last batch with the first images
    return torch.export.export(convert_pt2e(observed), (example,))
