"""The names a suite is asked for by, and the checks that turn a wrong one into a clear sentence."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from typing import Any

import torch

from fusionlib.core import ParameterError, UnknownName, suggest
from fusionlib.zoo.hub import table

SETS: dict[str, tuple[str, ...]] = {
    "tiny8": ("mnist", "fashion", "animals", "optdigits", "landsat", "letters", "textures", "synthdigits"),
    "tiny-unseen": ("emoji", "flags"),
    "tiny-nyu3": ("segmentation", "depth", "normal"),
    "tiny-text7": ("acceptability", "reviews", "food", "spam", "question", "topic", "entailment"),
    "tiny-text5": ("reviews", "food", "spam", "question", "topic"),
}
IMAGE_TASKS = SETS["tiny8"] + SETS["tiny-unseen"]
TEXT_TASKS = SETS["tiny-text7"]
SCENE_TASKS = SETS["tiny-nyu3"]
EMBEDDED_TASKS = IMAGE_TASKS + TEXT_TASKS + SCENE_TASKS
EMBEDDED_BACKBONES = ("tiny-clip", "tiny-gpt2", "tiny-t5", "tiny-nyu")
LONGEST_NAME = 120  # of a task
TUNINGS = ("full", "lora", "l-lora", "none")


def resolve_tasks(tasks: str | Iterable[str]) -> tuple[tuple[str, ...], str | None]:
    """Task names, in order, and the name of their set (None if they are no named set).

    A name that an embedded task and a published one share means the embedded one.

    Raises:
        UnknownName: no set or task of this name is embedded or published.
        ParameterError: no task, or one twice.
    """
    if isinstance(tasks, str):
        if tasks in EMBEDDED_TASKS or tasks in table.datasets():
            raise UnknownName(f"{tasks!r} is a single task, not a set of tasks: write [{tasks!r}].")
        if tasks not in SETS and tasks not in table.sets():
            raise UnknownName(f"no set of tasks is called {tasks!r}.{suggest(tasks, [*SETS, *table.sets()])}")
        return (SETS[tasks], tasks) if tasks in SETS else table.resolve(tasks)
    names = tuple(tasks)
    if published(names):
        check_distinct(names)
        return table.resolve(names)
    for name in names:
        if name not in EMBEDDED_TASKS:
            raise UnknownName(f"no task is called {name!r}.{suggest(str(name), [*EMBEDDED_TASKS, *table.datasets()])}")
    check_distinct(names)
    return names, next((key for key, members in SETS.items() if members == names), None)


def published(names: tuple[str, ...]) -> bool:
    """Whether these are names of published tasks rather than of embedded ones."""
    return all(name in table.datasets() for name in names) and not all(name in EMBEDDED_TASKS for name in names)


def check_distinct(names: tuple[str, ...]) -> None:
    """Raise ParameterError unless there is at least one task and none is listed twice."""
    if not names:
        raise ParameterError("a suite needs at least one task, and the list of tasks is empty.")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ParameterError(f"tasks listed more than once: {', '.join(twice)}. List each task once.")


def check_task(name: Any) -> str:
    """The name of a user's own task, if tables and files can hold it; else ParameterError."""
    if not isinstance(name, str):
        raise ParameterError(f"{name!r} is no name of a task: names are texts; in YAML write it in quotes.")
    odd = any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in name)
    if not name.strip() or odd or len(name) > LONGEST_NAME:
        shown = repr(name if len(name) <= LONGEST_NAME else f"{name[:60]}...")
        raise ParameterError(
            f"{shown} is no name of a task: it needs 1 to {LONGEST_NAME} characters in one line, not only spaces and "
            "none that can't be printed."
        )
    return name


def check_tuning(tuning: Any) -> str:
    """The tuning, if it is one we have; else ParameterError."""
    if not isinstance(tuning, str) or tuning not in TUNINGS:
        raise ParameterError(f"tuning={tuning!r} is not a kind of fine-tuning.{suggest(str(tuning), TUNINGS)}")
    return tuning


def check_seed(seed: Any) -> int:
    """The seed, if it is an integer from 0 on; else ParameterError."""
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ParameterError(f"seed={seed!r} must be an integer, 0 or greater.")
    return seed


def resolve_device(device: Any) -> torch.device:
    """``"auto"`` (CUDA where there is one), ``"cpu"`` or ``"cuda"`` as a torch device; else ParameterError."""
    if device not in ("auto", "cpu", "cuda"):
        raise ParameterError(f"device={device!r} is not known.{suggest(str(device), ('auto', 'cpu', 'cuda'))}")
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise ParameterError(
            "device='cuda' was asked for, but this torch sees no CUDA device. Use device='auto' or 'cpu', or "
            "install a CUDA build of torch and check that torch.cuda.is_available() is True."
        )
    return torch.device("cuda" if available and device != "cpu" else "cpu")
