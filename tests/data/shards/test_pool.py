"""Worker processes that fail say why."""

import os
import signal

import pytest

from shvit.data.shards.pool import work
from shvit.errors import Failure


def raising(task):
    yield 1
    raise ZeroDivisionError(f"in {task}")


def killed(task):
    yield 1
    os.kill(os.getpid(), task)


def exits(task):
    yield 1
    os._exit(task)


@pytest.mark.parametrize(
    ("do", "task", "reason", "for_memory"),
    [
        (raising, "a.tar", "^ZeroDivisionError: in a.tar; finished shards are kept", False),
        (killed, signal.SIGKILL, r"worker process was killed by SIGKILL .*try fewer --workers", True),
        (killed, signal.SIGSEGV, "worker process was killed by SIGSEGV; finished shards", False),
        (exits, 7, "worker process exited with code 7; finished shards", False),
    ],
)
def test_the_cause_is_told(do, task, reason, for_memory):
    with pytest.raises(Failure, match=reason) as failure:
        list(work(do, [task], 1))
    assert ("memory" in str(failure.value)) == for_memory
