"""What every engine is: a callable from uint8 images to the task's raw outputs."""

from typing import ClassVar, Protocol

from jaxtyping import Float, UInt8
from torch import Tensor

from ..errors import InputError
from ..modelfile import ModelFile


class EngineError(InputError):
    """An engine or precision that does not exist or cannot run here; the message says what can."""


class Engine(Protocol):
    """Runs one network. Preprocessing beyond resize-and-crop is inside: images come as they were decoded."""

    name: ClassVar[str]
    precision: str

    def __init__(self, model_file: ModelFile, precision: str, device: str, threads: int | None) -> None: ...

    @classmethod
    def unavailable(cls, device: str) -> str | None:
        """Why it cannot run on this device, in a few words; None where it can."""
        ...

    @classmethod
    def precisions(cls, device: str) -> tuple[str, ...]:
        """The precisions it has on this device, the fastest first."""
        ...

    def __call__(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]: ...
