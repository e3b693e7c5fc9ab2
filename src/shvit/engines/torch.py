"""PyTorch, on any device it has: the network folded, in channels_last, in fp32 or bf16. Its format is `.pt2`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from ..modelfile import HEADER_KEY, ModelFile
from .base import EngineError, Exported, Runnable, Shapes, described
from .portable import portable

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
MIN_SIDE, MAX_SIDE = 32, 8192


class TorchEngine:
    """The reference engine."""

    name: ClassVar[str] = "torch"
    suffix: ClassVar[str] = ".pt2"
    extra: ClassVar[str | None] = None

    def __init__(self, model: Runnable, precision: str, device: str, threads: int | None = None) -> None:
        self.precision = precision
        self.threads = threads
        self.device = device
        if isinstance(model, Exported):
            self.network: nn.Module = torch.export.load(model.path).module().to(device)
        else:
            network = portable(model).to(device, DTYPES[precision])
            self.network = network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    @classmethod
    def absent(cls) -> str | None:
        return None

    @classmethod
    def unavailable(cls, device: str) -> str | None:
        return None

    @classmethod
    def precisions(cls, device: str) -> tuple[str, ...]:
        return ("bf16", "fp32") if has_bf16(device) else ("fp32",)

    @classmethod
    def exports(cls) -> tuple[str, ...]:
        return ("fp32", "bf16")

    @classmethod
    def export(
        cls, model_file: ModelFile, path: Path, precision: str, shapes: Shapes, calibration: Sequence[Tensor] = ()
    ) -> None:
        network = portable(model_file).to(DTYPES[precision]).to(memory_format=torch.channels_last)  # pyright: ignore
        side = model_file.preprocess.image_size
        images = torch.zeros(shapes.batch or 2, 3, side, side, dtype=torch.uint8)
        program = torch.export.export(network, (images,), dynamic_shapes=(dynamic_dims(shapes),))
        facts = described(model_file, path, cls.name, precision).to_dict()
        torch.export.save(program, path, extra_files={HEADER_KEY: json.dumps(facts)})

    @classmethod
    def read(cls, path: Path) -> Exported:
        files = {HEADER_KEY: ""}
        try:
            torch.export.load(path, extra_files=files)
        except (RuntimeError, ValueError, OSError, KeyError) as error:
            raise EngineError(f"{path} is no usable .pt2 file ({error})") from None
        if not files[HEADER_KEY]:
            raise EngineError(f"{path} was not written by shvit export")
        return Exported.from_dict(path, json.loads(files[HEADER_KEY]))

    @torch.inference_mode()
    def __call__(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        before = torch.get_num_threads()
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        try:
            images = images.to(self.device, memory_format=torch.channels_last)
            return self.network(images).float().cpu()
        finally:
            torch.set_num_threads(before)


def dynamic_dims(shapes: Shapes) -> dict[int, torch.export.Dim]:
    """For torch.export: the dimensions of (b, 3, h, w) that may vary."""
    dims = {} if shapes.batch else {0: torch.export.Dim("batch", min=1, max=65536)}
    if shapes.dynamic_size:
        dims |= {2: torch.export.Dim("height", min=MIN_SIDE, max=MAX_SIDE)}
        dims |= {3: torch.export.Dim("width", min=MIN_SIDE, max=MAX_SIDE)}
    return dims


def has_bf16(device: str) -> bool:
    """Whether the device computes in bf16 by its own instructions, so that bf16 is faster than fp32."""
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return kind == "cpu" and torch.cpu._is_avx512_bf16_supported()  # torch has no public name for this
