"""The process that has everything imported and forks a job per order, which in turn forks its kernel.

Orders come and events go as JSON messages over one socket. When it closes, the runner is gone: all jobs are
ended, and they end their kernels. The process computes nothing and has one thread, or forking were not safe.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import time
from typing import Any

from fusionlib.press.process import die_with_parent, fork_refusal_here

_PRELOAD = (
    "numpy",
    "torch",
    "fusionlib.bench",
    "fusionlib.methods",
    "fusionlib.ops",
    "fusionlib.zoo.suite",
    "transformers.models.clip.modeling_clip",
    "safetensors.torch",
    "datasets",
    "pandas",
    "PIL.Image",
    "matplotlib.pyplot",
    "IPython.display",
    "ipykernel.ipkernel",
    "ipykernel.kernelapp",
    "ipykernel.zmqshell",
    "fusionlib.press.engine",
    "fusionlib.press.job",
)
MESSAGE = 1 << 17  # bytes, the largest message


def main() -> None:
    """Serve the socket whose file descriptor is the first argument; the second is the runner's process id."""
    die_with_parent(int(sys.argv[2]))  # the imports take seconds, in which nobody would see the socket close
    channel = socket.socket(fileno=int(sys.argv[1]))
    channel.set_inheritable(False)
    os.dup2(2, 1)  # what kernels print goes to the runner's log
    begun = time.monotonic()
    absent = preload()
    _send(
        channel,
        {"event": "ready", "refusal": fork_refusal_here(), "absent": absent, "seconds": time.monotonic() - begun},
    )
    gc.freeze()  # objects made so far are never collected: their pages stay shared with the children
    jobs: dict[int, int] = {}
    while True:
        readable, _, _ = select.select([channel], [], [], 0.1)
        if readable:
            message = channel.recv(MESSAGE)
            if not message:
                break
            order = json.loads(message)
            jobs[_fork_job(order, channel)] = order["id"]
        _reap(jobs, channel)
    _end(jobs)


def preload() -> list[str]:
    """Import everything chapters use; the names of modules that could not be imported, which is no error here."""
    absent = []
    for name in _PRELOAD:
        try:
            importlib.import_module(name)
        except ImportError:
            absent.append(name)
    import torch

    torch.set_num_threads(1)
    return absent


def _fork_job(order: dict[str, Any], channel: socket.socket) -> int:
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        from fusionlib.press.job import Job  # imported long ago

        job = Job(order, lambda event: _send(channel, {**event, "id": order["id"]}), fork=True)
        die_with_parent(parent, signal.SIGTERM)
        job.run()
        status = 0
    finally:
        os._exit(status)


def _reap(jobs: dict[int, int], channel: socket.socket) -> None:
    for pid in list(jobs):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            _send(channel, {"event": "exit", "id": jobs.pop(pid), "code": os.waitstatus_to_exitcode(status)})


def _end(jobs: dict[int, int]) -> None:
    """End all jobs: they are asked first, so that they can end their kernels, and killed after three seconds."""
    for signum, patience in ((signal.SIGTERM, 3.0), (signal.SIGKILL, 1.0)):
        for pid in jobs:
            os.kill(pid, signum)
        limit = time.monotonic() + patience
        while jobs and time.monotonic() < limit:
            for pid in [pid for pid in jobs if os.waitpid(pid, os.WNOHANG)[0]]:
                del jobs[pid]
            time.sleep(0.02)


def _send(channel: socket.socket, event: dict[str, Any]) -> None:
    # if the runner is gone, the loop will see the socket closed
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        channel.send(json.dumps(event).encode())


if __name__ == "__main__":
    main()
