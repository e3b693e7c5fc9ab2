"""Names to published weights, and keys from and to the naming of timm and of the authors' code."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from . import engines
from .data.transforms import INTERPOLATIONS, Preprocess
from .engines import Runnable
from .errors import InputError
from .model.architecture import TIMM_PREFIX, Architecture, Model, is_network, variant_config
from .model.config import VARIANTS
from .model.detector import Detector
from .model.peer import TimmModel, named_arguments, pretrained_cfg
from .modelfile import ModelFile, ModelFileError
from .modelfile import load as load_file

StateDict = dict[str, Tensor]

PUBLISHED_TOP1 = {"shvit_s1.in1k": 72.780, "shvit_s2.in1k": 75.184, "shvit_s3.in1k": 77.356, "shvit_s4.in1k": 79.362}
"""timm's names of the published ImageNet-1K weights, and the top-1 accuracy in % that timm lists for each."""

_FEED_FORWARD = {"expand": "pw1", "project": "pw2"}
_PARTS = {
    **{f"stem.{index}": f"patch_embed.{index}" for index in (0, 2, 4, 6)},
    "head": "head",
    "distillation_head": "head_dist",
    "downsample.local_before.branch": "downsample.0.m",
    **{f"downsample.feed_forward_before.branch.{a}": f"downsample.1.m.{b}" for a, b in _FEED_FORWARD.items()},
    "downsample.reduce.expand": "downsample.2.conv1",
    "downsample.reduce.depthwise": "downsample.2.conv2",
    "downsample.reduce.squeeze_excite.reduce": "downsample.2.se.fc1",
    "downsample.reduce.squeeze_excite.expand": "downsample.2.se.fc2",
    "downsample.reduce.project": "downsample.2.conv3",
    "downsample.local_after.branch": "downsample.3.m",
    **{f"downsample.feed_forward_after.branch.{a}": f"downsample.4.m.{b}" for a, b in _FEED_FORWARD.items()},
    "local.branch": "conv.m",
    "mixer.branch.norm": "mixer.m.pre_norm",
    "mixer.branch.qkv": "mixer.m.qkv",
    "mixer.branch.project": "mixer.m.proj.1",
    **{f"feed_forward.branch.{a}": f"ffn.m.{b}" for a, b in _FEED_FORWARD.items()},
}
"""Our name of each part of the network, within its stage or block, and timm's."""

_LEAVES = {"conv.": "c.", "norm.": "bn.", "linear.": "l."}
"""Within a part: our names of convolution, norm and linear layer, and timm's. Other names are alike."""

_AUTHORS_DOWNSAMPLE = {"0": "0.0", "1": "0.1", "2": "1", "3": "2.0", "4": "2.1"}
"""timm's numbers of the parts of a downsample, and where the authors' blocks2 and blocks3 have them."""

_SCOPE = r"(?P<scope>stages\.\d+\.(?:blocks\.\d+\.)?|)"


def from_timm(state_dict: StateDict) -> StateDict:
    """Weights named as timm's `shvit_*` names them, named as here. Raises InputError for a key that is neither's."""
    return {
        _rename(key, {theirs: ours for ours, theirs in _PARTS.items()}, _inverse(_LEAVES)): value
        for key, value in state_dict.items()
    }


def to_timm(state_dict: StateDict) -> StateDict:
    """Inverse of `from_timm`."""
    return {_rename(key, _PARTS, _LEAVES): value for key, value in state_dict.items()}


def from_official(state_dict: dict[str, Any]) -> StateDict:
    """Weights named as the authors' repository names them, named as here.

    Takes also its whole checkpoint, where the weights are the entry `model`. Raises InputError for an unknown key.
    """
    return from_timm({_authors_to_timm(key): value for key, value in state_dict.get("model", state_dict).items()})


def create_model(
    name: str, num_classes: int = 1000, pretrained: bool = False, *, in_channels: int = 3, distilled: bool = False
) -> Model:
    """A network by name, in training mode.

    Args:
        name: `shvit_s1` to `shvit_s4`; `timm/NAME` for any model of timm; `shvit_s1.in1k` and so on for published
            weights, which is the same as `shvit_s1` with `pretrained`.
        num_classes: Logits an image gets. Where it is not 1000, pretrained weights are taken for all but the head.
        pretrained: Download the published ImageNet-1K weights, or take them from the cache.
        in_channels: Channels of an image; published weights have 3.
        distilled: Add the second head that a teacher trains; it is fresh even where the rest is pretrained.

    Raises:
        InputError: An unknown name, or weights that cannot be had; the message says what to do.
    """
    published = name in PUBLISHED_TOP1
    architecture = Architecture(name.removesuffix(".in1k") if published else name, num_classes, in_channels, distilled)
    if not (pretrained or published):
        return architecture.build()
    if in_channels != 3:
        raise InputError(f"published weights are for 3 input channels, not {in_channels}")
    return transfer(
        load_model(name if published or name.startswith(TIMM_PREFIX) else f"{name}.in1k").model, architecture
    )


def transfer(trained: Model, architecture: Architecture, fresh_head: bool = False) -> Model:
    """A new network of this architecture with the weights of a trained one.

    The head starts fresh where that is asked for or its size differs. A distillation head
    that the new network lacks is left behind.

    Raises:
        InputError: Weights other than the heads' do not fit.
    """
    model = architecture.build()
    target, source = model.state_dict(), trained.state_dict()
    if fresh_head or trained.architecture.num_classes != architecture.num_classes:
        heads = _head_prefixes(model)
        source = {key: value for key, value in source.items() if not key.startswith(heads)}
    if trained.architecture.distilled and not architecture.distilled:
        source = {key: value for key, value in source.items() if not key.startswith("distillation_head.")}
    for key, value in source.items():
        if (key in target and target[key].shape != value.shape) or key not in target:
            raise InputError(f"weights of {trained.architecture.name} do not fit {architecture.name}: {key}")
    model.load_state_dict({**target, **source})
    return model


def onto_detector(trained: Model, architecture: Architecture, fresh_head: bool = False) -> Model:
    """A new detector with the backbone of a classifier or of a detector; of its own kind, with all that fits.

    Args:
        trained: Its backbone is of the same variant.
        architecture: Of the detector.
        fresh_head: Leave what tells classes apart fresh, as where the number of classes differs.
    """
    if isinstance(trained, Detector) and trained.architecture.detector == architecture.detector:
        return transfer(trained, architecture, fresh_head)
    model = architecture.build()
    assert isinstance(model, Detector)
    source = (trained.backbone if isinstance(trained, Detector) else trained).state_dict()
    model.backbone.load_state_dict({name: source[name] for name in model.backbone.state_dict()})
    return model


def load(source: str | Path) -> Runnable:
    """A model file or an exported file by its path, published weights by their name (`shvit_s1.in1k`, `timm/NAME`).

    Raises:
        InputError: There is no such file or name, the file is not usable, or the weights cannot be had.
    """
    return engines.read(source) if engines.is_exported(source) else load_model(source)


def load_model(source: str | Path) -> ModelFile:
    """As `load`, where a network in PyTorch is needed: for training, or to export it.

    Raises:
        ModelFileError: There is no such file or name, the file is not usable, or the weights cannot be had.
    """
    name = str(source)
    if engines.is_exported(name):
        raise ModelFileError(
            f"{name} is an exported file, which can be run but not changed: give the model file itself"
        )
    if name in PUBLISHED_TOP1:
        return _published(name)
    if name.startswith(TIMM_PREFIX):
        return _from_timm_hub(name)
    if is_network(name) and not Path(source).exists():
        published = f", or {name}.in1k for the published ones" if name in VARIANTS else ""
        raise ModelFileError(f"{name} is a network without weights: give a model file{published}")
    if not Path(source).exists() and not name.endswith(".safetensors"):
        allowed = ", ".join([*PUBLISHED_TOP1, f"{TIMM_PREFIX}NAME"])
        raise ModelFileError(f"{name}: no such file, and none of the names {allowed}")
    return load_file(source)


def is_published(name: str) -> bool:
    """Whether `name` stands for the published weights of a variant, such as `shvit_s1.in1k`."""
    return name in PUBLISHED_TOP1


def imagenet_classes() -> tuple[str, ...]:
    """Names of the 1,000 classes of ImageNet-1K, in the order of the published logits."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    return tuple(info.index_to_description(index) for index in range(1000))


def default_preprocess(model: Model, image_size: int | None = None) -> Preprocess:
    """What the published weights of this kind of model expect; at another size where one is given."""
    if isinstance(model, Detector):
        model = model.backbone
    if not isinstance(model, TimmModel):
        return Preprocess(image_size or model.image_size)
    cfg = model.pretrained_cfg
    interpolation = cfg["interpolation"] if cfg["interpolation"] in INTERPOLATIONS else "bicubic"
    fit = "squash" if cfg.get("crop_mode") == "squash" and cfg["crop_pct"] == 1 else "crop"
    return Preprocess(image_size or model.image_size, cfg["crop_pct"], interpolation, cfg["mean"], cfg["std"], fit)


def _published(name: str) -> ModelFile:
    from safetensors.torch import load_file as load_weights

    architecture = Architecture(name.removesuffix(".in1k"))
    path = _fetch(name)
    model = architecture.build()
    try:
        model.load_state_dict(from_timm(load_weights(path)))
    except (SafetensorError, ValueError, RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelFileError(f"{path} does not hold the published weights of {name}: {reason}") from None
    return ModelFile(
        model.eval(),
        imagenet_classes(),
        Preprocess(variant_config(architecture.name).image_size),
        metrics={"published_top1": PUBLISHED_TOP1[name] / 100},
        provenance={"source": f"timm/{name}", "license": "MIT"},
    )


def _fetch(name: str) -> Path:
    """The weights' file, from beside the cache, the cache, or the hub."""
    from huggingface_hub import constants, hf_hub_download

    by_hand = Path(constants.HF_HUB_CACHE) / f"{name}.safetensors"
    if by_hand.is_file():
        return by_hand
    try:
        with _quiet_hub():
            return Path(hf_hub_download(f"timm/{name}", "model.safetensors"))
    except Exception as error:  # the hub's client lets its transport's errors through, and changes transports
        url = f"{constants.ENDPOINT}/timm/{name}/resolve/main/model.safetensors"
        raise ModelFileError(
            f"the weights of {name} are not in the cache and cannot be fetched ({_first_line(error)}): "
            f"fetch {url} where there is a network and put it at {by_hand}"
        ) from None


def _from_timm_hub(name: str) -> ModelFile:
    import timm

    short = name.removeprefix(TIMM_PREFIX)
    cfg = pretrained_cfg(short)
    if not cfg.has_weights:
        raise ModelFileError(f"timm has no published weights of {name}")
    model = Architecture(name, num_classes=cfg.num_classes).build()
    assert isinstance(model, TimmModel)
    try:
        with _quiet_hub():
            base, arguments = named_arguments(short)
            model.network = timm.create_model(base, pretrained=True, **arguments)
    except Exception as error:  # as in `_fetch`
        source = f"{cfg.hf_hub_id}" if cfg.hf_hub_id else cfg.url
        raise ModelFileError(
            f"the weights of {name} are not in the cache and cannot be fetched ({_first_line(error)}): "
            f"run this once where there is a network and bring its Hugging Face cache; they come from {source}"
        ) from None
    classes = imagenet_classes() if cfg.num_classes == 1000 else tuple(str(i) for i in range(cfg.num_classes))
    return ModelFile(model.eval(), classes, default_preprocess(model), provenance={"source": name})


@contextmanager
def _quiet_hub() -> Iterator[None]:
    """The hub's client logs each retry; what counts is how the last one ends, and that is an error's message."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__


def _head_prefixes(model: Model) -> tuple[str, ...]:
    if isinstance(model, Detector):
        return model.class_layers
    if isinstance(model, TimmModel):
        classifier = model.pretrained_cfg["classifier"]
        names = (classifier,) if isinstance(classifier, str) else classifier
        return tuple(f"network.{name}." for name in names)
    return ("head.linear.", "distillation_head.")


def _inverse(mapping: dict[str, str]) -> dict[str, str]:
    return {value: key for key, value in mapping.items()}


def _rename(key: str, parts: dict[str, str], leaves: dict[str, str]) -> str:
    scope = re.match(_SCOPE, key)
    assert scope is not None
    rest = key[scope.end() :]
    for part, other in parts.items():
        if rest.startswith(f"{part}."):
            leaf = rest[len(part) + 1 :]
            for name, renamed in leaves.items():
                if leaf.startswith(name):
                    leaf = renamed + leaf[len(name) :]
                    break
            return f"{scope['scope']}{other}.{leaf}"
    raise InputError(f"not a weight of SHViT: {key!r}")


def _authors_to_timm(key: str) -> str:
    match = re.match(r"blocks(\d)\.(.*)", key)
    if match is None:
        return key
    stage, rest = int(match[1]) - 1, match[2]
    if stage > 0:
        for number, authors in _AUTHORS_DOWNSAMPLE.items():
            if rest.startswith(f"{authors}."):
                return f"stages.{stage}.downsample.{number}.{rest[len(authors) + 1 :]}"
    index, _, rest = rest.partition(".")
    return f"stages.{stage}.blocks.{int(index) - (3 if stage > 0 else 0)}.{rest}"
