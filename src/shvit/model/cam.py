"""Where a classifier looks: class activation maps over its last feature map.

Source: R. R. Selvaraju et al., "Grad-CAM: visual explanations from deep networks via gradient-based localization", 2017.
"""

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor


def activation_maps(
    model: Any, images: Float[Tensor, "b 3 h w"], classes: Int64[Tensor, " b"]
) -> Float[Tensor, "b h2 w2"] | None:
    """How much each place of the last feature map speaks for a class: 0 for nothing or against it.

    For a network that averages the map and applies a linear layer, such as SHViT, the mean of the map before negative
    values are set to 0 is the logit, up to a constant: the map then shows exactly what the logit is made of.

    Args:
        model: A network of `create_model`, with weights that are not folded.
        images: Normalized images.
        classes: The class of each image to explain.

    Returns:
        The maps, not normalized; None if the network has no last feature map, as plain transformers.
    """
    network = getattr(model, "network", model)  # timm's network inside a `TimmModel`
    if not (hasattr(network, "forward_features") and hasattr(network, "forward_head")):
        return None
    training = model.training
    try:
        model.eval()
        with torch.no_grad():
            features = network.forward_features(images)
        if not isinstance(features, Tensor) or features.ndim != 4:
            return None
        with torch.enable_grad():
            features = features.detach().requires_grad_()
            logits = network.forward_head(features)
            [gradient] = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), features)
    finally:
        model.train(training)
    channel = 3 if getattr(network, "output_fmt", "NCHW") == "NHWC" else 1
    places = (1, 2) if channel == 3 else (2, 3)
    return (gradient.mean(places, keepdim=True) * features.detach()).sum(channel).relu()
