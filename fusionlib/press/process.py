"""When forking is safe, and how a process makes sure that it does not outlive its parent."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

from fusionlib.zoo.environment import one_core

_PR_SET_PDEATHSIG = 1


def fork_refusal() -> str | None:
    """Why kernels cannot be forked on this machine, as the end of a sentence; None if they can be tried to."""
    if os.environ.get("FUSIONLIB_FORK") == "0":
        return "FUSIONLIB_FORK=0 is set"
    if not hasattr(os, "fork"):
        return "this platform has no fork"
    if sys.platform != "linux":
        return f"system libraries are not safe to use after a fork on {sys.platform}"
    return None


def fork_refusal_here() -> str | None:
    """Why this very process, with torch imported, must not be forked; None if it may be."""
    import torch

    if torch.cuda.is_initialized():
        return "CUDA is initialised in the process that would be forked"
    count = len(os.listdir("/proc/self/task"))
    if count > 1:
        names = sorted(path.read_text(encoding="utf-8").strip() for path in Path("/proc/self/task").glob("*/comm"))
        return f"{count} threads are alive in the process that would be forked ({', '.join(names)})"
    return None


def die_with_parent(parent: int, signum: int = signal.SIGKILL) -> None:
    """Ask Linux to send this process a signal when its parent ends; does nothing elsewhere.

    Args:
        parent: process id of the parent as the parent knew it: it may have ended before this call.
        signum: the signal.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signum), 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), signum)


def kernel_environment() -> dict[str, str]:
    """Environment of jobs and kernels: ours, with one computing thread each, so that jobs share the cores.

    The last two keep the process that is forked free of threads (Arrow's allocator) and of CUDA's driver
    (torch then counts devices without initialising it).
    """
    return {
        **one_core(),
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "JE_ARROW_MALLOC_CONF": "background_thread:false",
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
    }
