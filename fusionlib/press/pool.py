"""Processes that run jobs: forked from a warm one, or each started anew. Both give the same events."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol

from fusionlib.press.process import fork_refusal, kernel_environment
from fusionlib.press.zygote import MESSAGE

Events = SimpleQueue[dict[str, Any]]


class Pool(Protocol):
    """Runs jobs in processes of their own.

    Events are dictionaries with ``event`` and, where they concern a job, ``id``: ``cell`` (``cell``, ``of``),
    ``finished`` (``failure``, ``seconds``), ``exit`` (``code``), and ``lost`` when the pool itself has died.
    """

    def start(self, order: dict[str, Any]) -> None:
        """Start a job; see :class:`fusionlib.press.job.Job` for the order."""
        ...

    def stop(self) -> None:
        """End whatever runs, kernels included, and wait until it is gone."""
        ...

    def last_words(self) -> str:
        """The last lines that processes wrote to stderr."""
        ...


def open_pool(root: Path, events: Events) -> tuple[Pool, str | None]:
    """A pool that forks if that is safe here; else one that does not, and the reason why."""
    refusal = fork_refusal()
    if refusal is None:
        pool = ForkPool(root, events)
        refusal = pool.wait_until_ready()
        if refusal is None:
            return pool, None
        pool.stop()
    return OrdinaryPool(root, events), refusal


class ForkPool:
    """Jobs forked from one process that has torch and transformers imported (``fusionlib.press.zygote``)."""

    def __init__(self, root: Path, events: Events):
        self._events = events
        self._log = _Log()
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "fusionlib.press.zygote", str(theirs.fileno()), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=self._log.file,
            stderr=self._log.file,
            pass_fds=[theirs.fileno()],
            env=kernel_environment(),
            cwd=root,
            start_new_session=True,  # Ctrl-C in the terminal is for the runner alone
        )
        theirs.close()
        self._reader = threading.Thread(target=self._read, daemon=True)

    def wait_until_ready(self) -> str | None:
        """Wait for the imports; None if forking is safe, else why it is not."""
        try:
            event = self._receive()
        except KeyboardInterrupt:
            self._process.kill()  # it has no jobs yet, and would notice only after its imports
            self.stop()
            raise
        if event is None:
            return f"the process that would be forked ended while it started: {self.last_words()}"
        if event["refusal"] is None:
            self._reader.start()
        return event["refusal"]

    def start(self, order: dict[str, Any]) -> None:
        """See :class:`Pool`."""
        # if it has died, the reader has put, or is about to put, the event that says so
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._channel.send(json.dumps(order).encode())

    def stop(self) -> None:
        """See :class:`Pool`."""
        self._channel.shutdown(socket.SHUT_RDWR)
        try:
            self._process.wait(timeout=6)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._reader.is_alive():
            self._reader.join(timeout=2)
        self._channel.close()
        self._log.close()

    def last_words(self) -> str:
        """See :class:`Pool`."""
        return self._log.tail()

    def _receive(self) -> dict[str, Any] | None:
        try:
            message = self._channel.recv(MESSAGE)
        except OSError:
            return None
        return json.loads(message) if message else None

    def _read(self) -> None:
        while (event := self._receive()) is not None:
            self._events.put(event)
        self._events.put({"event": "lost"})


class OrdinaryPool:
    """Jobs in fresh interpreters, whose kernels are fresh interpreters again: slower, but safe everywhere."""

    def __init__(self, root: Path, events: Events):
        self._root = root
        self._events = events
        self._log = _Log()
        self._running: dict[int, subprocess.Popen[str]] = {}

    def start(self, order: dict[str, Any]) -> None:
        """See :class:`Pool`."""
        group: dict[str, Any] = (
            {"creationflags": getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)}
            if os.name == "nt"
            else {"start_new_session": True}
        )
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "fusionlib.press.job"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log.file,
            text=True,
            encoding="utf-8",
            env=kernel_environment(),
            cwd=self._root,
            **group,
        )
        self._running[order["id"]] = process
        threading.Thread(target=self._follow, args=(order["id"], process), daemon=True).start()
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # if it died at once, its follower says so
            process.stdin.write(json.dumps(order) + "\n")
            process.stdin.flush()

    def stop(self) -> None:
        """See :class:`Pool`."""
        for process in self._running.values():
            assert process.stdin is not None
            process.stdin.close()  # the job takes this as the end of the runner
        for process in self._running.values():
            try:
                process.wait(timeout=6)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._log.close()

    def last_words(self) -> str:
        """See :class:`Pool`."""
        return self._log.tail()

    def _follow(self, identity: int, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                self._events.put({**json.loads(line), "id": identity})
        self._events.put({"event": "exit", "id": identity, "code": process.wait()})


class _Log:
    """A temporary file that takes what processes write to stderr."""

    def __init__(self) -> None:
        self.file = tempfile.TemporaryFile()  # noqa: SIM115  (closed by close)

    def tail(self) -> str:
        # pread: the file's position is shared with the processes that are writing
        size = os.fstat(self.file.fileno()).st_size
        self.file.seek(max(0, size - 4000))
        text = self.file.read().decode(errors="replace")
        self.file.seek(0, os.SEEK_END)
        return "\n".join(text.splitlines()[-6:]) or "nothing."

    def close(self) -> None:
        self.file.close()
