"""SHViT: real-time vision models for the hardware you have.

Names are imported on first use, so that `import shvit` is fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import engines, pretrained
    from .errors import Failure, InputError
    from .model.architecture import list_models
    from .model.fuse import FuseError, fuse
    from .modelfile import ModelFile, save
    from .predict.predictor import Prediction, Predictor
    from .pretrained import create_model, load

_HOMES = {
    "errors": ("Failure", "InputError"),
    "model.architecture": ("list_models",),
    "model.fuse": ("FuseError", "fuse"),
    "modelfile": ("ModelFile", "save"),
    "predict.predictor": ("Prediction", "Predictor"),
    "pretrained": ("create_model", "load"),
}

__all__ = [
    "Failure",
    "FuseError",
    "InputError",
    "ModelFile",
    "Prediction",
    "Predictor",
    "create_model",
    "engines",
    "fuse",
    "list_models",
    "load",
    "pretrained",
    "save",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = next((home for home, names in _HOMES.items() if name in names), None)
    value = getattr(import_module(f".{home}", __name__), name) if home else import_module(f".{name}", __name__)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
