"""Fold the temperature of a classifier into its weights."""

import copy
from dataclasses import replace
from typing import Any

import torch

from ..modelfile import ModelFile
from ..pretrained import head_prefixes


@torch.no_grad()
def with_folded_temperature(model_file: ModelFile) -> ModelFile:
    """The same model with temperature 1 and logits divided by its temperature. `model_file` is not changed.

    Softmax of these logits is calibrated in every runtime, at no cost: the division is part of the last linear layer.
    """
    temperature = model_file.calibration.temperature
    if temperature == 1:
        return model_file
    network: Any = copy.deepcopy(model_file.model)
    for name, weights in network.named_parameters():
        if name.startswith(head_prefixes(network)):  # two layers, whose mean is the output, if distilled
            weights.div_(temperature)
    return replace(model_file, model=network, calibration=replace(model_file.calibration, temperature=1.0))
