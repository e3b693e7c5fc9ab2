"""Where a classifier looks: class activation maps, in the form of HiResCAM.

Source: R. L. Draelos, L. Carin, "Use HiResCAM instead of Grad-CAM for faithful explanations of convolutional neural
networks", 2020. Over the last map of a network that ends with average pooling and a linear layer, it equals Grad-CAM.
"""

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.functional import interpolate

MAPS = 2
"""Number of feature maps that are combined: the last, which decides, and the one before, which is finer."""


def activation_maps(
    model: nn.Module, images: Float[Tensor, "b 3 h w"], classes: Int64[Tensor, " b"]
) -> Float[Tensor, "b h2 w2"] | None:
    """The importance of each position in an image for a class, from 0 to 1.

    The importance of a position is the sum of its activations, each weighted by the gradient of the logit, or 0 if this
    sum is negative. The result is the mean over the last `MAPS` feature maps, each divided by its maximum,
    at the size of the finest one.

    Args:
        model: A network from `create_model`, not folded. It is not changed.
        images: Normalized images.
        classes: The class of each image to explain.

    Returns:
        None if the network's features are not maps, as in plain transformers.
    """
    network: Any = getattr(model, "network", model)  # timm's network inside a `TimmModel`
    features, handles, training = [], [], model.training
    try:
        for row in list(getattr(network, "feature_info", None) or ())[-MAPS:]:
            module = network.get_submodule(row["module"])
            handles.append(module.register_forward_hook(lambda _, __, output: features.append(output)))
        model.eval()
        with torch.enable_grad():
            logits = model(images.clone().requires_grad_())
            if not features or not all(isinstance(each, Tensor) and each.ndim == 4 for each in features):
                return None
            gradients = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), features)
    except AttributeError:  # timm lists a feature that is not a module
        return None
    finally:
        for handle in handles:
            handle.remove()
        model.train(training)
    channel = 3 if getattr(network, "output_fmt", "NCHW") == "NHWC" else 1
    maps = [(gradient * each.detach()).sum(channel).relu() for each, gradient in zip(features, gradients, strict=True)]
    size = max(tuple(each.shape[1:]) for each in maps)
    parts = [interpolate(_normalized(each)[:, None], size, mode="bilinear")[:, 0] for each in maps]
    return _normalized(torch.stack(parts).sum(0))


def _normalized(maps: Float[Tensor, "b h w"]) -> Float[Tensor, "b h w"]:
    return maps / maps.amax((1, 2), keepdim=True).clamp(min=1e-12)
