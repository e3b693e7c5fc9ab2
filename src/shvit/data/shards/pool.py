"""Long tasks in processes of their own, which tell how far they are."""

import multiprocessing
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar, cast

from ...errors import Failure, InputError

T = TypeVar("T")
Do = Callable[[T], Iterator[int]]
"""Does a task; meanwhile yields how much of it is done since it last said so."""

KEPT = "what is written is kept: start again with the same arguments"


def work(do: Do[T], tasks: Sequence[T], workers: int) -> Generator[int]:
    """Do these tasks in so many processes, each of which takes the next one; 0 works in this one.

    Yields how much is done whenever some is. Closing it ends the processes.

    Raises:
        Failure: A task has failed, or a process has ended.
    """
    if not workers:
        for task in tasks:
            yield from do(task)
        return
    taken = multiprocessing.Value("q", 0)
    running: dict[Connection, BaseProcess] = {}
    try:
        for _ in range(min(workers, len(tasks))):
            reader, writer = multiprocessing.Pipe(duplex=False)
            process = multiprocessing.Process(target=_run, args=(do, tasks, taken, reader, writer), daemon=True)
            process.start()
            writer.close()  # now the process alone holds that end: when it is gone, nothing can be read
            running[reader] = process
        while running:
            for reader in wait(list(running)):
                yield _heard(cast("Connection", reader), running)
    finally:
        for process in running.values():
            process.terminate()
        for reader, process in running.items():
            process.join()
            reader.close()


def _heard(reader: Connection, running: dict[Connection, BaseProcess]) -> int:
    """How much a process says it has done. Raises Failure where it has failed."""
    try:
        message = reader.recv()
    except EOFError:
        process = running.pop(reader)
        process.join()
        reader.close()
        if process.exitcode:
            how = f"exited with code {process.exitcode}"
            if process.exitcode < 0:
                how = f"was killed by {signal.Signals(-process.exitcode).name}"
            hint = "; fewer --workers take less memory" if process.exitcode == -signal.SIGKILL else ""
            raise Failure(f"a worker process {how}{hint}; {KEPT}") from None
        return 0
    if isinstance(message, str):
        raise Failure(f"{message}; {KEPT}")
    return message


def _run(do: Do[T], tasks: Sequence[T], taken: Any, reader: Connection, writer: Connection) -> None:
    """What a process does: task after task, as long as somebody listens."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    reader.close()  # the main process alone holds that end: when it is gone, nothing can be written
    try:
        while (number := _next(taken)) < len(tasks):
            for done in do(tasks[number]):
                writer.send(done)
    except BrokenPipeError:
        return
    except (OSError, InputError, Failure) as error:
        writer.send(str(error))
    except Exception as error:  # it would be lost with the process
        writer.send(f"{type(error).__name__}: {error}")
        raise


def _next(taken: Any) -> int:
    with taken.get_lock():
        taken.value += 1
        return taken.value - 1
