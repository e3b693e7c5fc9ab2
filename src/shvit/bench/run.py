"""Run a benchmark: load every case, time all cases in interleaved rounds, and return one row per case."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any, NamedTuple

import torch

from ..engines import Exported
from ..errors import Failure, InputError, counted
from ..model.architecture import Architecture
from ..model.cost import Cost, cost
from ..model.fuse import fuse
from ..provenance import facts
from ..requests.bench import BenchRequest
from .case import BACKBONE, Case, OpenedModel, Subject, Worker, free_memory, has_random_weights, open_model, own_top1
from .machine import Machine, measure_machine
from .peers import DETECTION_SIZE, PAPER_BACKBONES, PROTOCOLS, Protocol, Top1, published_top1
from .plan import Omitted, plan, settle
from .profile import OpTime
from .timing import Timing, interleave
from .torchvision import is_torchvision

MIN_FREE_MEMORY = 0.3
"""This fraction of the memory that is available at the start stays free: further cases are timed in a later group."""
OnProgress = Callable[[str, int, int], None]
"""Called with the current step, the number of steps done, and the total number of steps."""


@dataclass(frozen=True)
class Row:
    """The measurements of one case."""

    case: Case
    timing: Timing
    memory: int | None
    """Memory in bytes. See `Subject.memory`."""
    cost: Cost | None
    """Cost of one image in the folded network. None for exported files that do not store their architecture."""
    share: float | None
    """Fraction of the machine's peak matmul FLOP/s in this precision. None: unknown."""
    detail: str | None = None
    """See `Subject.detail`."""
    own_top1: Top1 | None = None
    """Accuracy stored in a model file."""
    profile: tuple[OpTime, ...] = ()
    """Time of each kernel or operation. Empty unless the request has `profile`."""

    @property
    def images_per_second(self) -> float:
        """Throughput."""
        return self.case.batch_size / self.timing.median

    @property
    def random_weights(self) -> bool:
        """Whether the weights are random, as they are for all backbones."""
        return has_random_weights(self.case.model) or self.case.part == BACKBONE

    @property
    def paper_milliseconds(self) -> float | None:
        """Milliseconds per image for this backbone and batch size, on the paper's hardware. None: unknown."""
        case = self.case
        on_gpu, on_cpu = PAPER_BACKBONES.get(case.model, (None, None))
        published = {("cuda", 32): on_gpu, ("cpu", 16): on_cpu}
        if case.part != BACKBONE or case.image_size != DETECTION_SIZE or case.precision not in ("fp16", "fp32"):
            return None
        return published.get((case.device.partition(":")[0], case.batch_size))

    @property
    def top1(self) -> Top1 | None:
        """Accuracy at this image size: stored in the model file, or published. None: unknown."""
        if self.own_top1 is not None:
            return self.own_top1 if self.own_top1.image_size == self.case.image_size else None
        return published_top1(self.case.model, self.case.image_size)

    @property
    def random_calibration(self) -> bool:
        """Whether the network was quantized with random images. Then only its speed is meaningful."""
        return self.case.precision == "int8" and has_random_weights(self.case.model)


@dataclass(frozen=True)
class Result:
    """The result of a benchmark."""

    request: BenchRequest
    """The request with all defaults filled in."""
    machine: Machine
    rows: tuple[Row, ...]
    skipped: tuple[Omitted, ...]
    """Engines and cases that cannot run here."""
    failed: tuple[Omitted, ...]
    """Cases that failed or were interrupted."""
    about: Mapping[str, Any]
    """Versions, commit, hardware, command, date."""
    groups: int = 1
    """Number of groups of cases that were timed one after another; 1 if memory could hold all cases at once."""
    interrupted: bool = False
    """Whether Ctrl-C stopped the benchmark early."""

    @property
    def protocol(self) -> Protocol | None:
        """The paper's protocol, if requested."""
        return PROTOCOLS[self.request.protocol] if self.request.protocol else None

    def ratio_to_s1(self, row: Row) -> float | None:
        """Throughput relative to shvit_s1. None if shvit_s1 has no row."""
        s1 = [other for other in self.rows if other.case.model == "shvit_s1"]
        return row.images_per_second / s1[0].images_per_second if s1 else None

    def published_speed(self, row: Row) -> tuple[int, float] | None:
        """The paper's images/s in this protocol, and their ratio to the paper's images/s of shvit_s1. None: unknown."""
        published = self.protocol.images_per_second if self.protocol else {}
        speed = published.get(row.case.model)
        return (speed, speed / published["shvit_s1"]) if speed else None

    def to_dict(self) -> dict[str, Any]:
        """The content of a file in results/: every row with the median of each round, the settings and the machine."""
        fastest = max(self.rows, key=lambda row: row.images_per_second)
        return {
            "what": f"the fastest of {counted(len(self.rows), 'row')}: {fastest.case}",
            "value": fastest.images_per_second,
            "unit": "images/s",
            "threads": self.request.threads,
            "groups": self.groups,
            "request": asdict(self.request),
            "machine": asdict(self.machine),
            "rows": [self._row_to_dict(row) for row in self.rows],
            "skipped": [asdict(omitted) for omitted in self.skipped],
            "failed": [asdict(omitted) for omitted in self.failed],
            **self.about,
        }

    def _row_to_dict(self, row: Row) -> dict[str, Any]:
        speed, ratio = self.published_speed(row) or (None, None)
        paper = {
            "ratio_to_shvit_s1": self.ratio_to_s1(row),
            "paper_images_per_second": speed,
            "paper_ratio_to_shvit_s1": ratio,
        }
        return {
            **asdict(row.case),
            "images_per_second": row.images_per_second,
            "seconds": row.timing.median,
            "p95_seconds": row.timing.p95,
            "spread": row.timing.spread,
            "round_seconds": list(row.timing.rounds),
            "share_of_ceiling": row.share,
            "detail": row.detail,
            "memory_bytes": row.memory,
            "params": row.cost.params if row.cost else None,
            "macs": row.cost.macs if row.cost else None,
            "weights": "random" if row.random_weights else "given",
            "calibration": "random images" if row.random_calibration else None,
            "published_top1": asdict(row.top1) if row.top1 and not row.top1.own else None,
            "own_top1": row.top1.percent if row.top1 and row.top1.own else None,
            **(paper if self.protocol else {}),
            **({"paper_ms_an_image": row.paper_milliseconds} if row.case.part == BACKBONE else {}),
            **({"profile": self._profile_to_dict(row)} if self.request.profile else {}),
        }

    def _profile_to_dict(self, row: Row) -> list[dict[str, Any]]:
        floors = [spent.floor(self.machine, row.case.precision) for spent in row.profile]
        return [{**asdict(spent), "floor_seconds": floor} for spent, floor in zip(row.profile, floors, strict=True)]


def bench(
    request: BenchRequest,
    progress: OnProgress = lambda what, done, total: None,
    wanted: Callable[[Case], bool] = lambda case: True,
) -> Result:
    """Measure the machine, load every wanted case that can run on it, and time the cases in interleaved rounds.

    `progress` is called at each step. `wanted` returns whether to run a case.

    Raises:
        InputError: A requested model, engine or setting does not exist or cannot run here. The message explains why.
        Failure: No case could run.
    """
    request = settle(request)
    side = request.image_sizes[0] if request.image_sizes else None
    models = {name: open_model(name, side, request.task, head=request.head) for name in request.models}
    own = {name: own_top1(name) for name in request.models}
    cases, skipped = plan(request, models)
    cases = [case for case in cases if wanted(case)]
    progress("counting operations", 0, 1)
    del models
    costs, failed = _costs(cases)
    progress("measuring the machine", 0, 1)
    machine = measure_machine(request.threads, request.device)
    waiting = [case for case in cases if case not in failed]
    waiting.sort(key=lambda case: (case.batch_size, case.engine, case.precision))  # time comparable cases together
    min_free, groups, interrupted = MIN_FREE_MEMORY * free_memory(), 0, False
    timed: dict[Case, _Timed] = {}
    try:
        while waiting and not interrupted:
            group, interrupted = _time_group(waiting, min_free, request, failed, progress)
            timed |= group
            groups += 1
    except KeyboardInterrupt:
        if not timed:
            raise
        interrupted = True
    failed |= {case: "interrupted" for case in cases if case not in timed and case not in failed}
    if not timed:
        case, reason = next(iter(failed.items()))
        raise Failure(f"no configuration could run; for example, {case}: {reason}")
    rows = []
    for case in sorted(timed, key=cases.index):
        (subject, timing, profile), total = timed[case], costs[case]
        share = machine.share(case.precision, 2 * total.macs * case.batch_size / timing.median) if total else None
        rows.append(Row(case, timing, subject.memory, total, share, subject.detail, own.get(case.model), profile))
    request = replace(request, rounds=max(len(row.timing.rounds) for row in rows))
    omitted = tuple(Omitted(str(case), reason) for case, reason in failed.items())
    return Result(request, machine, tuple(rows), tuple(skipped), omitted, about(request.device), groups, interrupted)


class _Timed(NamedTuple):
    subject: Worker | Subject
    timing: Timing
    profile: tuple[OpTime, ...]


def _time_group(
    waiting: list[Case], min_free: float, request: BenchRequest, failed: dict[Case, str], progress: OnProgress
) -> tuple[dict[Case, _Timed], bool]:
    """Take cases from `waiting` until less than the fraction `min_free` of memory is free, then time these cases.

    Returns:
        The timed cases, and whether Ctrl-C ended the rounds. Cases are not profiled after Ctrl-C.
    """
    subjects: dict[Case, Worker | Subject] = {}
    left = len(waiting)
    try:
        while waiting and (not subjects or free_memory() > min_free):
            case = waiting.pop(0)
            progress(f"loading {case}", left - len(waiting) - 1, left)
            try:
                # on a GPU, each process would need memory for its own CUDA context
                subjects[case] = Worker(case) if request.device == "cpu" else Subject(case)
            except Failure as failure:
                failed[case] = str(failure)
        done = 0

        def after_round() -> None:
            nonlocal done
            done += 1
            progress("timing", done, request.rounds)

        progress("timing", 0, request.rounds)
        timings, broken = interleave(subjects, request.rounds, after_round)
        interrupted = done < request.rounds
        failed |= broken
        timed = {}
        for case, timing in timings.items():
            profile: tuple[OpTime, ...] = ()
            with suppress(Failure):  # keep the timings if the profiler fails
                profile = tuple(subjects[case].profile()) if request.profile and not interrupted else ()
            timed[case] = _Timed(subjects[case], timing, profile)
        return timed, interrupted
    finally:
        for subject in subjects.values():
            subject.close()


def _costs(cases: list[Case]) -> tuple[dict[Case, Cost | None], dict[Case, str]]:
    """The cost of each case's network, and an error for each case whose network does not support the image size."""

    @cache
    def folded(name: str, size: int | None, task: str, part: str, head: str | None) -> Any:
        return _folded(name, open_model(name, size, task, part, head))

    @cache
    def cost_of(name: str, size: int, *kind: Any) -> Cost | None:
        built_for = size if is_torchvision(name) else None  # other networks are the same at every size
        network = folded(name, built_for, *kind)
        return cost(network, (size, size), name) if network else None

    costs: dict[Case, Cost | None] = {}
    failed: dict[Case, str] = {}
    for case in cases:
        try:
            costs[case] = cost_of(case.model, case.image_size, case.task, case.part, case.head)
        except (InputError, Failure) as error:
            failed[case] = str(error)
    return costs, failed


def _folded(name: str, model: OpenedModel) -> Any:
    """The folded network. For an exported file, a new network of the same architecture. None: unknown."""
    if isinstance(model, Exported):
        described = model.provenance.get("architecture")
        network: Any = Architecture.from_dict(described).build() if described else None
        return network and fuse(network)
    return model if is_torchvision(name) else fuse(model.model)


def about(device: str) -> dict[str, Any]:
    """Versions, commit, command, date and hardware, with the GPU's name."""
    about = facts()
    if device.startswith("cuda"):
        about["hardware"]["gpu"] = torch.cuda.get_device_name(device)
    return about
