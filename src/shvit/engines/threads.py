"""How many CPU threads torch uses in one thread of the program, whatever it uses in the others."""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
from threadpoolctl import ThreadpoolController


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Inside, what this thread calls uses so many CPU threads; None leaves the number as it is.

    `torch.set_num_threads` also sets the number that threads start with which have not used torch yet. So two calls
    that overlap leave later threads with what one of them had set.
    """
    if count in (None, torch.get_num_threads()):  # asked in any case: torch sets a new thread's number when first asked
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
    """OpenMP, whose number of threads is that of the calling thread."""
    return ThreadpoolController().select(user_api="openmp")


@cache
def _set_mkl_threads() -> Callable[[int], int]:
    """MKL's function for the calling thread; gives the number before. 0 is the number of the process.

    MKL follows OpenMP only until `torch.set_num_threads` is called. Where torch has no MKL, this does nothing.
    """
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    if not library.exists():
        return lambda count: 0
    return getattr(ctypes.CDLL(str(library)), "MKL_Set_Num_Threads_Local", lambda count: 0)
