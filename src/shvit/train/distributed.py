"""Distributed training: the process group that torchrun starts."""

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

from ..errors import Failure, InputError, counted, notice, one_line

START_TIMEOUT = timedelta(minutes=30)
"""Maximum time between the start of the first process and the start of the last one."""
TIMEOUT = timedelta(hours=2)
"""Maximum time to wait for another process, long enough to read a whole dataset. A lost process ends the wait."""
RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
VARIABLES = (*RANK_VARIABLES, "MASTER_ADDR", "MASTER_PORT")
"""Environment variables that torchrun sets for each process."""


@dataclass(frozen=True)
class ProcessGroup:
    """The rank of this process among all training processes. Inside `connected`, the processes can communicate."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Rank among the processes of this machine. It is also the index of the process's GPU."""

    @classmethod
    def from_environment(cls) -> "ProcessGroup":
        """Read torchrun's variables. If none are set, there is a single process. Empty variables count as not set.

        Raises:
            InputError: Variables are missing, are not whole numbers, or contradict each other.
        """
        given = {name: value for name in VARIABLES if (value := os.environ.get(name, "").strip())}
        numbers = {name: _whole(name, given[name]) for name in RANK_VARIABLES if name in given}
        if not numbers:  # MASTER_ADDR and MASTER_PORT alone do not start distributed training
            return cls()
        missing = [name for name in VARIABLES if name not in given]
        if missing and numbers.get("WORLD_SIZE") != 1:
            raise InputError(
                f"distributed training needs more environment variables (set: {', '.join(numbers)}; missing: "
                f"{', '.join(missing)}): start training with torchrun, or unset {', '.join(numbers)}"
            )
        size, ranks = numbers["WORLD_SIZE"], {name: numbers.get(name, 0) for name in ("RANK", "LOCAL_RANK")}
        for name, rank in ranks.items():
            if rank >= size:
                raise InputError(f"{name} {rank} in the environment must be less than WORLD_SIZE {size}")
        return cls(ranks["RANK"], size, ranks["LOCAL_RANK"])

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints output."""
        return self.rank == 0

    def device(self, kind: str) -> str:
        """The device of this process: `cuda` becomes `cuda:1` for the second process of a machine.

        Raises:
            InputError: There are more processes than GPUs, or all processes would use the same GPU.
        """
        if self.size == 1 or not kind.startswith("cuda"):
            return kind
        if kind != "cuda":
            raise InputError(
                f"device {kind} names a single GPU, but there are {self.size} processes: use --device cuda to give "
                "each its own"
            )
        if self.local_rank >= (gpus := torch.cuda.device_count()):
            raise InputError(f"more processes than this machine's {counted(gpus, 'GPU')}: use --nproc-per-node {gpus}")
        return f"cuda:{self.local_rank}"

    @contextmanager
    def connected(self, device: str) -> Iterator[None]:
        """Connect to the other processes: with NCCL for GPU tensors and Gloo for everything else.

        Raises:
            Failure: Another process was lost, or did not start.
        """
        if self.size == 1:
            yield
            return
        on_gpu = torch.device(device).type == "cuda"
        if on_gpu:
            torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
        group: dict[str, Any] = {"rank": self.rank, "world_size": self.size, "timeout": TIMEOUT}
        if "TORCHELASTIC_RUN_ID" not in os.environ:  # started by hand: the other processes may be missing
            address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
            notice(f"process {self.rank} of {self.size} is waiting for the other processes at {address}")
        try:
            store, _, _ = next(rendezvous("env://"))
            store = distributed.PrefixStore(_agree_on_name(store, self.rank, self.size), store)
            distributed.init_process_group(backend, store=store, **group)
            yield
        except RuntimeError as error:
            if isinstance(error, Failure) or not _lost_connection(error):
                raise
            raise Failure(
                f"process {self.rank} of {self.size} lost the connection to another process "
                f"({one_line(error, first=True)}); the last checkpoint is kept"
            ) from error
        finally:
            if distributed.is_initialized():
                distributed.destroy_process_group()

    def wrap(self, model: nn.Module, unused_parameters: bool) -> nn.Module:
        """Wrap a network in DDP, which averages gradients and copies the buffers of rank 0 to the other processes."""
        if self.size == 1:
            return model
        return DistributedDataParallel(model, find_unused_parameters=unused_parameters)

    def without_sync(self, network: Any) -> AbstractContextManager[None]:
        """In this context, gradients accumulate in each process and are not averaged over processes."""
        return network.no_sync() if self.size > 1 else nullcontext()

    def sum(self, *values: float) -> list[float]:
        """The sums over all processes."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        distributed.all_reduce(total)
        return total.tolist()

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in the order of their ranks."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, value)
        return values

    def on_main(self, make: Callable[[], Any]) -> Any:
        """Call `make` in the main process, and return its result (or raise its error) in all processes."""
        if self.size == 1:
            return make()
        outcome: list[Any] = [None, None]
        if self.is_main:
            try:
                outcome[0] = make()
            except Exception as error:  # any error must reach the other processes, which wait for the result
                outcome[1] = error
        distributed.broadcast_object_list(outcome)
        result, error = outcome
        if error is not None:
            raise error
        return result

    def mark_begun(self, run: str) -> None:
        """Record that a run has begun. The record is kept when torchrun restarts the processes."""
        if (store := _agent_store()) is not None:
            store.set(f"begun/{run}", "")

    def has_begun(self, run: str) -> bool:
        """Whether `mark_begun` was called for this run since torchrun was started."""
        store = _agent_store()
        return store is not None and store.check([f"begun/{run}"])

    def share_buffers(self, *models: nn.Module) -> None:
        """Copy the buffers of the first process, such as BatchNorm statistics, to all processes."""
        if self.size > 1:
            for model in models:
                for buffer in model.buffers():
                    distributed.broadcast(buffer, 0)


def _whole(name: str, text: str) -> int:
    minimum = 1 if name == "WORLD_SIZE" else 0
    if not text.isdecimal() or int(text) < minimum:
        raise InputError(f"{name} in the environment must be a whole number of at least {minimum}, got {text!r}")
    return int(text)


def _agree_on_name(store: distributed.Store, rank: int, size: int) -> str:
    """Return a new name that all current processes share.

    When torchrun restarts processes, it keeps its store, which then has outdated entries such as addresses.
    """
    if rank > 0:
        mine = uuid4().hex
        store.set(f"hello/{rank}", mine)
        name = store.get(f"answer/{mine}").decode()  # blocks until set
        store.set(f"{name}/{rank}", "here")
        return name
    name, missing = uuid4().hex, set(range(1, size))
    deadline = time.monotonic() + START_TIMEOUT.total_seconds()
    while missing:
        if time.monotonic() > deadline:
            raise Failure(f"processes {', '.join(map(str, sorted(missing)))} of {size} did not start")
        for other in list(missing):
            if store.check([f"hello/{other}"]):
                store.set(f"answer/{store.get(f'hello/{other}').decode()}", name)
            if store.check([f"{name}/{other}"]):
                missing.remove(other)
        time.sleep(0.01)
    return name


def _agent_store() -> distributed.Store | None:
    """torchrun's own store, which outlives the training processes. None without torchrun."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    return next(rendezvous("env://"))[0]


def _lost_connection(error: BaseException) -> bool:
    signs = "Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL"
    kinds = distributed.DistStoreError, distributed.DistNetworkError
    return isinstance(error, kinds) or any(sign in str(error) for sign in signs)
