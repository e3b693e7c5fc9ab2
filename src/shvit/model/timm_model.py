"""timm's models with the interface of SHViT, for comparisons, as teachers and as backbones."""

import ast
import re
from collections import Counter
from types import NoneType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..errors import InputError, one_line
from .config import MAX_DEPTH, MAX_WIDTH

DEPTHS = {"depth", "depths", "layers", "num_blocks", "num_layers", "num_stages", "stem_layers", "expand_ratio"}
ARGUMENTS = DEPTHS | {
    *("aa_layer", "act_layer", "attn_drop_rate", "attn_ratio", "base_width", "cardinality", "channels"),
    *("class_token", "conv_mlp", "depth_mult", "dims", "drop_block_rate", "drop_rate", "dynamic_img_size"),
    *("embed_dim", "embed_dims", "fc_norm", "feat_size", "global_pool", "head_dim", "head_dropout"),
    *("head_norm_first", "hidden_dim", "img_size", "init_values", "kernel_size", "kernel_sizes", "key_dim"),
    *("mlp_ratio", "mlp_ratios", "no_embed_class", "norm_layer", "num_features", "num_groups", "num_heads"),
    *("num_registers", "output_stride", "partial_dim", "patch_norm", "patch_size", "pos_drop_rate", "pos_embed"),
    *("pre_norm", "proj_drop_rate", "qk_dim", "qk_norm", "qkv_bias", "reg_tokens", "se_layer", "stem_size"),
    *("stem_type", "stem_width", "strict_img_size", "types", "use_abs_pos", "width", "width_factor", "widths"),
    *("window_ratio", "window_size"),
}  # fmt: skip
"""Arguments of timm's models that may follow a model's name: sizes, and parts that timm knows by name."""


class TimmModel(nn.Module):
    """Any classification model of timm, by its name in timm.

    Arguments may follow the name: `swin_tiny_patch4_window7_224:embed_dim=48:img_size=160`.

    Raises:
        InputError: timm has no such model, or the model does not accept these arguments.
    """

    architecture: Any = None
    any_batch = True

    def __init__(self, name: str, num_classes: int = 1000, in_channels: int = 3, drop_path_rate: float = 0.0) -> None:
        import timm

        super().__init__()
        pretrained_cfg(name)
        base, self._arguments = named_arguments(name)
        self.in_channels = in_channels
        extra = {**self._arguments, **({"drop_path_rate": drop_path_rate} if drop_path_rate else {})}
        try:
            self.network = timm.create_model(base, num_classes=num_classes, in_chans=in_channels, **extra)
        except Exception as error:  # timm does not check its arguments
            if not extra:
                raise
            reason = one_line(error, first=True)
            given = ", ".join(f"{key}={value!r}" for key, value in extra.items())
            raise InputError(f"timm's {base} does not accept {given}: {reason}") from None

    @property
    def maps(self) -> list[tuple[int, int]]:
        """Channels and stride of each map that `features` returns. Raises InputError if timm does not list them."""
        info = getattr(self.network, "feature_info", None)
        if not info:
            raise InputError(f"timm has no intermediate maps for {type(self.network).__name__}")
        return [(int(row["num_chs"]), int(row["reduction"])) for row in list(info)[-3:]]

    @property
    def image_size(self) -> int:
        """Side of the images that the network was designed for, in pixels."""
        size = self._arguments.get("img_size", self.pretrained_cfg["input_size"][-1])
        return int(size if isinstance(size, int) else size[-1])

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """timm's record of the published weights: input_size, crop_pct, interpolation, mean, std."""
        return self.network.pretrained_cfg  # pyright: ignore[reportReturnType]

    def features(self, x: Float[Tensor, "b in h w"]) -> list[Float[Tensor, "b c h2 w2"]]:
        """The network's last three maps, fine to coarse. Their strides depend on the network.

        Raises:
            InputError: timm has no intermediate maps for this model.
        """
        if not hasattr(self.network, "forward_intermediates"):
            raise InputError(f"timm has no intermediate maps for {type(self.network).__name__}")
        return list(self.network.forward_intermediates(x, indices=3, intermediates_only=True))  # pyright: ignore

    def forward(self, x: Float[Tensor, "b in h w"]) -> Float[Tensor, "b classes"]:
        """Logits."""
        return self.network(x)

    @property
    def fold_check(self) -> tuple[torch.dtype, int, float]:
        """As in `SHViT`, but in fp32, since timm's folding is made for fp32."""
        return torch.float32, self.image_size, 1e-3

    def fold_outputs(self, x: Float[Tensor, "b in h w"]) -> list[Float[Tensor, "b classes"]]:
        """The outputs that are compared after folding."""
        return [self(x)]

    def first_convolution(self) -> nn.Conv2d | None:
        """None, since the convolution is not known."""
        return None

    def fold(self) -> "TimmModel":
        """Fold branches and norms with timm's code, then all other norms that follow a convolution."""
        from timm.utils.model import reparameterize_model

        with torch.no_grad():
            self.network = reparameterize_model(self.network)
            side = self.image_size
            fold_norms(self.network, torch.zeros(1, self.in_channels, side, side))
        return self


def named_arguments(name: str) -> tuple[str, dict[str, Any]]:
    """Split a name at the first colon into timm's name and arguments of `timm.create_model`.

    The name may come from a file. Therefore, arguments can set sizes and choose parts, but cannot load weights or open
    files.

    Raises:
        InputError: An argument is not KEY=VALUE with a key of `ARGUMENTS` and a plain Python value. Or a number is too
            large.
    """
    base, *rest = name.split(":")
    if not re.fullmatch(r"[\w.-]+", base, re.ASCII):
        raise InputError(f"timm has no model {name!r:.80}")
    arguments: dict[str, Any] = {}
    for part in rest:
        key, _, value = part.partition("=")
        try:
            arguments[key] = ast.literal_eval(value)
            check_argument(key, arguments[key])
        except InputError:
            raise
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            raise InputError(
                f"{name!r}: the name of timm's model may be followed by arguments, each :KEY=VALUE with a number, "
                f"True, False, a quoted string or a tuple, such as :img_size=160; got {part!r}"
            ) from None
    return base, arguments


def check_argument(key: str, value: Any) -> None:
    """Raises InputError if the key is not in `ARGUMENTS` or a number is too large, ValueError for other bad values."""
    if key not in ARGUMENTS:
        raise InputError(
            f"{key!r:.80} is not an allowed argument of timm's models: allowed are {', '.join(sorted(ARGUMENTS))}"
        )
    most = MAX_DEPTH if key in DEPTHS else MAX_WIDTH
    for one in value if isinstance(value, tuple | list) else [value]:
        if isinstance(one, tuple | list):
            check_argument(key, one)
        elif isinstance(one, str):
            if not re.fullmatch(r"[\w.-]{0,40}", one, re.ASCII):
                raise ValueError
        elif isinstance(one, bool | NoneType):
            continue
        elif type(one) not in (int, float):
            raise ValueError
        elif not -1 <= one <= most:
            raise InputError(f"{key} of timm's model must be at most {most}, got {value!r:.60}")


def pretrained_cfg(name: str) -> Any:
    """timm's record of the model `NAME` or `NAME.TAG`. Raises InputError if timm has no such model or tag."""
    import timm

    name, _ = named_arguments(name)
    base = name.partition(".")[0]
    if not timm.is_model(base):
        near = timm.list_models(f"*{base}*")[:3]
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise InputError(f"timm has no model {name!r}{hint}")
    try:
        return timm.get_pretrained_cfg(name)
    except RuntimeError:
        tags = ", ".join(timm.list_pretrained(f"{base}.*")) or "none"
        raise InputError(f"timm has no weights {name!r}: allowed are {tags}") from None


@torch.no_grad()
def fold_norms(network: nn.Module, images: Float[Tensor, "b in h w"]) -> None:
    """Fold each BatchNorm into the convolution before it, in place. The network must be in evaluation mode.

    The pairs are found by running the images through the network. A norm is folded if both layers run once and only
    the norm reads the output of the convolution. An activation that is part of the norm is kept.
    """
    convolutions = {id(m.weight): m for m in network.modules() if isinstance(m, nn.Conv2d)}
    norms = {id(m.weight): m for m in network.modules() if isinstance(m, nn.BatchNorm2d) and m.weight is not None}
    with _Watch(set(convolutions), set(norms)) as watch:
        network(images)
    folded: dict[nn.Module, nn.Module] = {}
    for convolution, norm in watch.pairs():
        conv, bn = convolutions[convolution], norms[norm]
        folded[conv] = fuse_conv_bn_eval(conv, bn)
        folded[bn] = getattr(bn, "act", nn.Identity())  # timm's norms may include an activation
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if child in folded:
                setattr(parent, name, folded[child])


class _Watch(TorchDispatchMode):
    """Records which convolution's output each norm reads, and how often each tensor is read."""

    def __init__(self, convolutions: set[int], norms: set[int]) -> None:
        super().__init__()
        self.convolutions, self.norms = convolutions, norms
        self.alive: list[Tensor] = []  # kept, because ids of deleted tensors are reused
        self.reads: Counter[int] = Counter()
        self.written_by: dict[int, int] = {}
        self.candidates: list[tuple[int, int, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        read = [id(tensor) for tensor in tensors]
        self.alive += [*tensors, *(leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor))]
        self.reads.update(read)
        for weight in self.convolutions.intersection(read):
            self.written_by[id(result)] = weight
        for weight in self.norms.intersection(read):
            if read[0] in self.written_by:
                self.candidates.append((read[0], self.written_by[read[0]], weight))
        return result

    def pairs(self) -> list[tuple[int, int]]:
        """Pairs of a convolution and a norm that can be folded. Each layer is given by the id of its weight."""
        once = [row for row in self.candidates if all(self.reads[tensor] == 1 for tensor in row)]
        return [(convolution, norm) for _, convolution, norm in once]
