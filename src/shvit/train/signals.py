"""Being asked to stop: Ctrl-C, and the SIGTERM that clusters send before they take a machine away."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def on_stop_signal(ask: Callable[[signal.Signals], None]) -> Iterator[None]:
    """Inside, the first SIGINT or SIGTERM calls `ask` instead of ending the program; a second SIGINT ends it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def heed(number: int, frame: Any) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        ask(signal.Signals(number))

    before = {number: signal.signal(number, heed) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
