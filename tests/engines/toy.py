"""An engine in one file, for test_toy_engine.py: PyTorch again, with weights as safetensors in `.toy` files."""

from typing import ClassVar

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from shvit.engines.base import Engine, Precisions
from shvit.engines.exported import Exported
from shvit.engines.portable import portable
from shvit.model.architecture import Architecture
from shvit.modelfile import HEADER_KEY, ModelFile


class ToyEngine(Engine):
    """Runs classifiers in fp32."""

    name: ClassVar[str] = "toy"
    suffix: ClassVar[str] = ".toy"
    runs: ClassVar[Precisions] = {None: ("fp32",)}
    writes: ClassVar[Precisions] = {None: ("fp32",)}

    def __init__(self, model, precision, device, threads=None):
        self.precision = precision
        if isinstance(model, Exported):
            network = Architecture.from_dict(model.provenance["architecture"]).build().eval()
            network.load_state_dict(load_file(model.path))
            model = ModelFile(network, model.classes, model.preprocess, model.task)
        self.network = portable(model)

    @classmethod
    def write(cls, job, facts):
        save_file(job.model_file.model.state_dict(), job.path, {HEADER_KEY: facts.to_json()})

    @classmethod
    def read(cls, path):
        with safe_open(path, "pt") as file:
            return Exported.from_json(path, file.metadata()[HEADER_KEY])

    @torch.inference_mode()
    def __call__(self, images):
        return self.network(images)
