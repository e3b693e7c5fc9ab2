"""Load published weights by name, and create networks from trained weights."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any, Literal, TypeVar, overload

import torch
from safetensors import SafetensorError
from torch import nn

from . import engines
from .classnames import imagenet_classes
from .data.transforms import CROP_MODES, INTERPOLATIONS, Preprocess
from .engines import Exported, Runnable
from .errors import InputError, counted, one_line
from .model.architecture import TIMM_PREFIX, Architecture, Model, is_network, variant_config
from .model.config import VARIANTS
from .model.official_names import from_official
from .model.shvit import SHViT
from .model.timm_interface import check_pool, chosen_stages
from .model.timm_model import TimmModel, named_arguments, pretrained_cfg
from .model.timm_names import StateDict, from_timm, to_timm
from .modelfile import ModelFile, ModelFileError
from .modelfile import load as load_file
from .tasks import kind_of

__all__ = ["StateDict", "create_model", "from_official", "from_timm", "load", "load_model", "to_timm", "transfer"]

AnyModel = TypeVar("AnyModel", ModelFile, Exported)
PUBLISHED_TOP1 = {"shvit_s1.in1k": 72.780, "shvit_s2.in1k": 75.184, "shvit_s3.in1k": 77.356, "shvit_s4.in1k": 79.362}
"""timm's names of the published ImageNet-1K weights, and their top-1 accuracy in % as listed by timm."""


NO_CONNECTION = ("LocalEntryNotFoundError", "OfflineModeIsEnabled")
"""Names of the hub client's errors for a host that cannot be reached."""


class WeightsMissing(ModelFileError):
    """Published weights are neither in the cache nor can they be downloaded."""


@overload
def create_model(
    name: str,
    num_classes: int = 1000,
    pretrained: bool = False,
    *,
    in_channels: int = 3,
    in_chans: int | None = None,
    distilled: bool = False,
    features_only: Literal[False] = False,
    global_pool: str | None = None,
    drop_path_rate: float = 0.0,
    checkpoint_path: str | Path = "",
) -> Model: ...
@overload
def create_model(
    name: str,
    num_classes: int = 1000,
    pretrained: bool = False,
    *,
    in_channels: int = 3,
    in_chans: int | None = None,
    features_only: Literal[True],
    out_indices: int | tuple[int, ...] | None = None,
    drop_path_rate: float = 0.0,
    checkpoint_path: str | Path = "",
) -> nn.Module: ...
def create_model(
    name: str,
    num_classes: int = 1000,
    pretrained: bool = False,
    *,
    in_channels: int = 3,
    in_chans: int | None = None,
    distilled: bool = False,
    features_only: bool = False,
    out_indices: int | tuple[int, ...] | None = None,
    global_pool: str | None = None,
    drop_path_rate: float = 0.0,
    checkpoint_path: str | Path = "",
) -> Model | nn.Module:
    """Create a network by name, in training mode. Most arguments are as in `timm.create_model`.

    Args:
        name: `shvit_s1` to `shvit_s4`; `timm/NAME` for any timm model; or `shvit_s1.in1k` to `shvit_s4.in1k`, which
            imply `pretrained=True`.
        num_classes: Number of logits. If it is not 1000, the head is not pretrained. With 0, there is no classifier:
            the network returns pooled features and cannot be saved as a model file.
        pretrained: Load the published ImageNet-1K weights, from the cache or by download.
        in_channels: Channels of an image. If it is not 3, the pretrained weights of the first convolution are summed
            (1 channel) or repeated and scaled, as in timm.
        in_chans: timm's name for `in_channels`.
        distilled: Add a second head for distillation. It is never pretrained.
        features_only: Create timm's `FeatureListNet`, which returns a list of maps and describes them in
            `feature_info`. It has no classifier and cannot be saved as a model file.
        out_indices: For `features_only`: the stages to return, counted from 0. An int N means the last N. Default: all.
        global_pool: Pooling of the last map. SHViT supports `avg` and an empty string. The latter returns the
            unpooled map and requires `num_classes=0`. Default: the pooling that the model defines.
        drop_path_rate: Stochastic depth in training, from 0 in the first block to this rate in the last.
        checkpoint_path: A model file with the initial weights. It must have the same number of classes.

    Raises:
        InputError: The name is unknown, arguments exclude each other, or weights are not available.
    """
    published = name in PUBLISHED_TOP1
    pretrained = pretrained or published
    channels = in_channels if in_chans is None else in_chans
    if channels != in_channels != 3:
        raise InputError(f"in_chans is timm's name for in_channels: give one of them, got {in_chans} and {in_channels}")
    if pretrained and checkpoint_path:
        raise InputError(f"give pretrained weights or checkpoint_path, not both; got {name} and {checkpoint_path}")
    _check_features_only(name, features_only, out_indices, distilled or global_pool is not None, bool(checkpoint_path))
    name = name.removesuffix(".in1k") if published else name
    if name.startswith(TIMM_PREFIX):
        if features_only:
            return _timm_features(name, pretrained, channels, out_indices, drop_path_rate)
        name += f":global_pool={global_pool!r}" if global_pool is not None else ""
    architecture = Architecture(name, 0 if features_only else num_classes, channels, distilled)
    model = architecture.build(drop_path_rate)
    if isinstance(model, SHViT) and global_pool is not None:
        check_pool(global_pool, num_classes)
        model.global_pool = global_pool
    if pretrained:
        transfer(load_model(name if name.startswith(TIMM_PREFIX) else f"{name}.in1k").model, architecture, onto=model)
    if checkpoint_path:
        _start_from(checkpoint_path, architecture, model)
    return _feature_list(model, out_indices) if features_only else model


def _start_from(path: str | Path, architecture: Architecture, model: Model) -> None:
    trained = load_file(path).model
    if architecture.num_classes not in (0, count := trained.architecture.num_classes):
        raise InputError(
            f"{path} has {counted(count, 'class', 'classes')}, not {architecture.num_classes}: give num_classes={count}"
        )
    transfer(trained, architecture, onto=model)


def transfer(trained: Model, architecture: Architecture, fresh_head: bool = False, onto: Model | None = None) -> Model:
    """Create a network of this architecture with the weights of a trained network.

    The weights are loaded into `onto` if it is given. The head is not transferred if its size differs or `fresh_head`
    is set. A distillation head is transferred only if the new network has one. The first convolution is adapted to
    the number of channels.

    Raises:
        InputError: The weights to transfer do not fit the architecture.
    """
    model = onto or architecture.build()
    target, source = model.state_dict(), trained.state_dict()
    if trained.architecture.in_channels == 3 != architecture.in_channels:
        source |= _adapted_to_channels(trained, source, architecture.in_channels)
    if fresh_head or trained.architecture.num_classes != architecture.num_classes:
        heads = head_prefixes(model)
        source = {key: value for key, value in source.items() if not key.startswith(heads)}
    if trained.architecture.distilled and not architecture.distilled:
        source = {key: value for key, value in source.items() if not key.startswith("distillation_head.")}
    missing = []
    if not architecture.num_classes:  # the norm of the head is not transferred either
        source = {key: value for key, value in source.items() if key in target}
        missing = [key for key in target if key not in source]
    unfit = [key for key, value in source.items() if key not in target or target[key].shape != value.shape]
    for key in [*unfit, *missing]:
        raise InputError(f"weights of {trained.architecture.name} do not fit {architecture.name}: {key}")
    model.load_state_dict({**target, **source})
    return model


def zero_head(model: Model) -> None:
    """Set the weights and biases of the classifier to zero, in place: every class begins with the same probability.

    Random heads begin with a loss far above that of equal probabilities, most of all those of timm's networks for few
    classes, and the first steps then damage the trained backbone.
    """
    heads = head_prefixes(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(heads):
                parameter.zero_()


def _adapted_to_channels(trained: Model, source: StateDict, channels: int) -> StateDict:
    """The weights of the first convolutions, adapted to this number of channels."""
    from timm.models import adapt_input_conv

    if trained.architecture.detector:
        raise InputError(f"the weights of a detector are for 3 channels, not {channels}")
    prefix, cfg = "network." if isinstance(trained, TimmModel) else "", getattr(trained, "pretrained_cfg")  # noqa: B009
    names = cfg["first_conv"]
    keys = [f"{prefix}{name}.weight" for name in ((names,) if isinstance(names, str) else names)]
    return {key: adapt_input_conv(channels, source[key]) for key in keys}


def _feature_list(model: Model, out_indices: int | tuple[int, ...] | None) -> nn.Module:
    """timm's `FeatureListNet`, which returns the feature maps of these stages."""
    from timm.models import FeatureListNet

    assert isinstance(model, SHViT)
    network: Any = FeatureListNet(model, tuple(chosen_stages(out_indices, len(model.stages))), flatten_sequential=True)
    network.pretrained_cfg = network.default_cfg = {**model.pretrained_cfg, "num_classes": 0, "classifier": ()}
    return network


def _check_features_only(
    name: str, features_only: bool, out_indices: Any, has_head: bool, has_checkpoint: bool
) -> None:
    if out_indices is not None and not features_only:
        raise InputError("out_indices requires features_only=True")
    if features_only and has_head:
        raise InputError("features_only=True returns maps, so distilled and global_pool have no effect: remove them")
    if features_only and has_checkpoint and name.startswith(TIMM_PREFIX):
        raise InputError("checkpoint_path cannot be combined with features_only=True for timm's models")


def _timm_features(
    name: str, pretrained: bool, channels: int, out_indices: int | tuple[int, ...] | None, drop_path_rate: float
) -> nn.Module:
    import timm

    short = name.removeprefix(TIMM_PREFIX)
    pretrained_cfg(short)
    base, arguments = named_arguments(short)
    options = {"features_only": True, "in_chans": channels}
    options |= {"out_indices": out_indices} if out_indices is not None else {}
    options |= {"drop_path_rate": drop_path_rate} if drop_path_rate else {}
    try:
        timm.create_model(base, **arguments, **options)
    except (TypeError, ValueError, IndexError, AssertionError, RuntimeError) as error:
        raise InputError(f"timm cannot return these maps of {name}: {one_line(error, first=True)}") from None
    return _timm_network(name, pretrained, **options)


def onto_detector(trained: Model, architecture: Architecture, fresh_head: bool = False) -> Model:
    """Create a detector with the backbone of a trained network of the same variant.

    If the trained network is a detector of the same kind, its other weights are transferred as well. With `fresh_head`,
    the layers that depend on the classes are not transferred.
    """
    if trained.architecture.detector == architecture.detector:
        return transfer(trained, architecture, fresh_head)
    model: Any = architecture.build()
    source = _backbone(trained).state_dict()
    model.backbone.load_state_dict({name: source[name] for name in model.backbone.state_dict()})
    return model


def _backbone(model: Model) -> Any:
    """The backbone of a detector, or the network itself if it is a classifier."""
    return getattr(model, "backbone", model)


def load(source: str | Path) -> Runnable:
    """Load a model file or an exported file by path, or published weights by name (`shvit_s1.in1k`, `timm/NAME`).

    Raises:
        InputError: There is no such file or name, the file is not usable, or the weights are not available.
    """
    return _of_its_task(engines.read(source), source) if engines.is_exported(source) else load_model(source)


def load_model(source: str | Path) -> ModelFile:
    """Like `load`, but refuses exported files. Use it where the network is needed in PyTorch.

    Raises:
        ModelFileError: There is no such file or name, the file is not usable, or the weights are not available.
    """
    name = str(source)
    if engines.is_exported(name):
        raise ModelFileError(f"{name} is an exported file, which can only be run: give the original model file")
    if name in PUBLISHED_TOP1:
        return _published(name)
    if name.startswith(TIMM_PREFIX):
        return _from_timm_hub(name)
    if is_network(name) and not Path(source).exists():
        published = f", or {name}.in1k for published weights" if name in VARIANTS else ""
        raise ModelFileError(f"{name} is a network without weights: give a model file{published}")
    if not Path(source).exists() and not name.endswith(".safetensors"):
        allowed = ", ".join([*PUBLISHED_TOP1, f"{TIMM_PREFIX}NAME"])
        raise ModelFileError(f"{name} is neither a file nor one of the names {allowed}")
    return _of_its_task(load_file(source), source)


def _of_its_task(model: AnyModel, source: str | Path) -> AnyModel:
    """Return the model. Raises ModelFileError if the network or `fit` is not valid for the model's task."""
    try:
        fits = kind_of(model).fits
    except InputError as error:
        raise ModelFileError(f"{source} is not usable: {error}") from None
    if (fit := model.preprocess.fit) not in fits:
        raise ModelFileError(f"{source} is not usable: for {model.task}, fit must be {' or '.join(fits)}, got {fit}")
    return model


def default_preprocess(model: Model, image_size: int | None = None) -> Preprocess:
    """The preprocessing of this network's published weights. `image_size`, if given, replaces their image size."""
    model = _backbone(model)
    if not isinstance(model, TimmModel):
        return Preprocess(image_size or model.image_size)
    cfg = model.pretrained_cfg
    interpolation = cfg["interpolation"] if cfg["interpolation"] in INTERPOLATIONS else "bicubic"
    fits = {mode: fit for fit, mode in CROP_MODES.items()} if cfg["crop_pct"] == 1 else {}
    fit = fits.get(cfg.get("crop_mode", "center"), "crop")
    return Preprocess(image_size or model.image_size, cfg["crop_pct"], interpolation, cfg["mean"], cfg["std"], fit)


def _published(name: str) -> ModelFile:
    from safetensors.torch import load_file as load_weights

    architecture = Architecture(name.removesuffix(".in1k"))
    path = _fetch(name)
    model = architecture.build()
    try:
        model.load_state_dict(from_timm(load_weights(path)))
    except (SafetensorError, ValueError, RuntimeError, OSError) as error:
        reason = one_line(error)[:200]
        raise ModelFileError(f"{path} does not hold the published weights of {name}: {reason}") from None
    return ModelFile(
        model.eval(),
        imagenet_classes(),
        Preprocess(variant_config(architecture.name).image_size),
        metrics={"published_top1": PUBLISHED_TOP1[name] / 100},
        provenance={"source": f"timm/{name}", "license": "MIT"},
    )


def _fetch(name: str) -> Path:
    """Return the path of the weights. Downloads them unless they are in the cache folder."""
    from huggingface_hub import constants, hf_hub_download

    by_hand = Path(constants.HF_HUB_CACHE) / f"{name}.safetensors"
    if by_hand.is_file():
        return by_hand
    url = f"{constants.ENDPOINT}/timm/{name}/resolve/main/model.safetensors"
    with _downloading(name, f"download {url} on a machine with internet access and copy it to {by_hand}"):
        return Path(hf_hub_download(f"timm/{name}", "model.safetensors"))


def _from_timm_hub(name: str) -> ModelFile:
    cfg = pretrained_cfg(name.removeprefix(TIMM_PREFIX))
    if not cfg.has_weights:
        raise ModelFileError(f"timm has no published weights for {name}")
    model = Architecture(name, num_classes=cfg.num_classes).build()
    assert isinstance(model, TimmModel)
    model.network = _timm_network(name, pretrained=True)
    classes = imagenet_classes() if cfg.num_classes == 1000 else tuple(str(i) for i in range(cfg.num_classes))
    return ModelFile(model.eval(), classes, default_preprocess(model), provenance={"source": name})


def _timm_network(name: str, pretrained: bool, **options: Any) -> Any:
    """Call `timm.create_model` for `timm/NAME`. NAME may contain arguments; see `named_arguments`."""
    import timm

    short = name.removeprefix(TIMM_PREFIX)
    cfg, (base, arguments) = pretrained_cfg(short), named_arguments(short)
    advice = "run this on a machine with internet access and copy its Hugging Face cache; the source is"
    with _downloading(name, f"{advice} {cfg.hf_hub_id or cfg.url}"):
        return timm.create_model(base, pretrained, **arguments, **options)


_hub_lock = Lock()


@contextmanager
def _downloading(name: str, advice: str) -> Iterator[None]:
    """Silence the hub client, which logs each retry. Raises WeightsMissing with `advice` if the download fails."""
    logger = logging.getLogger("huggingface_hub")
    with _hub_lock:  # two overlapping calls would not restore the log level
        level = logger.level
        logger.setLevel(logging.ERROR)
        try:
            yield
        except Exception as error:  # the errors depend on the HTTP library that the client uses
            kind, reason = type(error).__name__, one_line(error, first=True)
            why = "no connection" if kind in NO_CONNECTION else kind if reason == kind else f"{kind}: {reason}"
            raise WeightsMissing(
                f"the weights of {name} are not in the cache and cannot be downloaded ({why}): {advice}"
            ) from None
        finally:
            logger.setLevel(level)


def head_prefixes(model: Model) -> tuple[str, ...]:
    """How the names of the classifier's weights begin: its linear layers, without their norms."""
    if model.architecture.detector:
        return getattr(model, "class_layers")  # noqa: B009
    if isinstance(model, TimmModel):
        classifier = model.pretrained_cfg["classifier"]
        names = (classifier,) if isinstance(classifier, str) else classifier
        return tuple(f"network.{name}." for name in names)
    return ("head.linear.", "distillation_head.linear.")
