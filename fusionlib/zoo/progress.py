"""What is seen while fine-tunes are made: bars in a terminal, one changing line in a notebook, else plain lines."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from fusionlib.zoo.job import Job
from fusionlib.zoo.recipe import JOINT

_PLAIN_SECONDS = 15  # between two plain lines that only say how far things are


class Progress:
    """Display of several fine-tunes and of the time left, on stderr.

    Args:
        jobs: those that will be made.
        enabled: False shows nothing at all.
    """

    def __init__(self, jobs: Sequence[Job], *, enabled: bool = True):
        self._steps = dict.fromkeys(jobs, 0)
        self._first: dict[Job, int] = {}  # where each was taken up, so that old steps do not count as speed
        self._finished: set[Job] = set()
        self._started: float | None = None
        self._spoke = time.monotonic()
        self._line, self._line_open = "", False
        self._rich: Any = None
        self._bars: dict[Job, Any] = {}
        self._mode = _mode() if enabled else "silent"
        suites = Counter(_suite(job) for job in jobs)
        alone = len(suites) == 1
        self._names = {job: job.label if alone else _full_name(job) for job in jobs}
        self._title = f"Fine-tuning {next(iter(suites)) if alone else 'several suites'}: {len(jobs)} to make"
        if self._mode == "terminal":
            self._start_bars()
        else:
            counted = "; ".join(f"{number} of {suite}" for suite, number in suites.items())
            self.say(f"{self._title} ({', '.join(self._names.values()) if alone else counted}).")

    def step(self, job: Job, step: int) -> None:
        """Note the number of finished steps of a job."""
        self._first.setdefault(job, step)
        if self._started is None:
            self._started = time.monotonic()
        self._steps[job] = step
        self.refresh()

    def waiting(self, job: Job) -> None:
        """Say that another process is making it."""
        self.say(f"{self._names[job]}: another process is making it, waiting.")

    def done(self, job: Job) -> None:
        """Note that a job is finished."""
        self._steps[job] = job.recipe.steps
        self._finished.add(job)
        if self._mode == "plain":
            self.say(self._summary())
        self.refresh()

    def failed(self, job: Job) -> None:
        """Note that a job is over without a result."""
        self._finished.add(job)
        self.say(f"{self._names[job]}: failed.")

    def refresh(self) -> None:
        """Bring the display up to date."""
        if self._mode == "terminal":
            for job, bar in self._bars.items():
                shown = self._steps[job] > 0 and job not in self._finished
                self._rich.update(bar, completed=self._steps[job], visible=shown)
            self._rich.update(self._total, completed=self._work_done(), left=self._left_text())
        elif self._mode == "notebook" and self._summary() != self._line:
            self._line = self._summary()
            self._line_open = True
            sys.stderr.write(f"\r{self._line:<100}")
            sys.stderr.flush()
        elif self._mode == "plain" and time.monotonic() - self._spoke > _PLAIN_SECONDS:
            self.say(self._summary())

    def say(self, sentence: str) -> None:
        """Write one line of its own."""
        self._spoke = time.monotonic()
        if self._mode == "terminal":
            self._rich.console.print(sentence, markup=False, highlight=False)
        elif self._mode != "silent":
            print(("\n" if self._line_open else "") + sentence, file=sys.stderr, flush=True)
            self._line_open = False

    def close(self) -> None:
        """Leave the display; the last line stays."""
        if self._mode == "terminal":
            self.refresh()
            self._rich.stop()
        elif self._mode == "notebook":
            self.refresh()
            sys.stderr.write("\n")

    def _start_bars(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as Bars

        columns = (
            TextColumn("{task.description}", markup=False),  # it holds names of tasks
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
        )
        self._rich = Bars(*columns, console=Console(stderr=True))
        for job in self._steps:
            self._bars[job] = self._rich.add_task(self._names[job], total=job.recipe.steps, visible=False, left="steps")
        self._total = self._rich.add_task(self._title, total=self._work(), left="examples")
        self._rich.start()

    def _summary(self) -> str:
        running = [
            f"{self._names[job]} {step}/{job.recipe.steps}"
            for job, step in self._steps.items()
            if step and job not in self._finished
        ]
        return (
            f"{len(self._finished)} of {len(self._steps)} fine-tunes done; {', '.join([*running, self._left_text()])}"
        )

    def _work(self) -> int:
        return sum(job.work for job in self._steps)

    def _work_done(self) -> int:
        return sum(job.work * step // job.recipe.steps for job, step in self._steps.items())

    def _left_text(self) -> str:
        if self._started is None:
            return "starting"
        before = sum(job.work * step // job.recipe.steps for job, step in self._first.items())
        made, seconds = self._work_done() - before, time.monotonic() - self._started
        if not made or seconds < 1:
            return "starting"
        left = round((self._work() - self._work_done()) * seconds / made)
        return f"{left // 60}:{left % 60:02d} left"


def _full_name(job: Job) -> str:
    """ "tiny-clip flags-lora-seed0", as its folder is called."""
    return f"{job.backbone} {job.name.rpartition('-')[0]}"


def _suite(job: Job) -> str:
    """What it is called in a title: "tiny-clip, seed 0", and with the kind of fine-tuning where it is an adapter's."""
    adapter = "" if job.kind in ("full", JOINT) else f" with {job.kind}"
    return f"{job.backbone}{adapter}, seed {job.seed}"


def _mode() -> str:
    if "IPython" in sys.modules:
        shell = sys.modules["IPython"].get_ipython()
        if shell is not None and type(shell).__name__ == "ZMQInteractiveShell":
            return "notebook"
    if sys.stderr.isatty():
        try:
            import rich  # noqa: F401  (an optional dependency)
        except ImportError:
            return "plain"
        return "terminal"
    return "plain"
