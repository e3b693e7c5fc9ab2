"""From a name to a network, and back to plain data that a file can hold."""

import difflib
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import InputError
from .config import VARIANTS, Config, Stage
from .detector import Detector
from .mask_rcnn import MaskRCNN
from .peer import TimmModel
from .retinanet import RetinaNet
from .shvit import SHViT

TIMM_PREFIX = "timm/"
Model = SHViT | TimmModel | Detector
DETECTORS: dict[str, type[Detector]] = {"retinanet": RetinaNet, "mask_rcnn": MaskRCNN}


@dataclass(frozen=True)
class Architecture:
    """Everything needed to build a network, but its weights.

    Raises:
        InputError: The name is neither a variant nor `timm/NAME` and no sizes are given, or a size is impossible.
    """

    name: str
    num_classes: int = 1000
    in_channels: int = 3
    distilled: bool = False
    config: Config | None = None
    """The sizes; filled in from the table for the named variants, always None for timm's models."""
    detector: str | None = None
    """`retinanet` or `mask_rcnn`, whose backbone this then is; None: a classifier."""

    def __post_init__(self) -> None:
        if self.num_classes < 1 or self.in_channels < 1:
            raise InputError(f"num_classes and in_channels must be at least 1, got {self}")
        if self.detector is not None and (self.detector not in DETECTORS or self.distilled):
            allowed = ", ".join(DETECTORS)
            raise InputError(f"a detector is one of {allowed}, without distillation head; got {self}")
        if self.name.startswith(TIMM_PREFIX):
            if self.distilled:
                raise InputError(f"only shvit's own variants have a distillation head, {self.name} has none")
        elif self.config is None:
            object.__setattr__(self, "config", variant_config(self.name))

    def build(self) -> Model:
        """The network with fresh weights; it carries this description as `.architecture`."""
        logits = 0 if self.detector else self.num_classes
        if self.config is None:
            model = TimmModel(self.name.removeprefix(TIMM_PREFIX), logits, self.in_channels)
        else:
            model = SHViT(self.config, logits, self.in_channels, self.distilled)
        if self.detector:
            model = DETECTORS[self.detector](model, self.num_classes)
        model.architecture = self
        return model

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Architecture":
        """Inverse of `to_dict`. Raises InputError for missing, unknown or impossible entries."""
        try:
            config = data["config"]
            if config is not None:
                config = Config(tuple(Stage(**stage) for stage in config["stages"]), config["image_size"])
            return cls(**{**data, "config": config})
        except (TypeError, KeyError) as error:
            raise InputError(f"not a description of a network: {error}") from None


def variant_config(name: str) -> Config:
    """The row of the table. Raises InputError naming what is allowed, and the nearest, for an unknown name."""
    if name in VARIANTS:
        return VARIANTS[name]
    near = difflib.get_close_matches(name, VARIANTS, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise InputError(f"unknown model {name!r}: allowed are {', '.join(VARIANTS)} and {TIMM_PREFIX}NAME{hint}")


def list_models() -> list[str]:
    """Names of the networks defined here; any `timm/NAME` is taken too."""
    return list(VARIANTS)
