"""The format `timm`: a folder that `timm.create_model("local-dir:FOLDER", pretrained=True)` loads."""

from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..data.transforms import CROP_MODES, Normalize
from ..files import write_json
from ..header import parsed
from ..model.architecture import TIMM_PREFIX, Architecture
from ..model.config import VARIANTS
from ..model.layers import NormLinear
from ..model.shvit import SHViT
from ..model.timm_model import TimmModel, check_argument, named_arguments
from ..model.timm_names import to_timm
from ..modelfile import HEADER_KEY, ModelFile
from .base import ExportJob, Precisions, Runnable, Shapes
from .exported import EngineError, ExpectedSample, Exported, seal, unreadable
from .torch import TorchEngine

WEIGHTS, CONFIG = "model.safetensors", "config.json"
SOURCES = ("url", "file", "hf_hub_id", "hf_hub_filename", "source", "tag", "architecture", "license", "label_names")
"""Entries of timm's `pretrained_cfg` that describe published weights, not the weights written here."""


class TimmFormat(TorchEngine):
    """Writes a folder for timm. To check the folder, this engine loads it with timm and runs timm's network."""

    name: ClassVar[str] = "timm"
    suffix: ClassVar[str] = ".timm"
    own_files_only: ClassVar[bool] = True
    runs: ClassVar[Precisions] = {None: ("fp32",)}
    writes: ClassVar[Precisions] = {None: ("fp32",)}

    def __init__(self, model: Runnable, precision: str, device: str, threads: int | None = None) -> None:
        import timm

        assert isinstance(model, Exported)
        _check(model, _config(model.path))
        self.precision, self.device, self.threads, self.batch = precision, device, threads, None
        self.how = "operation by operation, by timm"
        self.path = model.path
        network = timm.create_model(f"local-dir:{model.path}", pretrained=True).eval()
        self.network = nn.Sequential(Normalize(model.preprocess), network).to(device)

    @classmethod
    def write(cls, job: ExportJob, facts: Exported) -> None:
        if job.shapes != Shapes():
            raise EngineError(
                "a timm folder takes any number of images of any size: leave out --batch-size and --dynamic-size"
            )
        name, arguments = _in_timm(job.model_file.architecture)
        weights = _weights(job.model_file.model)
        config = {
            "architecture": name,
            "num_classes": len(facts.classes),
            "label_names": list(facts.classes),
            "model_args": arguments,
            "pretrained_cfg": _pretrained_cfg(name, job.model_file),
            HEADER_KEY: facts.to_dict(),
        }
        job.path.mkdir()
        tensors = {key: value.float().contiguous() for key, value in weights.items()}
        save_file(tensors, job.path / WEIGHTS, {"format": "pt"})
        write_json(job.path / CONFIG, config)

    @classmethod
    def fill_sample(cls, path: Path, unknown: ExpectedSample, known: ExpectedSample) -> None:
        config = _config(path)
        config[HEADER_KEY]["sample"] = known.to_dict()
        write_json(path / CONFIG, config)
        seal(path)

    @classmethod
    def read(cls, path: Path) -> Exported:
        config = _config(path)
        if HEADER_KEY not in config:
            raise EngineError(f"{path} was not written by shvit export")
        exported = Exported.from_dict(path, config[HEADER_KEY])
        _check(exported, config)
        return exported


def _config(path: Path) -> dict[str, Any]:
    """The folder's config.json. Raises EngineError if it cannot be read."""
    with unreadable(path, "is not a timm folder written by shvit export", OSError, ValueError):
        config = parsed((path / CONFIG).read_bytes())
        if not isinstance(config, dict):
            raise ValueError(f"its {CONFIG} is not a JSON object")
    return config


def _check(exported: Exported, config: dict[str, Any]) -> None:
    """Raise EngineError if timm would load other weights, or build a network that does not match these weights."""
    import timm

    path = exported.path
    with unreadable(path, "is not usable", Exception):  # timm does not check its arguments
        base, arguments = config["architecture"], {**config["model_args"]}
        channels = arguments.pop("in_chans", 3)
        named_arguments(base)
        for key, value in arguments.items():
            check_argument(key, value)
        if config["num_classes"] != len(exported.classes) or channels != 3:
            raise ValueError(f"its {config['num_classes']} classes and {channels} channels do not match its metadata")
        for key in (*SOURCES, "custom_load", "state_dict"):
            if config["pretrained_cfg"].get(key):
                raise ValueError(f"its entry {key!r} would load other weights")
        with torch.device("meta"):
            network = timm.create_model(base, num_classes=config["num_classes"], **arguments)
        with safe_open(path / WEIGHTS, "pt") as weights:
            shapes = {name: list(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
        if shapes != {name: list(tensor.shape) for name, tensor in network.state_dict().items()}:
            raise ValueError(f"the weights are not those of {base}")


def _in_timm(architecture: Architecture) -> tuple[str, dict[str, Any]]:
    """timm's name for the network, and its arguments. Raises EngineError if timm cannot build the network."""
    channels = {"in_chans": architecture.in_channels} if architecture.in_channels != 3 else {}
    if architecture.config is None:
        base, arguments = named_arguments(architecture.name.removeprefix(TIMM_PREFIX))
        return base.partition(".")[0], {**arguments, **channels}
    if VARIANTS.get(architecture.name) == architecture.config:
        return architecture.name, channels
    stages = architecture.config.stages
    widths = [stage.width for stage in stages]
    alike = any(one == other for one, other in pairwise(widths))
    if "/" in architecture.name or architecture.config.stem != 4 or alike:
        raise EngineError(
            f"timm cannot build {architecture.name}: timm's SHViT needs a stem of four convolutions, single-head "
            "attention, and a different width in each stage"
        )
    return "shvit_s1", {
        "embed_dim": widths,
        "depth": [stage.depth for stage in stages],
        "partial_dim": [stage.attended or stage.width // 4 for stage in stages],
        "qk_dim": [16] * len(stages),
        "types": ["i" if stage.attended is None else "s" for stage in stages],
        **channels,
    }


def _pretrained_cfg(name: str, model_file: ModelFile) -> dict[str, Any]:
    """timm's `pretrained_cfg` for the network, with the preprocessing of this model file."""
    import timm

    preprocess, published = model_file.preprocess, timm.get_pretrained_cfg(name)
    record = {} if published is None else published.to_dict()
    side, fit = preprocess.image_size, preprocess.fit
    return {
        **{key: value for key, value in record.items() if key not in SOURCES},
        "num_classes": model_file.architecture.num_classes,
        "input_size": [model_file.architecture.in_channels, side, side],
        "crop_pct": preprocess.crop if fit == "crop" else 1.0,
        "crop_mode": CROP_MODES[fit],
        "interpolation": preprocess.interpolation,
        "mean": list(preprocess.mean),
        "std": list(preprocess.std),
    }


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights under timm's names; two heads are merged into one."""
    if isinstance(model, TimmModel):
        return model.network.state_dict()
    assert isinstance(model, SHViT)
    weights = {key: value for key, value in model.state_dict().items() if not key.startswith("distillation_head.")}
    if model.distillation_head is not None:
        assert isinstance(model.head, NormLinear)
        assert isinstance(model.distillation_head, NormLinear)
        merged = merged_heads(model.head, model.distillation_head)
        weights |= {f"head.{key}": value for key, value in merged.state_dict().items()}
    return to_timm(weights)


@torch.no_grad()
def merged_heads(first: NormLinear, second: NormLinear) -> NormLinear:
    """One head whose logits are the mean of two heads' logits, in evaluation mode.

    The merged head's norm has the mean m1 and deviation s1 of the first head, but no scale or shift. From its output z,
    a head with mean m, deviation s, scale g, shift b and linear layer (W, c) gives W (g (s1 z + m1 - m) / s + b) + c.
    """
    mean, deviation = _statistics(first)
    weight, bias = torch.zeros(()).double(), torch.zeros(()).double()
    for head in (first, second):
        own_mean, own_deviation = _statistics(head)
        linear, scale = head.linear.weight.double(), head.norm.weight.double() / own_deviation
        weight = weight + linear * (scale * deviation) / 2
        bias = bias + (linear @ (scale * (mean - own_mean) + head.norm.bias.double()) + head.linear.bias.double()) / 2
    merged = NormLinear(first.linear.in_features, first.linear.out_features)
    merged.norm.load_state_dict(first.norm.state_dict())
    nn.init.ones_(merged.norm.weight)
    nn.init.zeros_(merged.norm.bias)
    merged.linear.weight.copy_(weight)
    merged.linear.bias.copy_(bias)
    return merged


def _statistics(head: NormLinear) -> tuple[Tensor, Tensor]:
    assert head.norm.running_mean is not None
    assert head.norm.running_var is not None
    return head.norm.running_mean.double(), (head.norm.running_var.double() + head.norm.eps).sqrt()
