"""What is seen while the grid runs: a live table in a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from fusionlib.press.plan import Job

_STYLES = {"done": "green", "failed": "bold red", "skipped": "yellow", "running": "cyan"}
_STYLES |= dict.fromkeys(("waiting", "up to date"), "dim")


class Display:
    """Status of every job, with seconds and the time left.

    Args:
        jobs: those that will run, or may.
        workers: how many run at once.
        console: where to; default stdout.
    """

    def __init__(self, jobs: Sequence[Job], workers: int, console: Console | None = None):
        self._console = console or Console()
        self._status = dict.fromkeys((job.id for job in jobs), "waiting")
        self._jobs = {job.id: job for job in jobs}
        self._workers = workers
        self._begun: dict[int, float] = {}
        self._seconds: dict[int, float] = {}
        self._cells: dict[int, tuple[int, int]] = {}
        self._live: Live | None = None
        if self._console.is_terminal and not os.environ.get("CI"):
            self._live = Live(self._table(), console=self._console, refresh_per_second=4, transient=True)
            self._live.start()

    def started(self, job: Job) -> None:
        """Note that a job has started."""
        self._begun[job.id] = time.monotonic()
        self._set(job, "running")

    def cell(self, job: Job, cell: int, of: int) -> None:
        """Note which cell is running."""
        self._cells[job.id] = (cell, of)

    def ended(self, job: Job, status: str) -> None:
        """Note that a job is over: "done", "failed", "skipped" or "up to date"."""
        if job.id in self._begun:
            self._seconds[job.id] = time.monotonic() - self._begun[job.id]
        self._set(job, status)

    def refresh(self) -> None:
        """Bring the table up to date."""
        if self._live:
            self._live.update(self._table())

    def say(self, text: str, style: str = "") -> None:
        """Write lines of their own, above the table."""
        self._console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Take the table away; the lines stay."""
        if self._live:
            self._live.stop()
            self._live = None

    def _set(self, job: Job, status: str) -> None:
        self._status[job.id] = status
        if self._live and status == "running":
            return
        over = sum(s not in ("waiting", "running") for s in self._status.values())
        seconds = f"  {self._seconds[job.id]:.1f} s" if job.id in self._seconds else ""
        left = f"  ({self._left()})" if status not in ("running",) and over < len(self._status) else ""
        self.say(f"[{over}/{len(self._status)}] {status:<10} {job.label}{seconds}{left}", _STYLES.get(status, ""))

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 2))
        for identity, job in self._jobs.items():
            status = self._status[identity]
            if status != "running":
                continue
            cell, of = self._cells.get(identity, (0, 0))
            table.add_row(
                escape(job.label),
                f"cell {cell} of {of}" if of else "starting",
                f"{time.monotonic() - self._begun[identity]:.0f} s",
            )
        over = sum(s not in ("waiting", "running") for s in self._status.values())
        table.add_row(f"{over} of {len(self._status)} done", "", self._left(), style="bold")
        return table

    def _left(self) -> str:
        """The time left, from what jobs took last time, or else from the mean of those that are over."""
        known = [*self._seconds.values(), *(job.expected for job in self._jobs.values() if job.expected)]
        if not known:
            return "time left unknown"
        mean = sum(known) / len(known)
        left = 0.0
        for identity, status in self._status.items():
            expected = self._jobs[identity].expected or mean
            if status == "waiting":
                left += expected
            elif status == "running":
                left += max(0.0, expected - (time.monotonic() - self._begun[identity]))
        left /= self._workers
        return f"about {int(left) // 60}:{int(left) % 60:02d} left"


def failure_text(job: Job, failure: dict[str, Any], kept: str | None) -> str:
    """What went wrong in a job: the cell, its first lines, the end of the traceback, and where to look."""
    lines = [f"FAILED  {job.label}"]
    if "cell" in failure:
        lines.append(f"  in cell [{failure['cell']}]:")
        lines += [f"    | {line}" for line in failure.get("source", ())]
    lines += [f"    {line}" for line in failure.get("traceback", ())]
    if not failure.get("traceback"):
        lines.append(f"  {failure['error']}: {failure['message']}")
    if kept:
        lines.append(f"  The notebook up to there: {kept}")
    return "\n".join(lines)
