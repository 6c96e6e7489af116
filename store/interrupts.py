"""Ctrl-C, a scheduler's SIGTERM or a closed terminal, at a border of the work instead of in its middle."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stop:
    """Asked between pieces of work; set by the first Ctrl-C, SIGTERM or SIGHUP. A second one interrupts at once."""

    def __init__(self) -> None:
        self._requested = threading.Event()

    @property
    def requested(self) -> bool:
        return self._requested.is_set()

    def request(self) -> None:
        """Let what is in flight be finished, and nothing new be begun."""
        self._requested.set()

    @contextmanager
    def on_interrupt(self, say: Callable[[], None], *, alone: bool = True) -> Iterator[None]:
        """While in this context, these signals ask instead of interrupting; only the main thread can listen.

        Args:
            say: called when the first one comes.
            alone: False where several processes work together, which could not agree on where to stop: then signals
                interrupt.
        """
        if not alone or threading.current_thread() is not threading.main_thread():
            yield
            return

        def on_signal(_number: int, _frame: FrameType | None) -> None:
            if self.requested:
                raise KeyboardInterrupt
            self.request()
            with suppress(OSError):  # the terminal is gone
                say()

        # Under nohup a closed terminal means nothing. SIGINT is heard, though scripts let background jobs ignore it:
        # whoever sends it to one means it.
        nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        heard = [number for number in _SIGNALS if not (nohup and number == signal.SIGHUP)]
        before = [signal.signal(number, on_signal) for number in heard]
        try:
            yield
        finally:
            for number, former in zip(heard, before, strict=True):
                signal.signal(number, former)
