"""The number of CPU threads that torch uses for calls from one thread, independent of calls from other threads."""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
from threadpoolctl import ThreadpoolController


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Set the number of CPU threads that torch uses for calls from this thread. None changes nothing.

    `torch.set_num_threads` is not used, because it also sets the number for threads that have not used torch yet. If
    two calls overlapped, the number of one call would stay set for threads that start later.
    """
    now = torch.get_num_threads()  # in a new thread, this also initializes the number
    if count in (None, now):
        yield
        return
    set_mkl = _set_mkl_threads()
    with _openmp().limit(limits=count):
        before = set_mkl(count)
        try:
            yield
        finally:
            set_mkl(before)


@cache
def _openmp() -> ThreadpoolController:
    """Controls OpenMP, whose number of threads is a setting of the calling thread."""
    return ThreadpoolController().select(user_api="openmp")


@cache
def _set_mkl_threads() -> Callable[[int], int]:
    """MKL's function that sets the calling thread's number and returns the previous one. 0: the process's number.

    MKL uses OpenMP's number only until `torch.set_num_threads` is called. Without MKL, the setter does nothing.
    """
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    if not library.exists():
        return lambda count: 0
    return getattr(ctypes.CDLL(str(library)), "MKL_Set_Num_Threads_Local", lambda count: 0)
