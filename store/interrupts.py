"""Stopping on Ctrl-C, a scheduler's SIGTERM or a closed terminal, but only between two pieces of work."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stop:
    """A request to stop, checked between pieces of work. The first signal sets it, a second one interrupts at once."""

    def __init__(self) -> None:
        self._requested = threading.Event()

    @property
    def requested(self) -> bool:
        return self._requested.is_set()

    def request(self) -> None:
        """Request a stop: work in flight is to be finished, and nothing new to be started."""
        self._requested.set()

    @contextmanager
    def on_interrupt(self, say: Callable[[], None], *, single_process: bool = True) -> Iterator[None]:
        """In this context, SIGINT, SIGTERM and SIGHUP request a stop instead of interrupting.

        Only the main thread can handle signals; in any other thread this does nothing.

        Args:
            say: called at the first signal.
            single_process: False where several processes work together, which could not agree on where to stop; signals
                then interrupt as usual.
        """
        if not single_process or threading.current_thread() is not threading.main_thread():
            yield
            return

        def on_signal(_number: int, _frame: FrameType | None) -> None:
            if self.requested:
                raise KeyboardInterrupt
            self.request()
            with suppress(OSError):  # the terminal is gone
                say()

        # Under nohup, a closed terminal must not stop the work. SIGINT is handled even though shell scripts make
        # background jobs ignore it: whoever sends it to such a job means it.
        nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        heard = [number for number in _SIGNALS if not (nohup and number == signal.SIGHUP)]
        before = [signal.signal(number, on_signal) for number in heard]
        try:
            yield
        finally:
            for number, former in zip(heard, before, strict=True):
                signal.signal(number, former)
