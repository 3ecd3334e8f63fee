"""How many cores there are, and the environment of a process that computes on one, beside others that do the same."""

from __future__ import annotations

import os
from pathlib import Path

_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
# What a layer puts out is freed and wanted again a moment later. By default glibc gives a megabyte back to the system
# each time, which must find and clear new pages: a quarter of the time of an evaluation on a virtual machine.
_KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**33)}


def cores() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def one_core() -> dict[str, str]:
    """Ours, with this package first, one computing thread, and freed memory kept unless ours says otherwise."""
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
    fixed = {"PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false"}
    return {**_KEEP_MEMORY, **os.environ, **_ONE_THREAD, **fixed}
