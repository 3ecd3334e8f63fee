"""Hands jobs to a pool of processes, follows their events, and tells what went wrong."""

from __future__ import annotations

import contextlib
import queue
from collections import deque
from collections.abc import Iterable
from typing import Any

from rich.console import Console

from fusionlib.press import plan
from fusionlib.press.display import Display, failure_text
from fusionlib.press.pool import Events, OrdinaryPool, Pool, open_pool
from fusionlib.press.project import Project, failed_copy, outcome_of


class Runner:
    """One run of the grid.

    Args:
        project: where everything is.
        jobs: the whole plan; what is up to date is skipped.
        workers: processes at once.
        force: nothing counts as up to date.
        console: where to write.
        verbose: say how kernels are started.
    """

    def __init__(
        self, project: Project, jobs: list[plan.Job], workers: int, force: bool, console: Console, *, verbose: bool
    ):
        self.done = 0
        self._project = project
        self._jobs = jobs
        self._workers = workers
        self._force = force
        self._console = console
        self._verbose = verbose
        self._events: Events = queue.SimpleQueue()
        self._pool: Pool | None = None
        self._display: Display | None = None
        self._running: dict[int, plan.Job] = {}
        self._failures: list[tuple[plan.Job, dict[str, Any]]] = []
        self._skipped: list[tuple[plan.Job, str]] = []

    def run(self) -> int:
        """Run what is not up to date; the number of jobs that failed."""
        first = [job for job in self._jobs if job.why and not job.chapter.last]
        last = [job for job in self._jobs if job.chapter.last and (job.why or first)]
        current = len(self._jobs) - len(first) - len(last)
        if current:
            self._console.print(f"{current} of {len(self._jobs)} up to date", highlight=False)
        if first or last:
            self._display = Display([*first, *last], self._workers, self._console)
            self._work(first)
            self._work(self._replanned(last))
        self.close()
        for job, reason in self._skipped:
            line = f"skipped  {job.label}: does not apply. {reason}"
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)
        for job, failure in self._failures:
            kept = failed_copy(job.executed)
            shown = kept.relative_to(self._project.root).as_posix() if kept.is_file() else None
            self._console.print(failure_text(job, failure, shown), markup=False, highlight=False, soft_wrap=True)
        if self._failures:
            self._console.print(
                f"{len(self._failures)} of {len(self._jobs)} failed; run again to retry them", style="bold red"
            )
        return len(self._failures)

    def close(self) -> None:
        """End whatever still runs and take the display away; may be called twice."""
        if self._pool:
            self._pool.stop()
            self._pool = None
        if self._display:
            self._display.close()
            self._display = None

    def _replanned(self, jobs: Iterable[plan.Job]) -> list[plan.Job]:
        """Of the jobs that run last, those that the records of now ask for."""
        pending = []
        for job in jobs:
            job = plan.with_current_records(job, self._project, force=self._force)
            if job.why:
                pending.append(job)
            else:
                self._show().ended(job, "up to date")
        return pending

    def _work(self, jobs: list[plan.Job]) -> None:
        """Run jobs until all are over, the slow ones first."""
        waiting = deque(sorted(jobs, key=lambda job: -(job.expected or float("inf"))))
        while waiting or self._running:
            while waiting and len(self._running) < self._workers:
                self._start(waiting.popleft())
            with contextlib.suppress(queue.Empty):
                self._handle(self._events.get(timeout=0.25))
            self._show().refresh()

    def _start(self, job: plan.Job) -> None:
        if self._pool is None:
            self._pool, refusal = open_pool(self._project.root, self._events)
            if self._verbose:
                how = f"started anew: {refusal}" if refusal else "forked"
                self._show().say(f"Kernels are {how}.")
        self._running[job.id] = job
        self._show().started(job)
        self._pool.start(job.order(self._project.root))

    def _handle(self, event: dict[str, Any]) -> None:
        if event["event"] == "lost":
            self._pool_lost()
            return
        job = self._running.get(event["id"])
        if job is None:
            return
        match event:
            case {"event": "cell", "cell": cell, "of": of}:
                self._show().cell(job, cell, of)
            case {"event": "finished", "failure": failure, "first_cell": first_cell}:
                self._over(job, failure)
                if self._verbose and first_cell is not None:
                    self._show().say(f"  its first cell began {first_cell:.2f} s after its engine")
            case {"event": "exit", "code": code}:
                words = self._pool.last_words() if self._pool else "nothing."
                message = f"its process ended with exit code {code}. Last words of all jobs: {words}"
                self._over(job, {"error": "FusionError", "message": message})

    def _over(self, job: plan.Job, failure: dict[str, Any] | None) -> None:
        del self._running[job.id]
        outcome = outcome_of(failure)
        if failure and outcome == "skipped":
            self._skipped.append((job, failure["message"]))
        elif failure:
            self._failures.append((job, failure))
        self.done += outcome != "failed"
        self._show().ended(job, outcome)

    def _pool_lost(self) -> None:
        """The process that jobs are forked from has died: its jobs are lost, the others start in the ordinary way."""
        words = self._pool.last_words() if self._pool else "nothing."
        message = f"the process that kernels are forked from has died, and this job with it. Its last words: {words}"
        for job in list(self._running.values()):
            self._over(job, {"error": "FusionError", "message": message})
        if self._pool:
            self._pool.stop()
        self._pool = OrdinaryPool(self._project.root, self._events)

    def _show(self) -> Display:
        assert self._display is not None
        return self._display
