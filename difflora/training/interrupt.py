"""Ctrl-C and SIGTERM as a question asked between two steps."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

_STDERR = 2


class StopRequest:
    """Whether somebody asked the run to stop, and by which signal."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __bool__(self) -> bool:
        return self.signal is not None


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Notes the first SIGINT and the first SIGTERM instead of dying in the middle of a step, and says so on
    stderr; a second one of the same acts at once.

    One of each is one wish: Ctrl-C reaches the whole group of a page, which then ends its worker. Outside the
    main thread (a web UI's worker) signals cannot be caught, and none are.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: FrameType | None) -> None:
        is_first = not request
        request.signal = request.signal or signal.Signals(number)
        signal.signal(number, previous[signal.Signals(number)])
        if is_first:
            _say("stopping after this step; once more stops at once")

    for number in previous:
        signal.signal(number, note)
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _say(text: str) -> None:
    """Past sys.stderr: a handler may come in the middle of a print, which cannot be begun twice."""
    with suppress(OSError):
        os.write(_STDERR, f"\n{text}\n".encode())
