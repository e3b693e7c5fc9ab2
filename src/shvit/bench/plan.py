"""Select the cases of a request that can run on this machine, and give a reason for each case that cannot."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product

from .. import engines
from ..engines import EngineError, Exported, need_raw_outputs
from ..errors import InputError, check_at_least, few
from ..requests.bench import BenchRequest
from ..tasks import detector_of
from .case import BACKBONE, BACKBONE_TASK, WHOLE, Case, OpenedModel, has_random_weights, is_detector
from .peers import DEFAULT_MODELS, DETECTION_MODELS, DETECTION_SIZE, EAGER, PROTOCOLS, yardsticks
from .torchvision import is_torchvision

FIXED = ("engines", "precisions", "batch_sizes", "image_sizes", "threads", "device")
"""Fields of a request that a protocol sets."""


@dataclass(frozen=True)
class Omitted:
    """An engine or case that has no row in the table, and the reason."""

    what: str
    reason: str


def settle(request: BenchRequest) -> BenchRequest:
    """Fill in the defaults, or the settings of the protocol.

    Raises:
        InputError: A number is too small, or a setting conflicts with the protocol.
    """
    check_at_least(1, threads=request.threads, rounds=request.rounds)
    for number in request.batch_sizes:
        check_at_least(1, batch_size=number)
    for side in request.image_sizes:
        check_at_least(32, image_size=side)
    if request.protocol is not None:
        return _with_protocol(request, request.protocol)
    if request.head is not None and not is_detector(request.task):
        raise InputError("--head works only for detectors: add --task detect or segment, or leave out --head")
    named = [name for name in request.models if has_random_weights(name) and not is_torchvision(name)]
    if request.head is not None and request.models and not named:
        raise InputError(
            "--head selects the detector of networks given by name, such as shvit_s1: leave it out for models with a "
            f"detector of their own, here {few(request.models)}"
        )
    device = engines.pick_device(request.device)
    engines.check_threads(request.threads, device)
    if is_detector(request.task):
        models, fastest = DETECTION_MODELS[request.task], ("torch",)
        batch_sizes, image_sizes = (32 if device.startswith("cuda") else 16, 1), (DETECTION_SIZE,)
    else:
        models, fastest = DEFAULT_MODELS, _fastest(device)
        batch_sizes, image_sizes = (16,), ()
    return replace(
        request,
        models=request.models or models,
        engines=request.engines or (() if request.models else fastest),
        batch_sizes=request.batch_sizes or batch_sizes,
        image_sizes=request.image_sizes or image_sizes,
        device=device,
    )


def _fastest(device: str) -> tuple[str, ...]:
    """The fastest available engine that runs every network, preceded by faster engines that run only some networks.

    Engines for int8 are left out: int8 loses accuracy.
    """
    usable = [name for name, kind in engines.ENGINES.items() if not kind.unavailable(device)]
    here = [name for name in usable if engines.ENGINES[name].precisions(device)[0] != "int8"]
    first = next(index for index, name in enumerate(here) if engines.ENGINES[name].every_network)
    return tuple(here[: first + 1])


def _with_protocol(request: BenchRequest, name: str) -> BenchRequest:
    """Fill in the settings of a protocol. Only the models can be chosen."""
    if is_detector(request.task):
        raise InputError("--protocol works only for classifiers: leave out --task or --protocol")
    if name not in PROTOCOLS:
        raise InputError(f"unknown protocol {name!r}: choose from {', '.join(PROTOCOLS)}")
    protocol = PROTOCOLS[name]
    fixed = {field: getattr(protocol.settings, field) for field in FIXED}
    for field, value in fixed.items():
        if getattr(request, field) not in (getattr(BenchRequest, field), value):
            flag = "--" + (field if field == "threads" else field.removesuffix("s")).replace("_", "-")
            raise InputError(f"--protocol {name} already sets {flag}: remove {flag}")
    try:
        engines.pick_device(protocol.settings.device)
    except EngineError as error:
        raise InputError(f"--protocol {name} needs {protocol.settings.device}: {error}") from None
    return replace(request, models=request.models or tuple(protocol.images_per_second), **fixed)


def plan(request: BenchRequest, models: Mapping[str, OpenedModel]) -> tuple[list[Case], list[Omitted]]:
    """Return the cases that can run here, and the engines and cases that cannot.

    Args:
        request: A settled request.
        models: The opened models of the request, by name.

    Raises:
        EngineError: The user requested an engine or precision that cannot run here. The message lists what can run.
        InputError: A protocol was requested for an exported file, or no case can run.
    """
    pairs_here, left_out = pairs(request)
    cases: dict[Case, None] = {}
    omitted = dict.fromkeys(left_out)
    for name, model in models.items():
        parts = (BACKBONE, WHOLE) if is_detector(request.task) else (WHOLE,)
        if isinstance(model, Exported):
            need_raw_outputs(model, "shvit bench")
            if request.protocol:
                raise InputError(f"--protocol {request.protocol} cannot time exported files, such as {name}")
            here, sizes, parts = [(model.engine, model.precision)], (model.preprocess.image_size,), (WHOLE,)
        elif is_torchvision(name):
            here, sizes, parts = [(EAGER, "fp32")], request.image_sizes, (WHOLE,)
        else:
            here, sizes = pairs_here, request.image_sizes or (model.preprocess.image_size,)
        for part, size, batch, (engine, precision) in product(parts, sizes, request.batch_sizes, here):
            if reason := _cannot(name, model, request.task if part == WHOLE else BACKBONE_TASK, engine, precision):
                omitted[reason] = None
            else:
                options = {"task": request.task, "part": part, "head": request.head}
                cases[Case(name, engine, precision, batch, size, request.device, request.threads, **options)] = None
    if not cases:
        raise InputError("; ".join(f"{row.what}: {row.reason}" for row in omitted))
    return list(cases), list(omitted)


def pairs(request: BenchRequest) -> tuple[list[tuple[str, str]], list[Omitted]]:
    """Return the requested pairs of engine and precision that can run, and the engines and pairs that cannot.

    Raises:
        EngineError: See `plan`.
    """
    reasons = {name: kind.unavailable(request.device) for name, kind in engines.ENGINES.items()}
    offers = {name: kind.precisions(request.device) for name, kind in engines.ENGINES.items() if reasons[name] is None}
    offers |= {name: has for name, has in yardsticks(request.device).items() if name in request.engines}
    here = "available here: " + "; ".join(f"{name} in {', '.join(precisions)}" for name, precisions in offers.items())
    for name in request.engines:
        if name not in offers:
            raise EngineError(f"engine {name!r} cannot run: {reasons.get(name, 'there is no such engine')}; {here}")
    wanted = request.engines or tuple(offers)
    for precision in request.precisions:
        if not any(precision in offers[name] for name in wanted):
            raise EngineError(f"{' and '.join(wanted)} on {request.device} cannot run in {precision!r}; {here}")
    found = [(name, p) for name in wanted for p in offers[name] if p in (request.precisions or offers[name])]
    missing = [Omitted(name, reason) for name, reason in reasons.items() if reason and not request.engines]
    lacking = [
        Omitted(f"{name} {p}", f"{name} on {request.device} supports only {', '.join(offers[name])}")
        for name in wanted
        for p in request.precisions
        if p not in offers[name]
    ]
    return found, missing + lacking


def _cannot(name: str, model: OpenedModel, task: str, engine: str, precision: str) -> Omitted | None:
    """Why this model cannot run with this engine and precision. None if it can."""
    if isinstance(model, Exported) or is_torchvision(name):
        return None
    kind = engines.ENGINES.get(engine)
    network = model.model if task == model.task else model.model.backbone
    if kind and (reason := kind.refuses(network)):
        return Omitted(f"{name}, {engine}", reason)
    what, detector = f"{name}, {engine} {precision}", detector_of(model)
    if kind and is_detector(task) and precision not in kind.runs.get(detector, ()):
        able = (f"{name} ({', '.join(kind.runs[detector])})" for name, kind in engines.runners(model).items())
        return Omitted(what, f"models with detector {detector} run only on {', '.join(able)}")
    if precision == "int8" and not has_random_weights(name):
        return Omitted(what, "int8 needs calibration images: give a file written by shvit export --precision int8")
    return None
