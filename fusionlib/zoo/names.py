"""The names a suite is asked for by, and the checks that turn a wrong one into a clear sentence."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from fusionlib.core import ParameterError, UnknownName, suggest

SETS: dict[str, tuple[str, ...]] = {
    "tiny8": ("mnist", "fashion", "animals", "optdigits", "landsat", "letters", "textures", "synthdigits"),
    "tiny-unseen": ("emoji", "flags"),
    "tiny-text7": ("acceptability", "reviews", "food", "spam", "question", "topic", "entailment"),
}
IMAGE_TASKS = SETS["tiny8"] + SETS["tiny-unseen"]
TEXT_TASKS = SETS["tiny-text7"]
SCENE_TASKS = ("segmentation", "depth", "normal")
EMBEDDED_TASKS = IMAGE_TASKS + TEXT_TASKS
EMBEDDED_BACKBONES = ("tiny-clip", "tiny-gpt2")
TUNINGS = ("full", "lora", "l-lora", "none")


def resolve_tasks(tasks: str | Iterable[str]) -> tuple[tuple[str, ...], str | None]:
    """Task names, in order, and the name of their set (None if they are no named set).

    Raises:
        UnknownName: a set or task of this name is not embedded.
        ParameterError: no task, or one twice.
    """
    if isinstance(tasks, str):
        if tasks in EMBEDDED_TASKS:
            raise UnknownName(f"{tasks!r} is a single task, not a set of tasks: write [{tasks!r}].")
        if tasks not in SETS:
            raise UnknownName(f"no set of tasks is called {tasks!r}.{suggest(tasks, SETS)}")
        return SETS[tasks], tasks
    names = tuple(tasks)
    for name in names:
        if name not in EMBEDDED_TASKS:
            raise UnknownName(f"no task is called {name!r}.{suggest(str(name), EMBEDDED_TASKS)}")
    check_distinct(names)
    return names, next((key for key, members in SETS.items() if members == names), None)


def check_distinct(names: tuple[str, ...]) -> None:
    """Raise ParameterError unless there is at least one task and none is listed twice."""
    if not names:
        raise ParameterError("a suite needs at least one task, and the list of tasks is empty.")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ParameterError(f"tasks listed more than once: {', '.join(twice)}. List each task once.")


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
