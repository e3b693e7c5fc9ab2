"""ExecuTorch, for phones and small boards: one `.pte` file, run by XNNPACK on the CPU in fp32 or int8."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
from .base import Accept, Engine, Precisions, Runnable, Shapes, in_batches, need_calibration
from .decompose import XNNPACK
from .exported import EngineError, Exported, check_ends, described, seal
from .portable import portable

_runs = RLock()
"""Held while the thread pool is used or replaced."""


class ExecuTorchEngine(Engine):
    """Runs a `.pte` file. A model file is first lowered to one in memory, which takes some seconds.

    XNNPACK has one thread pool for the whole process, and a program only works with the pool it was loaded with. So one
    engine runs at a time, and an engine with another number of threads than the last one creates a new pool and loads
    its program again, which takes milliseconds.
    """

    name: ClassVar[str] = "executorch"
    suffix: ClassVar[str] = ".pte"
    extra: ClassVar[str | None] = "executorch"
    modules: ClassVar[tuple[str, ...]] = ("executorch",)
    runs: ClassVar[Precisions] = {None: ("fp32",), "retinanet": ("fp32",)}
    writes: ClassVar[Precisions] = {None: ("fp32", "int8"), "retinanet": ("fp32",)}

    _pools: ClassVar[int] = 0
    """Pools created so far. A program that was loaded with an earlier pool must not run."""

    def __init__(self, model: Runnable, precision: str, device: str, threads: int | None = None) -> None:
        self.precision = precision
        with _runs:
            default = _default_threads()  # read once, before an engine changes it
        self.threads = threads or default
        self.path = model.path if isinstance(model, Exported) else Path("in memory")
        if isinstance(model, Exported):
            self._file = model.path.read_bytes()
        else:
            self._file = _lower(model, described(model, self.path, self.name, precision))
        self._load()

    @classmethod
    def export(
        cls,
        model_file: ModelFile,
        path: Path,
        precision: str,
        shapes: Shapes,
        calibration: Sequence[Tensor] = (),
        accept: Accept | None = None,
        threads: int | None = None,
    ) -> None:
        """Write a file for `shapes.batch` images at once (default 1), since XNNPACK needs constant shapes."""
        cls.check_writes(precision)
        if shapes.dynamic_size:
            raise EngineError(f"{cls.suffix} files take images of one size only")
        if precision == "int8":
            need_calibration(calibration)
        facts = described(model_file, path, cls.name, precision)
        path.write_bytes(_lower(model_file, facts, shapes.batch or 1, calibration))
        seal(path)

    @classmethod
    def read(cls, path: Path) -> Exported:
        runtime = _runtime()
        with _reading(path):
            program = runtime.load_program(path.read_bytes())
            if HEADER_KEY not in program.method_names:
                raise EngineError(f"{path} was not written by shvit export")
            [facts] = program.load_method(HEADER_KEY).execute([])
            ends = program.metadata("forward")
            shapes = [list(end.sizes()) for end in (ends.input_tensor_meta(0), ends.output_tensor_meta(0))]
        exported = Exported.from_json(path, facts)
        check_ends(exported, *shapes)
        return exported

    def __call__(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        with _runs:
            if self._pool != ExecuTorchEngine._pools:
                self._load()
            return in_batches(lambda batch: self._method.execute([batch.contiguous()])[0], images, self._batch)

    def _load(self) -> None:
        runtime, pool = _runtime(), _pool()
        with _reading(self.path):
            if pool._threadpool_get_thread_count() != self.threads:
                pool._unsafe_reset_threadpool(self.threads)
                ExecuTorchEngine._pools += 1
            self._method = runtime.load_program(self._file).load_method("forward")
            self._pool = ExecuTorchEngine._pools
        self._batch = self._method.metadata.input_tensor_meta(0).sizes()[0]


def _runtime() -> Any:
    """The runtime, which loads programs. The bytes that a program was loaded from must live as long as the program."""
    with quiet():
        from executorch.runtime import Runtime
    return Runtime.get()


def _pool() -> Any:
    """The module that controls the thread pool."""
    with quiet():
        from executorch.extension.pybindings import portable_lib
    return portable_lib


@cache
def _default_threads() -> int:
    pool = _pool()
    with silent():
        return pool._threadpool_get_thread_count()


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn the runtime's errors into a one-line EngineError."""
    try:
        with _runs, silent():
            yield
    except RuntimeError as error:
        raise EngineError(f"{path} is truncated, damaged or not a .pte file ({error})") from None


def _lower(model_file: ModelFile, facts: Exported, batch: int = 1, calibration: Sequence[Tensor] = ()) -> bytes:
    """The bytes of a `.pte` file with these facts, in their precision."""
    side = model_file.preprocess.image_size
    images = torch.zeros(batch, 3, side, side, dtype=torch.uint8)
    with quiet():
        program = torch.export.export(portable(model_file), (images,)).run_decompositions(XNNPACK)
        if facts.precision == "int8":
            program = _quantize(program, images, torch.cat(list(calibration)))
        return delegate(program, {HEADER_KEY: facts.to_json()}).to_executorch().buffer


def delegate(program: ExportedProgram, constants: dict[str, Any]) -> Any:
    """Delegate to XNNPACK what it can run. Returns an `EdgeProgramManager`; `constants` become methods."""
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
    """Quantise weights per output channel and activations to the ranges measured on these images."""
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    observed = prepare_pt2e(program.module(), quantizer)
    batch = len(example)
    for start in range(0, len(images), batch):
        observed(images[torch.arange(start, start + batch) % len(images)])  # the first images fill the last batch
    return torch.export.export(convert_pt2e(observed), (example,))
