"""Profile a network with PyTorch's profiler: time of each kernel on a GPU, or of each operation on a CPU.

The kernels of the engine cuda are grouped by layer, with the minimum operations and bytes of each layer.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from ..suppress import silent

if TYPE_CHECKING:
    from ..engines.cuda.plan import Launch
    from .machine import Machine

PROFILED_CALLS = 10


@dataclass(frozen=True)
class OpTime:
    """The time of one kernel or operation in a call of the network."""

    what: str
    """Name of the layer if it is known, otherwise the name that the profiler reports."""
    times: int
    """Number of runs per call, rounded."""
    seconds: float
    operations: int | None = None
    bytes: int | None = None

    def floor(self, machine: "Machine", precision: str) -> float | None:
        """The minimum time for these operations and bytes on this machine, in seconds. None if it is unknown."""
        if self.operations is None or self.bytes is None or precision not in machine.products:
            return None
        return max(self.operations / machine.products[precision].rate, self.bytes / machine.copy_memory)


Seen = tuple[str, float]
"""Name and seconds of one run of a kernel."""


def profiled(call: Callable[[], object], device: str, launches: "Sequence[Launch]" = ()) -> list[OpTime]:
    """Time of each kernel or operation in one call, averaged over several calls.

    `call` must be warmed up, and must return only after the device has finished. `launches`, if known, are the kernels
    that `call` launches on a GPU, in order.
    """
    on_gpu = device.startswith("cuda")
    # otherwise a second profile may be empty in a process with CUDA graphs
    os.environ.setdefault("TEARDOWN_CUPTI", "0")
    activity = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
    with silent(), profile(activities=[activity]) as watched:  # the profiler's library prints messages
        for _ in range(PROFILED_CALLS):
            call()
    events: Any = watched.events()
    if not on_gpu:
        return by_name([(event.name, event.self_cpu_time_total / 1e6) for event in events])
    on_device = [event for event in events if event.device_type == DeviceType.CUDA]
    there = [event for event in on_device if not getattr(event, "is_user_annotation", False)]  # spans, not kernels
    there.sort(key=lambda event: event.time_range.start)
    seen = [(event.name, event.time_range.elapsed_us() / 1e6) for event in there]
    return by_layer(seen, launches) if launches else by_name(seen)


def by_name(seen: Sequence[Seen]) -> list[OpTime]:
    """One row for each name, the longest time first."""
    seconds: dict[str, float] = defaultdict(float)
    for name, spent in seen:
        seconds[name] += spent
    times = Counter(name for name, _ in seen)
    rows = [
        OpTime(name, round(times[name] / PROFILED_CALLS), spent / PROFILED_CALLS) for name, spent in seconds.items()
    ]
    return sorted((row for row in rows if row.seconds), key=lambda row: -row.seconds)


def by_layer(seen: Sequence[Seen], launches: "Sequence[Launch]") -> list[OpTime]:
    """One row for each layer, in the order of the network. Rows for other kernels, such as copies, follow.

    If the recorded kernels differ from `launches`, the rows are the same as in `by_name`.
    """
    names = {launch.kernel.__name__ for launch in launches}
    ours = [one for one in seen if one[0] in names]
    expected = [launch.kernel.__name__ for launch in launches] * PROFILED_CALLS
    if [name for name, _ in ours] != expected:
        return by_name(seen)
    return [*_layers(ours, launches), *by_name([one for one in seen if one[0] not in names])]


def _layers(ours: Sequence[Seen], launches: "Sequence[Launch]") -> Iterator[OpTime]:
    groups: dict[str, list[int]] = defaultdict(list)
    for number, launch in enumerate(launches):
        groups[launch.layer].append(number)
    for layer, numbers in groups.items():
        seconds = sum(spent for at, (_, spent) in enumerate(ours) if at % len(launches) in numbers) / PROFILED_CALLS
        operations = sum(launches[number].operations for number in numbers)
        yield OpTime(layer, len(numbers), seconds, operations, sum(launches[number].bytes for number in numbers))
