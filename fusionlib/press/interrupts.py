"""What Ctrl-C does to the command: an exception where there is something to end in order, else the end at once."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import NoReturn

INTERRUPTED = 130  # the exit code by which shells know an interrupt


def interrupt(signum: int, frame: FrameType | None) -> NoReturn:
    """A signal's handler: raises KeyboardInterrupt, but in the middle of an import ends this process with one line.

    There an exception could be lost, or meet C++ that aborts on it; and what has been started by then ends by itself
    when this process is gone.
    """
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            os.write(2, b"interrupted\n")
            os._exit(INTERRUPTED)
        frame = frame.f_back
    raise KeyboardInterrupt


def listen(*signals: int) -> None:
    """Handle these signals so; one that the process was told to ignore, as shells tell those in the background, stays
    ignored."""
    for signum in signals:
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, interrupt)


def ignore(*signals: int) -> None:
    """From now on do nothing on these signals."""
    for signum in signals:
        signal.signal(signum, signal.SIG_IGN)
