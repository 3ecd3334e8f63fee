"""What a fusion costs: wall time, and the most memory it took beyond its inputs."""

from __future__ import annotations

import ctypes
import gc
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Generic, TypeVar

import torch

T = TypeVar("T")
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Measured(Generic[T]):
    """The result of a call, with its wall time and peak memory.

    Attributes:
        value: what the call returned.
        seconds: wall time, with the device's work finished.
        peak_memory: bytes at the highest point beyond those in use before the call. On CUDA exact, as the
            allocator counts; on Linux the rise of the process's resident memory, after what the allocator kept
            from before was given back; None elsewhere.
    """

    def __init__(self, call: Callable[[], T], device: torch.device) -> None:
        before = _reset(device)
        start = time.perf_counter()
        self.value = call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        self.seconds = time.perf_counter() - start
        after = _peak(device)
        self.peak_memory = None if before is None or after is None else max(0, after - before)


def _reset(device: torch.device) -> int | None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    _give_back()
    try:
        _CLEAR.write_text("5", encoding="utf-8")  # sets the high-water mark to what is resident now
    except OSError:
        return None
    return _resident("VmHWM")


def _give_back() -> None:
    """What was freed goes back to the system, so that memory counts as taken when it is taken again."""
    if sys.platform == "linux":
        gc.collect()
        with suppress(AttributeError):  # a C library other than GNU's may have no such function
            ctypes.CDLL(None).malloc_trim(0)


def _peak(device: torch.device) -> int | None:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _resident("VmHWM")


def _resident(field: str) -> int | None:
    try:
        lines = _STATUS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    (line,) = [line for line in lines if line.startswith(f"{field}:")] or [None]
    return None if line is None else int(line.split()[1]) * 1024
