"""timm's models behind the interface of SHViT: the peers it is compared with, and the teachers it learns from."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import InputError


class TimmModel(nn.Module):
    """Any classification model of timm, by timm's own name.

    Raises:
        InputError: timm knows no such model.
    """

    architecture: Any = None

    def __init__(self, name: str, num_classes: int = 1000, in_channels: int = 3) -> None:
        import timm

        super().__init__()
        pretrained_cfg(name)
        self.in_channels = in_channels
        self.network = timm.create_model(name, num_classes=num_classes, in_chans=in_channels)

    @property
    def image_size(self) -> int:
        """Side of the images that the network was designed for, in pixels."""
        return int(self.pretrained_cfg["input_size"][-1])

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """timm's record of the published weights: input_size, crop_pct, interpolation, mean, std."""
        return self.network.pretrained_cfg  # pyright: ignore[reportReturnType]

    def features(self, x: Float[Tensor, "b in h w"]) -> list[Float[Tensor, "b c h2 w2"]]:
        """The network's last three maps, fine to coarse; their strides are the network's own.

        Raises:
            InputError: timm offers no intermediate maps of this model.
        """
        if not hasattr(self.network, "forward_intermediates"):
            raise InputError(f"timm offers no intermediate maps of {type(self.network).__name__}")
        return list(self.network.forward_intermediates(x, indices=3, intermediates_only=True))  # pyright: ignore

    def forward(self, x: Float[Tensor, "b in h w"]) -> Float[Tensor, "b classes"]:
        return self.network(x)

    def fold(self) -> "TimmModel":
        """timm's own folding of branches and norms, for the models that have one."""
        from timm.utils.model import reparameterize_model

        with torch.no_grad():
            self.network = reparameterize_model(self.network)
        return self


def pretrained_cfg(name: str) -> Any:
    """timm's record of the model `NAME` or `NAME.TAG`. Raises InputError where timm knows no such model or tag."""
    import timm

    base = name.partition(".")[0]
    if not timm.is_model(base):
        near = timm.list_models(f"*{base}*")[:3]
        hint = f"; near are {', '.join(near)}" if near else ""
        raise InputError(f"timm has no model {name!r}{hint}")
    try:
        return timm.get_pretrained_cfg(name)
    except RuntimeError:
        tags = ", ".join(timm.list_pretrained(f"{base}.*")) or "none"
        raise InputError(f"timm has no weights {name!r}: allowed are {tags}") from None
