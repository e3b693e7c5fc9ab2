"""Run jobs in worker processes that report their progress."""

import multiprocessing
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar, cast

from ...errors import Failure, InputError

T = TypeVar("T")
Do = Callable[[T], Iterator[int]]
"""Does a job; yields the amount of work done since the last yield."""

KEPT = "finished shards are kept: run the same command again"


def work(do: Do[T], jobs: Sequence[T], workers: int) -> Generator[int]:
    """Run jobs in worker processes; with 0 workers, run them in this process. A free worker takes the next job.

    Yields the amount of work done since the last yield. Closing the generator ends the processes.

    Raises:
        Failure: A job failed, or a process died.
    """
    if not workers:
        for job in jobs:
            yield from do(job)
        return
    started = multiprocessing.Value("q", 0)
    running: dict[Connection, BaseProcess] = {}
    try:
        for _ in range(min(workers, len(jobs))):
            reader, writer = multiprocessing.Pipe(duplex=False)
            process = multiprocessing.Process(target=_run, args=(do, jobs, started, reader, writer), daemon=True)
            process.start()
            writer.close()  # so that reading fails once the process is gone
            running[reader] = process
        while running:
            for reader in wait(list(running)):
                yield _receive(cast("Connection", reader), running)
    finally:
        for process in running.values():
            process.terminate()
        for reader, process in running.items():
            process.join()
            reader.close()


def _receive(reader: Connection, running: dict[Connection, BaseProcess]) -> int:
    """The amount of work that a process reports; 0 when the process ends. Raises Failure if it died or failed."""
    try:
        message = reader.recv()
    except EOFError:
        process = running.pop(reader)
        process.join()
        reader.close()
        code = process.exitcode or 0
        if not code:
            return 0
        death = f"exited with code {code}" if code > 0 else f"was killed by {signal.Signals(-code).name}"
        hint = " (out of memory?): try fewer --workers" if code == -signal.SIGKILL else ""
        message = f"a worker process {death}{hint}"
    if isinstance(message, str):
        raise Failure(f"{message}; {KEPT}")
    return message


def _run(do: Do[T], jobs: Sequence[T], started: Any, reader: Connection, writer: Connection) -> None:
    """The main function of a worker process: does one job after another until none is left or the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    reader.close()  # so that writing fails once the main process is gone
    try:
        while True:
            with started.get_lock():
                number = started.value
                started.value += 1
            if number >= len(jobs):
                return
            for done in do(jobs[number]):
                writer.send(done)
    except BrokenPipeError:
        return
    except (OSError, InputError, Failure) as error:
        writer.send(str(error))
    except Exception as error:  # the message would be lost with the process
        writer.send(f"{type(error).__name__}: {error}")
        raise
