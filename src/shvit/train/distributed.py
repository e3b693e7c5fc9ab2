"""The processes that train one network together, as torchrun starts them; one process is a world of one."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import uuid4

import torch
from torch import distributed, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from ..errors import Failure, InputError, notice, one_line
from ..model.detector import Detector

LONGEST_START = timedelta(minutes=30)
"""From the first process's start to the last one's."""
LONGEST_WAIT = timedelta(hours=2)
"""For another process. One that is lost is noticed at once; one may read all images of a data set for the others."""


NUMBERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
VARIABLES = (*NUMBERS, "MASTER_ADDR", "MASTER_PORT")
"""What torchrun sets in the environment of each process."""


@dataclass(frozen=True)
class World:
    """Which of how many processes this is. Inside `joined`, they can speak to one another."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Among the processes of this machine: which of its GPUs is this one's."""

    @classmethod
    def from_environment(cls) -> "World":
        """As torchrun sets it; one process where nothing is set, or WORLD_SIZE is 1. An empty variable is not set.

        Raises:
            InputError: Variables are missing, no whole numbers, or contradict each other.
        """
        given = {name: value for name in VARIABLES if (value := os.environ.get(name, "").strip())}
        numbers = {name: _whole(name, given[name]) for name in NUMBERS if name in given}
        if not numbers:  # MASTER_ADDR and MASTER_PORT alone say only where processes would meet
            return cls()
        missing = [name for name in VARIABLES if name not in given]
        if missing and numbers.get("WORLD_SIZE") != 1:
            raise InputError(
                f"the environment has {', '.join(numbers)}, as for one of several processes, but not "
                f"{', '.join(missing)}: start training with torchrun, or unset {', '.join(numbers)}"
            )
        world = cls(numbers.get("RANK", 0), numbers["WORLD_SIZE"], numbers.get("LOCAL_RANK", 0))
        for name, rank in (("RANK", world.rank), ("LOCAL_RANK", world.local_rank)):
            if rank >= world.size:
                raise InputError(f"{name} {rank} in the environment must be below WORLD_SIZE, which is {world.size}")
        return world

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def device(self, kind: str) -> str:
        """This process's own of the devices of a kind: `cuda` is `cuda:1` for the second process of a machine.

        Raises:
            InputError: There are more processes than GPUs, or all are to take the same one.
        """
        if self.size == 1 or not kind.startswith("cuda"):
            return kind
        if kind != "cuda":
            raise InputError(f"device {kind} is one GPU for {self.size} processes: --device cuda gives each its own")
        if self.local_rank >= (gpus := torch.cuda.device_count()):
            raise InputError(f"there are more processes than the {gpus} GPUs here: --nproc-per-node {gpus}")
        return f"cuda:{self.local_rank}"

    @contextmanager
    def joined(self, device: str) -> Iterator[None]:
        """Connected to the others: by NCCL for what lies on GPUs, by Gloo for the rest.

        Raises:
            Failure: Another process was lost, or did not come.
        """
        if self.size == 1:
            yield
            return
        on_gpu = torch.device(device).type == "cuda"
        if on_gpu:
            torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
        group: dict[str, Any] = {"rank": self.rank, "world_size": self.size, "timeout": LONGEST_WAIT}
        if "TORCHELASTIC_RUN_ID" not in os.environ:  # started by hand: the others may be forgotten
            meet = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
            notice(f"process {self.rank} of {self.size} waits for the others at {meet}")
        try:
            store, _, _ = next(rendezvous("env://"))
            store = distributed.PrefixStore(_meet(store, self.rank, self.size), store)
            distributed.init_process_group(backend, store=store, **group)
            yield
        except (distributed.DistBackendError, RuntimeError) as error:
            if isinstance(error, Failure) or not _lost_connection(error):
                raise
            raise Failure(
                f"process {self.rank} of {self.size} lost another one ({one_line(error, first=True)}); "
                "the last state is kept"
            ) from error
        finally:
            if distributed.is_initialized():
                distributed.destroy_process_group()

    def wrap(self, model: nn.Module) -> nn.Module:
        """The network whose gradients are the mean over all processes, and whose buffers are those of the first."""
        if self.size == 1:
            return model
        spare = isinstance(model, Detector)  # timm's backbones have layers behind the last map that is taken
        return DistributedDataParallel(model, find_unused_parameters=spare)

    def without_sync(self, network: Any) -> AbstractContextManager[None]:
        """Inside, gradients of a wrapped network add up in this process alone."""
        return network.no_sync() if self.size > 1 else nullcontext()

    def sum(self, *values: float) -> list[float]:
        """Over all processes."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        distributed.all_reduce(total)
        return total.tolist()

    def gather(self, thing: Any) -> list[Any]:
        """Every process's thing, by rank."""
        if self.size == 1:
            return [thing]
        things: list[Any] = [None] * self.size
        distributed.all_gather_object(things, thing)
        return things

    def first(self, make: Callable[[], Any]) -> Any:
        """What the first process makes, in all of them; or the error that it raises."""
        if self.size == 1:
            return make()
        made, error = None, None
        if self.leads:
            try:
                made = make()
            except Exception as raised:  # whatever it is, the others wait for it
                error = raised
        things = [made, error]
        distributed.broadcast_object_list(things)
        if (error := error or things[1]) is not None:
            raise error
        return things[0]

    def begin(self, run: str) -> None:
        """Tell this process, and those that torchrun may start anew, that a run has begun."""
        if (store := _launch()) is not None:
            store.set(f"begun/{run}", "")

    def has_begun(self, run: str) -> bool:
        """Whether `begin` was told so since torchrun was called."""
        store = _launch()
        return store is not None and store.check([f"begun/{run}"])

    def share_buffers(self, *models: nn.Module) -> None:
        """Those of the first process, such as the statistics of norms, in all of them."""
        if self.size > 1:
            for model in models:
                for buffer in model.buffers():
                    distributed.broadcast(buffer, 0)


def _whole(name: str, text: str) -> int:
    if not text.isdecimal() or (name == "WORLD_SIZE" and int(text) < 1):
        least = 1 if name == "WORLD_SIZE" else 0
        raise InputError(f"{name} in the environment must be a whole number of at least {least}, got {text!r}")
    return int(text)


def _meet(store: distributed.Store, rank: int, size: int) -> str:
    """A name that all processes of this start have in common, and none of an earlier one.

    torchrun keeps one store while it starts processes anew, and what processes of an earlier start wrote there, such as
    their addresses, would be taken for that of the present ones.
    """
    if rank > 0:
        mine = uuid4().hex
        store.set(f"hello/{rank}", mine)
        name = store.get(f"answer/{mine}").decode()  # waits for it
        store.set(f"{name}/{rank}", "here")
        return name
    name, missing = uuid4().hex, set(range(1, size))
    deadline = time.monotonic() + LONGEST_START.total_seconds()
    while missing:
        if time.monotonic() > deadline:
            raise Failure(f"processes {', '.join(map(str, sorted(missing)))} of {size} did not come")
        for other in list(missing):
            if store.check([f"hello/{other}"]):
                store.set(f"answer/{store.get(f'hello/{other}').decode()}", name)
            if store.check([f"{name}/{other}"]):
                missing.remove(other)
        time.sleep(0.01)
    return name


def _launch() -> distributed.Store | None:
    """torchrun's own store, which outlives the processes that it starts; None where there is none."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    return next(rendezvous("env://"))[0]


def _lost_connection(error: BaseException) -> bool:
    if isinstance(error, distributed.DistStoreError | distributed.DistNetworkError):
        return True
    text = str(error)
    return any(
        sign in text for sign in ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL")
    )
