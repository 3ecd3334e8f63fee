"""Makes the fine-tunes that a suite lacks: side by side in worker processes, one computing thread each."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any

from fusionlib.core import CheckpointError, FusionError, UnknownName, suggest
from fusionlib.zoo import names
from fusionlib.zoo.embedded import check_readable
from fusionlib.zoo.environment import cores, one_core
from fusionlib.zoo.files import check_writable, home
from fusionlib.zoo.job import Job, plan
from fusionlib.zoo.progress import Progress


def prepare(
    backbone: str = "tiny-clip",
    tasks: str | Iterable[str] = "tiny8",
    tuning: str = "full",
    seed: int = 0,
    *,
    multitask: bool = False,
    progress: bool = True,
) -> list[Path]:
    """Make whatever fine-tunes of an embedded suite are missing; returns the folders of all of them.

    Every fine-tune goes on from its last snapshot (at most 50 steps are lost), and a second process that asks
    for the same one waits for the first. The results do not depend on the number of cores.

    Args:
        backbone: an embedded one, "tiny-clip", "tiny-gpt2", "tiny-t5" or "tiny-nyu".
        tasks: a named set or task names.
        tuning: "full", "lora", "l-lora", or "none" (no fine-tunes; with ``multitask`` the joint model alone).
            tiny-gpt2 and tiny-nyu have "full" only, tiny-t5 "full" and "lora"; none of them has a joint model.
        seed: of the run, 0 or greater.
        multitask: also the model trained on all the tasks at once.
        progress: show a live display with the time left on stderr.

    Raises: UnknownName, ParameterError for bad arguments; CheckpointError, FusionError if a fine-tune fails.
    """
    jobs = wanted_jobs(backbone, tasks, tuning, seed, multitask=multitask)
    make_missing(jobs, progress=progress)
    return [job.folder for job in jobs]


def missing(
    backbone: str = "tiny-clip",
    tasks: str | Iterable[str] = "tiny8",
    tuning: str = "full",
    seed: int = 0,
    *,
    multitask: bool = False,
) -> list[str]:
    """Names of the fine-tunes that ``prepare`` would make."""
    jobs = wanted_jobs(backbone, tasks, tuning, seed, multitask=multitask)
    return [job.name for job in jobs if not job.folder.exists()]


def wanted_jobs(backbone: str, tasks: str | Iterable[str], tuning: str, seed: int, *, multitask: bool) -> list[Job]:
    """The fine-tunes of a suite, after checking every argument."""
    if backbone not in names.EMBEDDED_BACKBONES:
        raise UnknownName(
            f"no embedded backbone is called {backbone!r}; others are not fine-tuned here."
            f"{suggest(str(backbone), names.EMBEDDED_BACKBONES)}"
        )
    chosen, _ = names.resolve_tasks(tasks)
    check_readable(backbone, chosen)
    return plan(backbone, chosen, names.check_tuning(tuning), names.check_seed(seed), multitask)


def make_missing(jobs: Sequence[Job], *, progress: bool = True) -> None:
    """Make those jobs whose folder does not exist yet, of whatever suites, the longest first.

    The others go on if one fails, then the failure is raised.
    """
    to_make = [job for job in jobs if not job.folder.exists()]
    waiting = deque(sorted(to_make, key=lambda job: -job.work))  # a short one at the end keeps no core waiting
    if not waiting:
        return
    check_writable(waiting[0].root)
    display = Progress(list(waiting), enabled=progress)
    events: queue.Queue[tuple[_Worker, dict[str, Any] | None]] = queue.Queue()
    workers = [_Worker(events) for _ in range(min(cores(), len(waiting)))]
    failures: list[FusionError] = []
    try:
        for worker in workers:
            worker.give(waiting.popleft())
        while any(worker.job for worker in workers):
            try:
                worker, event = events.get(timeout=0.5)
            except queue.Empty:
                display.refresh()
                continue
            failure = _handle(worker, event, display)
            failures += [failure] if failure else []
            if worker.job is None and event is not None and waiting:
                worker.give(waiting.popleft())
    except KeyboardInterrupt:
        display.say("Interrupted. Finished fine-tunes and snapshots are kept: the next call goes on from there.")
        raise
    finally:
        display.close()
        for worker in workers:
            worker.stop()
    if failures:
        raise failures[0]


def _handle(worker: _Worker, event: dict[str, Any] | None, display: Progress) -> FusionError | None:
    """Pass an event on to the display; the worker is free afterwards if its job has ended. Returns its failure."""
    job = worker.job
    if job is None:
        return None
    match event:
        case None:
            worker.job = None
            return FusionError(
                f"the process fine-tuning {job.label!r} ended unexpectedly. Its last words: {worker.tail()}"
            )
        case {"event": "failed", "error": error, "message": message}:
            worker.job = None
            display.failed(job)
            kind = CheckpointError if error == "CheckpointError" else FusionError
            return kind(f"fine-tuning {job.label!r} failed: {message}")
        case {"event": "step", "step": step}:
            display.step(job, step)
        case {"event": "waiting"}:
            display.waiting(job)
        case {"event": "done"}:
            worker.job = None
            display.done(job)
    return None


class _Worker:
    """A worker process and the thread that reads its events."""

    def __init__(self, events: queue.Queue[tuple[_Worker, dict[str, Any] | None]]):
        self.job: Job | None = None
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  (closed in stop)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "fusionlib.zoo.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            encoding="utf-8",
            env={**one_core(), "HF_HUB_OFFLINE": "1", "FUSIONLIB_HOME": str(home())},
        )
        threading.Thread(target=self._read, args=(events,), daemon=True).start()

    def give(self, job: Job) -> None:
        """Start a job; the worker must be free."""
        self.job = job
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(job.to_json()) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it died: its reader has put, or is about to put, the None that says so

    def stop(self) -> None:
        """End the process; closing its stdin is enough unless it hangs."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()

    def tail(self) -> str:
        """The last lines it wrote to stderr."""
        self._errors.seek(0)
        return "\n".join(self._errors.read().decode(errors="replace").splitlines()[-5:]) or "none."

    def _read(self, events: queue.Queue[tuple[_Worker, dict[str, Any] | None]]) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                events.put((self, json.loads(line)))
        events.put((self, None))
