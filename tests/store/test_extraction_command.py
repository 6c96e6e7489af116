"""The command that others run: interrupted, it is let finish."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from store.extraction_command import ExtractionCommand
from store.interrupts import Stop

EXTRACTION = """
import pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
def finish(number, frame):
    (folder / "finished").touch()
    sys.exit(130)
signal.signal(signal.SIGTERM, finish)
(folder / "begun").touch()
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_who_is_interrupted_lets_it_finish(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: signal.Signals
) -> None:
    arguments = [sys.executable, "-c", EXTRACTION, str(tmp_path)]
    monkeypatch.setattr(ExtractionCommand, "arguments", arguments)

    def interrupt_when_it_runs() -> None:
        deadline = time.monotonic() + 30
        while not (tmp_path / "begun").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    waiting = threading.Thread(target=interrupt_when_it_runs)
    former = signal.signal(number, signal.SIG_DFL)  # tests may run under nohup
    try:
        waiting.start()
        with pytest.raises(KeyboardInterrupt):
            ExtractionCommand({}).run()
        waiting.join()
    finally:
        signal.signal(number, former)
    assert (tmp_path / "finished").exists()


def test_what_it_prints_and_how_it_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ExtractionCommand, "arguments", [sys.executable, "-c", "print('x'); raise SystemExit(3)"])
    done = ExtractionCommand({}).run()
    assert (done.returncode, done.stdout) == (3, "x\n")


@pytest.mark.parametrize("ignored", [signal.SIGHUP, signal.SIGINT])
def test_a_closed_terminal_means_nothing_under_nohup(ignored: signal.Signals) -> None:
    former = signal.signal(ignored, signal.SIG_IGN)
    try:
        stop = Stop()
        with stop.on_interrupt(lambda: None):
            os.kill(os.getpid(), ignored)
            assert stop.requested == (ignored == signal.SIGINT)  # which scripts let their background jobs ignore
    finally:
        signal.signal(ignored, former)
