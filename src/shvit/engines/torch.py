"""PyTorch on any device: the fused network in channels_last. Its format is `.pt2`."""

import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.export.passes import move_to_device_pass

from ..errors import Failure, counted, one_line
from ..modelfile import HEADER_KEY
from ..suppress import environment, quiet
from . import pt2
from .base import Engine, ExportJob, Precisions, Runnable, Shapes, in_batches
from .exported import UNSEALED, EngineError, ExpectedSample, Exported, ExportError, check_interface, seal, unreadable
from .portable import portable
from .threads import torch_threads

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
DYNAMIC_SIDES = 65, 8192
"""Minimum and maximum side of images with `--dynamic-size`. For sides up to 64 pixels, the last stage has one row, and
torch.export would treat the number of rows as a constant."""


class TorchEngine(Engine):
    """The reference engine. On GPUs, the network is compiled if Triton is installed."""

    name: ClassVar[str] = "torch"
    suffix: ClassVar[str] = ".pt2"
    concurrent: ClassVar[bool] = True
    many_sizes: ClassVar[bool] = True
    profiled: ClassVar[bool] = True
    runs: ClassVar[Precisions] = {
        None: ("bf16", "fp32", "fp16"),
        **dict.fromkeys(("light", "light_masks", "retinanet"), ("bf16", "fp32", "fp16")),
        "mask_rcnn": ("fp32",),  # in other precisions, rounding would change the proposals
    }
    writes: ClassVar[Precisions] = dict.fromkeys((None, "light", "light_masks", "retinanet"), ("fp32", "bf16"))

    def __init__(self, model: Runnable, precision: str, device: str, threads: int | None = None) -> None:
        self.precision, self.device, self.threads = precision, device, threads
        self.batch: int | None = None
        self.path = model.path if isinstance(model, Exported) else None
        self.how = "operation by operation"
        if isinstance(model, Exported):
            self.network: nn.Module = _loaded(model.path, device)
            self.batch = pt2.shapes(model.path)[0][0]
        else:
            network = portable(model).to(device, DTYPES[precision])
            self.network = network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
            if torch.device(device).type == "cuda" and not no_triton():
                self.network = torch.compile(self.network)  # pyright: ignore[reportAttributeAccessIssue]
                self.how = "compiled"

    @classmethod
    def unavailable(cls, device: str) -> str | None:
        return None

    @classmethod
    def precisions(cls, device: str) -> tuple[str, ...]:
        able = {"fp32": True, "bf16": has_bf16(device), "fp16": torch.device(device).type == "cuda"}
        return tuple(precision for precision in cls.runs[None] if able[precision])

    @classmethod
    def write(cls, job: ExportJob, facts: Exported) -> None:
        from torch._dynamo.exc import UserError  # torch has no public name for it

        network = portable(job.model_file).to(DTYPES[job.precision])
        network = network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        side = facts.preprocess.image_size
        least, _ = DYNAMIC_SIDES
        if job.shapes.dynamic_size and side < least:
            raise EngineError(
                f"{cls.suffix} files with --dynamic-size need at least {least} pixels, but the model has {side}: give "
                f"--image-size {least} or more, or leave out --dynamic-size"
            )
        images = torch.zeros(job.shapes.batch or 2, 3, side, side, dtype=torch.uint8)
        with quiet():
            try:
                program = torch.export.export(network, (images,), dynamic_shapes=(dynamic_dims(job.shapes),))
            except UserError as error:
                reason, name = one_line(error, first=True), job.model_file.architecture.name
                raise ExportError(f"{name} cannot be exported to {job.path} ({reason})") from error
            program.example_inputs = None  # would be stored as a pickle
            whole = io.BytesIO()  # not the file, since torch ends the process if the disk is full
            text = facts.to_json().replace(UNSEALED.decode(), "")
            torch.export.save(program, whole, extra_files={HEADER_KEY: text})
        with zipfile.ZipFile(whole, "a") as archive:
            archive.comment = UNSEALED  # a digest inside a member would change that member's checksum
        job.path.write_bytes(whole.getbuffer())

    @classmethod
    def fill_sample(cls, path: Path, unknown: ExpectedSample, known: ExpectedSample) -> None:
        with zipfile.ZipFile(path) as archive:
            members, comment = {name: archive.read(name) for name in archive.namelist()}, archive.comment
        with zipfile.ZipFile(path, "w") as archive:  # a member cannot be overwritten, because of its checksum
            archive.comment = comment
            for name, content in members.items():
                archive.writestr(name, content.replace(unknown.scores_text, known.scores_text))
        seal(path)

    @classmethod
    def read(cls, path: Path) -> Exported:
        found = pt2.members(path)
        exported = Exported.from_json(path, found[pt2.FACTS])
        check_interface(exported, *pt2.shapes(path))
        return exported

    @torch.inference_mode()
    def __call__(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        try:
            with torch_threads(self.threads), gpu_failures(torch.device(self.device)):
                there = images.to(self.device, memory_format=torch.channels_last)
                return in_batches(self.network, there, self.batch).float().to(images.device)
        except torch.OutOfMemoryError:
            count = counted(len(images), "image")
            raise Failure(f"{self.device} has too little memory for {count} at once") from None
        except RuntimeError as error:
            if self.path is None or isinstance(error, Failure):
                raise
            shape, reason = tuple(images.shape), one_line(error, first=True)
            raise EngineError(f"{self.path} does not run on images of shape {shape}: {reason}") from None


def dynamic_dims(shapes: Shapes) -> dict[int, torch.export.Dim]:
    """The dimensions of (b, 3, h, w) that vary, for torch.export."""
    dims = {} if shapes.batch else {0: torch.export.Dim("batch", min=1, max=65536)}
    if shapes.dynamic_size:
        least, most = DYNAMIC_SIDES
        dims |= {dim: torch.export.Dim(name, min=least, max=most) for dim, name in ((2, "height"), (3, "width"))}
    return dims


def has_bf16(device: str) -> bool:
    """Whether the device has instructions for bf16. Only then is bf16 faster than fp32."""
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return kind == "cpu" and torch.cpu._is_avx512_bf16_supported()  # torch has no public name for this


def no_triton() -> str | None:
    """Why kernels cannot be compiled for a GPU; None if they can."""
    return None if find_spec("triton") else "triton not installed: pip install triton"


@contextmanager
def gpu_failures(device: torch.device) -> Iterator[None]:
    """Turn errors of a GPU into a `Failure`. Out-of-memory errors are raised unchanged."""
    try:
        yield
    except (Failure, torch.OutOfMemoryError):
        raise
    except RuntimeError as error:
        if device.type != "cuda" or "CUDA" not in str(error):
            raise
        reason = one_line(error, first=True)
        raise Failure(f"{device} failed during the computation ({reason}); files written so far are kept") from error


def _loaded(path: Path, device: str) -> nn.Module:
    """Load the network of a `.pt2` file. Raises EngineError if the file may run code, or torch cannot read it."""
    archive = pt2.checked(path)
    with unreadable(path, "cannot be read by torch", Exception):  # torch may raise exceptions of any type
        with quiet(), environment("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1"):
            program = torch.export.load(archive)
        # without guards, which are code from the file; image sizes are still checked
        return move_to_device_pass(program, device).module(check_guards=False)
