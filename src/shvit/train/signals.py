"""Stop signals: Ctrl-C, and the SIGTERM that clusters send before they take a machine away."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def on_stop_signal(stop: Callable[[signal.Signals], None]) -> Iterator[None]:
    """In this context, the first SIGINT or SIGTERM calls `stop`. A SIGINT after that raises KeyboardInterrupt.

    Does nothing outside the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: Any) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        stop(signal.Signals(number))

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
