"""``fusionlib run``: chapters times configurations, in parallel, resumable, each failure by itself."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console

from fusionlib.core import FusionError
from fusionlib.press import chapters as chapter_files
from fusionlib.press import params, plan
from fusionlib.press.files import sweep
from fusionlib.press.interrupts import INTERRUPTED, ignore, interrupt
from fusionlib.press.process import fork_refusal
from fusionlib.press.project import Project
from fusionlib.press.runner import Runner
from fusionlib.zoo.environment import cores

OK, FAILED = 0, 1
_ENDING = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class Request:
    """What the command line asks for.

    Attributes:
        params: files or names of configurations; empty for the default one.
        chapters: patterns; empty for all.
        overrides: (parameter, value as typed).
        jobs: processes at once; None for one per core.
        force: run what is up to date, too.
        dry_run: say what would run, and why, and run nothing.
        verbose: say how kernels are started.
    """

    params: Sequence[str] = ()
    chapters: tuple[str, ...] = ()
    overrides: Sequence[tuple[str, str]] = ()
    jobs: int | None = None
    force: bool = False
    dry_run: bool = False
    verbose: bool = False


def run(project: Project, request: Request, console: Console | None = None) -> int:
    """Run the grid; the exit code: 0, 1 if a chapter failed, 130 if interrupted.

    Raises: ParameterError, before anything runs, for any wrong parameter; FusionError, if the output folder
        cannot be written, if another run is at work in it, or if a fine-tune fails.
    """
    console = console or Console()
    configurations, selected = resolve(project, request)
    jobs = plan.make(selected, configurations, project, force=request.force)
    if not jobs:
        raise FusionError(
            "none of the chosen chapters runs for the chosen configurations: look at `fusionlib chapters`."
        )
    if request.dry_run:
        _tell_plan(jobs, console, request.force)
        return OK
    _warn_of_short_training(console)
    with _Writable(project):
        pending = [job for job in jobs if job.why]
        workers = min(request.jobs or cores(), max(1, len(jobs)))
        restore = _interrupt_on_termination()
        runner = Runner(project, jobs, workers, request.force, console, verbose=request.verbose)
        try:
            prepare(_parameters(pending))
            return FAILED if runner.run() else OK
        except KeyboardInterrupt:
            ignore(*_ENDING)  # ending the kernels takes a moment, and must not be interrupted halfway
            runner.close()
            done = len(jobs) - len(pending) + runner.done
            console.print(f"interrupted: {done} of {len(jobs)} done; run again to go on", style="bold")
            return INTERRUPTED
        finally:
            runner.close()
            restore()


def resolve(project: Project, request: Request) -> tuple[list[params.Configuration], list[chapter_files.Chapter]]:
    """The configurations and chapters asked for, checked against each other.

    Raises: ParameterError.
    """
    read = [params.read(path, project) for path in params.locate(request.params, project)]
    configurations = [params.override(configuration, request.overrides) for configuration in read]
    everything = chapter_files.read_all(project)
    if not everything:
        raise FusionError(f"there are no chapters: {project.book} holds no notebook.")
    selected = chapter_files.select(everything, request.chapters, project)
    params.check(configurations, selected, everything, project.root)
    return configurations, selected


def prepare(parameters: Iterable[Mapping[str, Any]]) -> None:
    """Make the fine-tunes that notebooks with these parameters will ask for, so that no two kernels make one.

    Those of all suites are made together: the cores have work until the last one. The jointly trained reference is
    made for named sets of tasks with full fine-tuning, if the backbone has one.
    """
    from fusionlib.zoo.names import EMBEDDED_BACKBONES
    from fusionlib.zoo.preparing import make_missing, wanted_jobs
    from fusionlib.zoo.recipe import JOINT, offered

    jobs = []
    for values in parameters:
        if not {"backbone", "tasks", "tuning", "seeds"} <= set(values):
            continue
        tasks = values["tasks"]
        backbone, tuning = values["backbone"], values["tuning"]
        if backbone not in EMBEDDED_BACKBONES or isinstance(tasks, dict) or tuning == "none":
            continue
        jointly = isinstance(tasks, str) and tuning == "full" and JOINT in offered(backbone)
        for seed in values["seeds"]:
            jobs += wanted_jobs(backbone, tasks, tuning, seed, multitask=jointly)
    make_missing(list(dict.fromkeys(jobs)))


def _parameters(pending: Iterable[plan.Job]) -> Iterable[Mapping[str, Any]]:
    """What each chapter is given, and the same again for every further kind of fine-tuning that it compares."""
    from fusionlib.zoo.recipe import offered

    for job in pending:
        yield job.values
        for kind in job.chapter.tunings:
            if kind in offered(str(job.values.get("backbone"))):
                yield {**job.values, "tuning": kind}


def _tell_plan(jobs: list[plan.Job], console: Console, force: bool) -> None:
    pending = [job for job in jobs if job.why]
    others = any(job.why for job in jobs if not job.chapter.last)
    for job in jobs:
        doubtful = job.chapter.last and others and not job.why
        what = "may run" if doubtful else "would run" if job.why else "up to date"
        why = "if the others change the records" if doubtful else job.why
        line = f"{what:<10}  {job.label}{': ' + why if why else ''}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    refusal = fork_refusal()
    start = f"started anew ({refusal})" if refusal else "forked from a process that has torch imported"
    line = f"{len(pending)} of {len(jobs)} would run; kernels would be {start}."
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def _warn_of_short_training(console: Console) -> None:
    from fusionlib.zoo.recipe import SHARE, step_share

    if step_share() < 1:
        line = f"{SHARE} is {step_share():g}: embedded fine-tunes are shortened, and numbers are those of a draft."
        console.print(line, markup=False, highlight=False, soft_wrap=True)


class _Writable:
    """Makes sure that the output folder can be written and that nobody else is writing; cleans up after a kill."""

    def __init__(self, project: Project):
        self._folder = project.executed
        self._lock = FileLock(self._folder / ".lock")

    def __enter__(self) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
            probe = self._folder / ".probe"
            probe.write_bytes(b"0" * 4096)
            probe.unlink()
        except Timeout:
            raise FusionError(
                f"another `fusionlib run` is at work in {self._folder}: wait for it, or end it first."
            ) from None
        except OSError as error:
            raise FusionError(
                f"{self._folder} cannot be written: {error.strerror or error}. Free some space or change its "
                "permissions, then run again."
            ) from None
        sweep(self._folder)

    def __exit__(self, *error: object) -> None:
        self._lock.release()


def _interrupt_on_termination() -> Callable[[], None]:
    """Treat SIGTERM like Ctrl-C; returns what puts the handlers back."""
    before = {signum: signal.getsignal(signum) for signum in _ENDING}
    for signum in _ENDING:
        signal.signal(signum, interrupt)

    def restore() -> None:
        for signum, handler in before.items():
            signal.signal(signum, handler)

    return restore
