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

from ..errors import Failure, InputError
from ..model.detector import Detector

LONGEST_START = timedelta(minutes=30)
"""From the first process's start to the last one's."""
LONGEST_WAIT = timedelta(hours=2)
"""For another process. One that is lost is noticed at once; one may read all images of a data set for the others."""


@dataclass(frozen=True)
class World:
    """Which of how many processes this is. Inside `joined`, they can speak to one another."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Among the processes of this machine: which of its GPUs is this one's."""

    @classmethod
    def from_environment(cls) -> "World":
        """As torchrun tells it; alone where it tells nothing."""
        told = {"rank": "RANK", "size": "WORLD_SIZE", "local_rank": "LOCAL_RANK"}
        return cls(**{key: int(os.environ[name]) for key, name in told.items() if name in os.environ})

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
        try:
            store, _, _ = next(rendezvous("env://"))
            store = distributed.PrefixStore(_meet(store, self.rank, self.size), store)
            distributed.init_process_group(backend, store=store, **group)
            yield
        except (distributed.DistBackendError, RuntimeError) as error:
            if isinstance(error, Failure) or not _lost_connection(error):
                raise
            raise Failure(
                f"process {self.rank} of {self.size} lost another one ({str(error).splitlines()[0]}); "
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
