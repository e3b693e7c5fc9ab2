"""What was asked for, checked and spelled out: the cases that can run here, and what is left out and why."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from .. import engines
from ..engines import EngineError, Exported, Runnable
from ..errors import InputError, check_at_least
from ..model.detector import Detector
from ..model.shvit import SHViT
from .case import PARTS, WHOLE, Case, has_random_weights
from .peers import DEFAULT_MODELS, DETECTION_MODELS, DETECTION_SIZE, EAGER, PROTOCOLS, yardsticks
from .torchvision import TorchvisionDetector

Opened = Runnable | TorchvisionDetector


@dataclass(frozen=True)
class Request:
    """What to compare; what is empty or None is left to the defaults.

    Exported files run as they were written: engines, precisions and image sizes are for the other models.
    """

    models: tuple[str, ...] = ()
    """Variants and `timm/NAME` (random weights), published names, model files, exported files."""
    engines: tuple[str, ...] = ()
    """Default: all that can run; of the default models, which are many, the first of them alone."""
    precisions: tuple[str, ...] = ()
    batch_sizes: tuple[int, ...] = ()
    image_sizes: tuple[int, ...] = ()
    """Sides in pixels; default: each model's own."""
    threads: int | None = None
    """None: as many as each engine takes by itself."""
    device: str = "auto"
    rounds: int = 10
    protocol: str | None = None
    task: str = "classify"
    """`detect` and `segment` time the models as backbones of detectors, and as detectors."""
    profile: bool = False
    """Also find out what each spends its time on, once all are timed."""


@dataclass(frozen=True)
class Omitted:
    """What has no row, and why."""

    what: str
    reason: str


def settle(request: Request) -> Request:
    """The request with the defaults, or the protocol's settings, filled in.

    Raises:
        InputError: A number too small, or a setting that the protocol fixes otherwise.
    """
    check_at_least(1, threads=request.threads, rounds=request.rounds)
    for number in request.batch_sizes:
        check_at_least(1, batch_size=number)
    for side in request.image_sizes:
        check_at_least(32, image_size=side)
    if request.task not in PARTS:
        raise InputError(f"--task must be one of {', '.join(PARTS)}, got {request.task!r}")
    if request.task != "classify":
        return _settle_detectors(request)
    if request.protocol is None:
        device = engines.pick_device(request.device)
        engines.check_threads(request.threads, device)
        request = replace(request, batch_sizes=request.batch_sizes or (16,), device=device)
        if request.models:
            return request
        able = [name for name, kind in engines.ENGINES.items() if not kind.unavailable(device)]
        fastest = able[: 2 if able[0] == "cuda" else 1]  # whose kernels compute SHViT alone
        return replace(request, models=DEFAULT_MODELS, engines=request.engines or tuple(fastest))
    if request.protocol not in PROTOCOLS:
        raise InputError(f"unknown protocol {request.protocol!r}: allowed are {', '.join(PROTOCOLS)}")
    protocol = PROTOCOLS[request.protocol]
    fixed: dict[str, Any] = {
        "engines": (protocol.engine,),
        "precisions": (protocol.precision,),
        "batch_sizes": (protocol.batch_size,),
        "image_sizes": (),
        "threads": protocol.threads,
        "device": protocol.device,
    }
    for name, value in fixed.items():
        if getattr(request, name) not in (getattr(Request, name), value):
            raise InputError(f"--protocol {request.protocol} fixes {_flag(name)}: leave it out")
    try:
        engines.pick_device(protocol.device)
    except EngineError as error:
        raise InputError(f"--protocol {request.protocol} needs {protocol.device}: {error}") from None
    return replace(request, models=request.models or protocol.models, **fixed)


def _settle_detectors(request: Request) -> Request:
    """At the paper's size and numbers of images, where nothing else is asked for."""
    if request.protocol:
        raise InputError("--protocol is for classifiers: leave out --task or --protocol")
    device = engines.pick_device(request.device)
    engines.check_threads(request.threads, device)
    many = 32 if device.startswith("cuda") else 16
    return replace(
        request,
        models=request.models or DETECTION_MODELS[request.task],
        engines=request.engines or (() if request.models else ("torch",)),
        batch_sizes=request.batch_sizes or (many, 1),
        image_sizes=request.image_sizes or (DETECTION_SIZE,),
        device=device,
    )


def plan(request: Request, models: Mapping[str, Opened]) -> tuple[list[Case], list[Omitted]]:
    """Every case that can run here, and what was not asked for by name and cannot.

    Args:
        request: A settled one.
        models: What its models are.

    Raises:
        EngineError: An engine or precision asked for by name cannot run here; the message says what can.
        InputError: An exported file in a protocol, which is for networks.
    """
    pairs_here, left_out = pairs(request)
    cases: dict[Case, None] = {}
    omitted = dict.fromkeys(left_out)
    for name, model in models.items():
        parts = PARTS[request.task]
        if isinstance(model, Exported):
            if request.protocol:
                raise InputError(f"--protocol {request.protocol} is for networks, and {name} is an exported file")
            here, sizes, parts = [(model.engine, model.precision)], (model.preprocess.image_size,), (WHOLE,)
        elif isinstance(model, TorchvisionDetector):
            here, sizes, parts = [(EAGER, "fp32")], request.image_sizes, (WHOLE,)
        else:
            here, sizes = pairs_here, request.image_sizes or (model.preprocess.image_size,)
        for part, size, batch, (engine, precision) in product(parts, sizes, request.batch_sizes, here):
            if reason := _cannot(name, model, request.task if part == WHOLE else "classify", engine, precision):
                what = f"{name}, {engine}" + ("" if engine == "cuda" else f" {precision}")
                omitted[Omitted(what, reason)] = None
            else:
                options = {"task": request.task, "part": part}
                cases[Case(name, engine, precision, batch, size, request.device, request.threads, **options)] = None
    if not cases:
        raise InputError("; ".join(f"{row.what}: {row.reason}" for row in omitted))
    return list(cases), list(omitted)


def pairs(request: Request) -> tuple[list[tuple[str, str]], list[Omitted]]:
    """The pairs of engine and precision that are wanted and can run, and the engines left out.

    Raises:
        EngineError: As of `plan`.
    """
    reasons = {name: kind.unavailable(request.device) for name, kind in engines.ENGINES.items()}
    offers = {name: kind.precisions(request.device) for name, kind in engines.ENGINES.items() if reasons[name] is None}
    offers |= {name: has for name, has in yardsticks(request.device).items() if name in request.engines}
    here = "here can run " + "; ".join(f"{name} in {', '.join(precisions)}" for name, precisions in offers.items())
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
        Omitted(f"{name} {p}", f"{name} on {request.device} has {', '.join(offers[name])}")
        for name in wanted
        for p in request.precisions
        if p not in offers[name]
    ]
    return found, missing + lacking


def _cannot(name: str, model: Opened, task: str, engine: str, precision: str) -> str | None:
    """Why this model has no row of this engine and precision."""
    if isinstance(model, Exported | TorchvisionDetector):
        return None
    network = model.model.backbone if isinstance(model.model, Detector) and task == "classify" else model.model
    if engine == "cuda" and not isinstance(network, SHViT):
        return "its kernels compute SHViT; others run on --engine torch"
    if engine in engines.ENGINES and not engines.allowed_precisions(task, engine, (precision,)):
        has = (f"{name} ({', '.join(precisions)})" for name, precisions in engines.RUN_DETECTORS[task].items())
        return f"models of task {task} run on {', '.join(has)}"
    if precision == "int8" and not has_random_weights(name):
        return "int8 needs calibration images: give the file that shvit export --precision int8 writes"
    return None


def _flag(name: str) -> str:
    return "--" + (name if name in ("threads", "rounds") else name.removesuffix("s")).replace("_", "-")
