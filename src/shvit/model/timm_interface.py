"""timm's model interface, for SHViT: intermediate maps, new classifiers, layer groups, gradient checkpointing."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

from ..errors import InputError, counted
from .layers import NormLinear
from .shapes import Images, Maps, check_images


class TimmInterface(nn.Module):
    """The methods of timm's models that are not part of SHViT itself."""

    __jit_ignored_attributes__: ClassVar = ["architecture", "pretrained_cfg", "default_cfg"]
    __jit_unused_properties__: ClassVar = ["feature_info"]

    architecture: Any = None
    """The `Architecture` that built this network; None if it was built by hand, or pruned."""

    if TYPE_CHECKING:  # torch.jit.script would treat annotated submodules as interfaces
        stem: nn.Sequential
        stages: nn.Sequential
        head: nn.Module
        distillation_head: nn.Module | None
        distilled_training: bool
        """In training, return the logits of both heads instead of their mean."""
        maps: list[tuple[int, int]]
        in_channels: int
        num_classes: int
        num_features: int
        head_hidden_size: int
        global_pool: str
        image_size: int
        pretrained_cfg: dict[str, Any]
        default_cfg: dict[str, Any]

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """Channels, stride and module of each map, in the form that timm's `FeatureInfo` expects."""
        return [
            {"num_chs": channels, "reduction": stride, "module": f"stages.{index}"}
            for index, (channels, stride) in enumerate(self.maps)
        ]

    def described_for_timm(self) -> dict[str, Any]:
        """The `pretrained_cfg` for `timm.data.resolve_model_data_config` and timm's scripts."""
        side = self.image_size
        heads = ("head.linear",) if self.distillation_head is None else ("head.linear", "distillation_head.linear")
        return {
            "num_classes": self.num_classes,
            "input_size": (self.in_channels, side, side),
            "pool_size": (-(-side // self.maps[-1][1]),) * 2,
            "crop_pct": 0.875,
            "interpolation": "bicubic",
            "mean": IMAGENET_DEFAULT_MEAN,
            "std": IMAGENET_DEFAULT_STD,
            "first_conv": "stem.0.conv",
            "classifier": heads[0] if len(heads) == 1 else heads,
            "license": "mit",
        }

    def forward_intermediates(
        self,
        x: Images,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Maps] | tuple[Maps, list[Maps]]:
        """Return the last map, and the maps of the chosen stages.

        Args:
            x: Normalized images.
            indices: Stages, counted from 0, or from the end if negative. An int N means the last N; None means all.
            norm: Has no effect, since SHViT has no norm after its last stage.
            stop_early: Stop after the last chosen stage, and return its map as the last map.
            output_fmt: Only `NCHW`.
            intermediates_only: Return only the chosen maps.

        Raises:
            InputError: The format is not `NCHW`, or the network has no such stage.
        """
        if output_fmt != "NCHW":
            raise InputError(f"output_fmt must be NCHW, got {output_fmt!r}")
        chosen = chosen_stages(indices, len(self.stages))
        check_images(x, self.in_channels)
        x = self.stem(x)
        maps = []
        for stage in self.stages[: max(chosen) + 1] if stop_early else self.stages:
            x = stage(x)
            maps.append(x)
        taken = [maps[index] for index in sorted(set(chosen))]
        return taken if intermediates_only else (x, taken)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove, in place, the classifier and all stages after the last chosen stage.

        `indices` is as in `forward_intermediates`; `prune_norm` has no effect. Returns the chosen stages.
        """
        chosen = chosen_stages(indices, len(self.stages))
        count = max(chosen) + 1
        if pruned := count < len(self.stages):
            self.stages, self.maps = self.stages[:count], self.maps[:count]
            self.num_features = self.head_hidden_size = self.maps[-1][0]
        if pruned or prune_head:
            self.reset_classifier(0, "")
        if pruned:
            self.architecture = None
        return chosen

    def get_classifier(self) -> nn.Module | tuple[nn.Module, nn.Module]:
        """The classifier's linear layer, a pair of layers if distilled, or an identity if there are no classes."""
        head = getattr(self.head, "linear", self.head)
        if self.distillation_head is None:
            return head
        return head, getattr(self.distillation_head, "linear", self.distillation_head)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the heads, in place, with new heads that return `num_classes` logits.

        Args:
            num_classes: 0 removes the heads: the network returns pooled features.
            global_pool: `avg`, or an empty string to return unpooled maps (requires `num_classes=0`). None: no change.

        Raises:
            InputError: The pooling is unknown, or there are classes but no pooling.
        """
        pool = self.global_pool if global_pool is None else global_pool
        check_pool(pool, num_classes)
        weight = next(self.parameters())
        self.global_pool, self.num_classes = pool, num_classes
        self.head = self._fresh_head(weight)
        if self.distillation_head is not None:
            self.distillation_head = self._fresh_head(weight) if num_classes else None
        if self.architecture is not None:
            distilled = self.distillation_head is not None
            self.architecture = replace(self.architecture, num_classes=num_classes, distilled=distilled)

    def _fresh_head(self, like: nn.Parameter) -> nn.Module:
        head = NormLinear(self.num_features, self.num_classes) if self.num_classes else nn.Identity()
        return head.to(like.device, like.dtype).train(self.training)

    def set_distilled_training(self, enable: bool = True) -> None:
        """Choose whether the network returns, in training, the logits of both heads (the default) or their mean.

        Raises:
            InputError: The network has no distillation head.
        """
        if self.distillation_head is None:
            raise InputError("the network has no distillation head: build it with distilled=True")
        self.distilled_training = enable

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks in the backward pass instead of storing their activations: less memory, more time."""
        for stage in self.stages:
            stage.grad_checkpointing = enable  # pyright: ignore[reportArgumentType]

    def no_weight_decay(self) -> set[str]:
        """Empty. timm already excludes one-dimensional parameters from weight decay; SHViT excludes no others."""
        return set()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns for timm's layer-wise learning rates. Groups: stem and blocks; if `coarse`, stem and stages."""
        blocks = [(r"^stages\.(\d+)\.downsample", (0,)), (r"^stages\.(\d+)\.blocks\.(\d+)", None)]
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)" if coarse else blocks}


def check_pool(global_pool: str, num_classes: int) -> None:
    """Raises InputError for an unknown pooling, or for classes without pooling."""
    if global_pool not in ("avg", ""):
        raise InputError(f"global_pool must be 'avg', or '' for maps, got {global_pool!r}")
    if num_classes < 0:
        raise InputError(f"num_classes must be at least 0, got {num_classes}")
    if num_classes and not global_pool:
        raise InputError(
            f"global_pool '' returns maps, which a classifier cannot use: give num_classes=0, not {num_classes}"
        )


def chosen_stages(indices: int | Sequence[int] | None, count: int) -> list[int]:
    """The chosen stages, counted from 0; see `forward_intermediates`. Raises InputError if a stage does not exist."""
    indices = count if indices is None else indices
    given = range(-indices, 0) if isinstance(indices, int) else indices
    chosen = [index + count if index < 0 else index for index in given]
    if not chosen or not all(0 <= index < count for index in chosen):
        raise InputError(f"the network has {counted(count, 'stage')}, numbered from 0; got indices {indices}")
    return chosen
