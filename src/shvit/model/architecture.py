"""The architecture of a network, as a name or as plain data, and the network built from it."""

import difflib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import entry_points
from typing import Any

from ..errors import InputError
from ..header import MAX_CLASSES
from .config import MAX_WIDTH, VARIANTS, Config, Stage
from .detector import LAYOUTS, Detector
from .light import LightDetector
from .light_masks import LightMaskDetector
from .mask_rcnn import MaskRCNN
from .retinanet import RetinaNet
from .shvit import Mixer, SHViT, SingleHeadAttention
from .timm_model import TimmModel, named_arguments

TIMM_PREFIX = "timm/"
FAMILIES = "shvit.networks"
"""Entry point group in which installed packages register networks named FAMILY/NAME."""
Family = Callable[[str], tuple[Config, Mixer]]
"""Function from NAME to the sizes and token mixer of an SHViT. Raises InputError for an unknown name."""
Model = SHViT | TimmModel | Detector
MAX_NAME = 1000
DETECTORS: dict[str, type[Detector]] = {
    "light": LightDetector,
    "light_masks": LightMaskDetector,
    "retinanet": RetinaNet,
    "mask_rcnn": MaskRCNN,
}


@dataclass(frozen=True)
class Architecture:
    """Everything needed to build a network, except its weights.

    Raises:
        InputError: A field is invalid. Or `config` is not given, and the name is not a variant, `timm/NAME` or
            `FAMILY/NAME`.
    """

    name: str
    num_classes: int = 1000
    """With 0, there is no classifier: the network returns pooled features."""
    in_channels: int = 3
    distilled: bool = False
    config: Config | None = None
    """The sizes. If they are not given, they are looked up by name. Always None for timm's models."""
    detector: str | None = None
    """Kind of detector (a key of `DETECTORS`) with this network as backbone; None for a classifier."""
    layout: str = "torchvision"
    """Variant of a detector: `torchvision` (as in torchvision) or `paper` (as in the authors' code)."""

    def __post_init__(self) -> None:
        kinds = {"name": str, "num_classes": int, "in_channels": int, "distilled": bool, "layout": str}
        for field, kind in kinds.items():
            if type(value := getattr(self, field)) is not kind:
                raise InputError(f"{field} of a network must be of type {kind.__name__}, got {value!r:.60}")
        if self.num_classes > MAX_CLASSES or self.in_channels > MAX_WIDTH or len(self.name) > MAX_NAME:
            raise InputError(
                f"a network has at most {MAX_CLASSES:,} classes, {MAX_WIDTH:,} channels and a name of {MAX_NAME} "
                f"characters, got {self.num_classes}, {self.in_channels} and {self.name:.60}"
            )
        least = 0 if self.detector is None else 1
        if self.num_classes < least or self.in_channels < 1:
            raise InputError(f"num_classes must be at least {least} and in_channels at least 1, got {self}")
        if self.distilled and not self.num_classes:
            raise InputError("a distillation head needs classes: give num_classes of at least 1, or distilled=False")
        if self.detector is not None and (self.detector not in DETECTORS or self.distilled):
            raise InputError(f"detector must be one of {', '.join(DETECTORS)}, with distilled=False; got {self}")
        if self.layout not in LAYOUTS:
            raise InputError(f"layout of a detector must be one of {', '.join(LAYOUTS)}, got {self.layout!r}")
        if self.name.startswith(TIMM_PREFIX):
            named_arguments(self.name.removeprefix(TIMM_PREFIX))
            if self.config is not None:
                raise InputError(f"timm's models define their sizes: give config=None, not {self.config}")
            if self.distilled:
                raise InputError(f"only SHViT can have a distillation head, not {self.name}: give distilled=False")
        elif self.config is None:
            config = _of_family(self.name)[0] if "/" in self.name else variant_config(self.name)
            object.__setattr__(self, "config", config)

    def build(self, drop_path_rate: float = 0.0) -> Model:
        """Build the network with random weights. The network's attribute `architecture` holds this description.

        `drop_path_rate` (stochastic depth) affects only training, so it is not part of the description.
        Raises InputError if `drop_path_rate` is outside [0, 1), or if timm's model does not support stochastic depth.
        """
        if not 0 <= drop_path_rate < 1:
            raise InputError(f"drop_path_rate must be at least 0 and below 1, got {drop_path_rate}")
        logits = 0 if self.detector else self.num_classes
        if self.config is None:
            model = TimmModel(self.name.removeprefix(TIMM_PREFIX), logits, self.in_channels, drop_path_rate)
        else:
            mixer = _of_family(self.name)[1] if "/" in self.name else SingleHeadAttention
            model = SHViT(self.config, logits, self.in_channels, self.distilled, mixer, drop_path_rate)
        if self.detector:
            model = DETECTORS[self.detector](model, self.num_classes, self.layout)
        model.architecture = self
        return model

    def to_dict(self) -> dict[str, Any]:
        """The description as plain data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Architecture":
        """Inverse of `to_dict`. Raises InputError for missing, unknown or invalid entries."""
        try:
            config = data["config"]
            if config is not None:
                config = Config(**{**config, "stages": tuple(Stage(**stage) for stage in config["stages"])})
            return cls(**{**data, "config": config})
        except (TypeError, KeyError) as error:
            raise InputError(f"not a description of a network: {error}") from None


def variant_config(name: str) -> Config:
    """The sizes of a variant. Raises InputError for an unknown name; the message suggests the closest name."""
    if name in VARIANTS:
        return VARIANTS[name]
    near = difflib.get_close_matches(name, VARIANTS, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise InputError(f"unknown model {name!r}: allowed are {', '.join(VARIANTS)} and {TIMM_PREFIX}NAME{hint}")


def is_network(name: str) -> bool:
    """Whether this is the name of a network (a variant, `timm/NAME` or `FAMILY/NAME`), not the name of a file."""
    if name.endswith(".safetensors"):
        return False
    return name in VARIANTS or name.startswith(TIMM_PREFIX) or name.partition("/")[0] in _families()


def _of_family(name: str) -> tuple[Config, Mixer]:
    """Sizes and mixer of `FAMILY/NAME`. Raises InputError if no installed package registers the family."""
    prefix, _, rest = name.partition("/")
    families = _families()
    if prefix not in families:
        names = [*VARIANTS, f"{TIMM_PREFIX}NAME", *(f"{family}/NAME" for family in families)]
        raise InputError(f"unknown model {name!r}: allowed are {', '.join(names)}")
    return families[prefix]()(rest)


def _families() -> dict[str, Callable[[], Family]]:
    """The families that installed packages register. Maps the name of a family to a function that imports it."""
    return {point.name: point.load for point in entry_points(group=FAMILIES)}


def list_models() -> list[str]:
    """Names of the variants of SHViT. `create_model` also accepts any `timm/NAME`."""
    return list(VARIANTS)
