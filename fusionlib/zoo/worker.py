"""A process that fine-tunes: ``python -m fusionlib.zoo.worker``, driven by :mod:`fusionlib.zoo.prepare`.

Jobs come as JSON lines on stdin, events go as JSON lines to stdout. One thread computes, so results do not depend
on the number of cores. The process ends when stdin closes, even in the middle of a job: so it never outlives
the process that started it, however that one ended, and at most the steps since the last snapshot are lost.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from fusionlib.zoo.job import Job


def main() -> None:
    """Work on jobs until stdin closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    events = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not mix with the events
    jobs: queue.Queue[str] = queue.Queue()
    # before anything heavy is imported, so that the parent's end is noticed at any time
    threading.Thread(target=_read, args=(jobs,), daemon=True).start()
    import torch

    from fusionlib.core import FusionError
    from fusionlib.zoo.job import Job

    torch.set_num_threads(1)
    while True:
        job = Job.from_json(json.loads(jobs.get()))
        try:
            make(job, events)
        except Exception as error:
            message = str(error) if isinstance(error, FusionError) else traceback.format_exc()
            _tell(events, event="failed", error=type(error).__name__, message=message)


def make(job: Job, events: TextIO) -> None:
    """Make one fine-tune, unless another process has made it by the time its lock is free."""
    from filelock import FileLock, Timeout

    from fusionlib.zoo.files import writing

    lock = FileLock(job.lock)
    with writing(job.lock):
        job.lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            _tell(events, event="waiting")
            lock.acquire()
    try:
        if not job.folder.exists():
            _train(job, events)
    finally:
        lock.release()
    _tell(events, event="done")


def _train(job: Job, events: TextIO) -> None:
    from fusionlib.zoo import checkpoints
    from fusionlib.zoo.embedded import embedded_backbone
    from fusionlib.zoo.files import hash_tensors
    from fusionlib.zoo.finetune import accuracy, finetune, mean_loss
    from fusionlib.zoo.l_lora import LinearizedClip
    from fusionlib.zoo.task import embedded_task

    backbone = embedded_backbone(job.backbone, job.kind)
    tasks = [embedded_task(name) for name in job.tasks]
    heads = [backbone.start_head(task, job.training_seed) for task in tasks]
    snapshot = job.partial / "snapshot.safetensors"
    told = 0.0

    def on_step(step: int) -> None:
        nonlocal told
        if time.monotonic() - told > 0.5 or step == job.recipe.steps:
            told = time.monotonic()
            _tell(events, event="step", step=step)

    trained = finetune(backbone, tasks, heads, job.recipe, job.training_seed, snapshot, on_step)
    model: Any = trained.model
    judge = mean_loss if backbone.preprocess.modality == "scene" else accuracy
    judged = {task.name: judge(model, backbone, task, head, "val") for task, head in zip(tasks, heads, strict=True)}
    learnt = dict(zip(job.tasks, heads, strict=True)) if backbone.learns_heads else {}
    facts: dict[str, Any] = {"train_seconds": round(trained.seconds, 2), "validation": judged}
    if isinstance(backbone, LinearizedClip):
        model, facts = backbone.as_peft(model), {**facts, "start_sha256": hash_tensors(backbone.state)}
    checkpoints.save(job, model, facts, learnt)


def _read(jobs: queue.Queue[str]) -> None:
    for line in sys.stdin:
        jobs.put(line)
    os._exit(0)  # the parent has closed the pipe or is gone


def _tell(events: TextIO, **event: Any) -> None:
    events.write(json.dumps(event) + "\n")


if __name__ == "__main__":
    main()
