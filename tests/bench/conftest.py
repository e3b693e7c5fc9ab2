"""A machine that is measured in no time, and a result with all kinds of rows."""

from itertools import product

import pytest

from shvit.bench import machine
from shvit.bench.machine import Machine, Product
from shvit.bench.peers import DEFAULT_MODELS
from shvit.bench.plan import Omitted, Request
from shvit.bench.run import Result, Row
from shvit.bench.subject import Case
from shvit.bench.timing import Timing
from shvit.model.cost import Cost


@pytest.fixture
def quick_machine(monkeypatch):
    """Real measurements, of small matrices."""
    monkeypatch.setattr(machine, "CPU_SIDES", (32, 64))
    monkeypatch.setattr(machine, "MEMORY_BYTES", 2**18)
    monkeypatch.setattr(machine, "SECONDS", 0.001)


ABOUT = {
    "versions": {},
    "commit": None,
    "hardware": {"processor": "Intel(R) Xeon(R) Gold 5218R CPU @ 2.10GHz", "cores": 20, "system": "Linux"},
    "command": "shvit bench",
    "date": "2026-11-22T12:00:00+00:00",
}


@pytest.fixture
def made_up():
    """Makes a result whose rows get slower one by one, and with size."""

    def make(models=DEFAULT_MODELS, sizes=(224, 256), precisions=("fp32",), protocol=None) -> Result:
        rows = []
        for (number, model), size, precision in product(enumerate(models), sizes, precisions):
            seconds = 0.01 * (1 + 0.02 * number) * (size / 224) ** 2
            case = Case(model, "torch", precision, 16, size, "cpu", 1)
            rows.append(Row(case, Timing((seconds,), 2 * seconds), 5 * 10**7, Cost(model, 10**6, 10**8, 1), 0.5))
        request = Request(models, threads=1, protocol=protocol, rounds=1)
        ceiling = Machine({"fp32": Product(1e11, 256, "torch.mm")}, 5e10, 1e10)
        return Result(request, ceiling, tuple(rows), (Omitted("coreml", "not on Linux"),), (), ABOUT)

    return make
