"""What the grid must know of a chapter, read from its notebook without running it.

A chapter may restrict itself in the notebook's metadata, under ``"fusionlib"``:

* ``"configurations"``: ``"all"``, ``"first"`` (only the first configuration of a run), ``"backbones"`` (the first
  configuration of each backbone, for what does not depend on fine-tunes) or a list of names. Default: all for
  ``book/methods/``, first for everything else.
* ``"keeps"``: parameters that keep the notebook's own values whatever the configuration says, such as the backbone
  and the tasks of a chapter about one suite. Default: none.
* ``"tunings"``: kinds of fine-tuning whose models it loads beside the configuration's; where the backbone has a
  recipe for them they are made before any chapter runs, as the configuration's are. Default: none.
* ``"after": "all"``: run when all the other chapters have ended, and again when the records have changed.
  Default: set for ``book/results/``, absent for everything else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from fusionlib.bench import declared
from fusionlib.core import ParameterError, suggest
from fusionlib.press.files import digest
from fusionlib.press.project import Project

_VOLATILE = {"execution", "papermill", "collapsed", "ExecuteTime"}


@dataclass(frozen=True)
class Chapter:
    """One notebook of the book.

    Attributes:
        path: the notebook.
        name: its path below ``book/`` without the suffix, "methods/ties_merging".
        parameters: name -> default of its parameters cell, in the order of the cell; empty if it has none.
        configurations: "all", "first", "backbones", or the names of those it runs for.
        last: whether it runs after all the others.
        keeps: parameters whose values in a configuration are passed over.
        tunings: kinds of fine-tuning whose models it loads besides those of a configuration.
        declared: the lines of its parameters cell, with what they allow.
        identity: hash of its cells (sources, tags) and metadata; outputs do not count.
    """

    path: Path
    name: str
    parameters: Mapping[str, Any]
    configurations: str | tuple[str, ...]
    last: bool
    identity: str
    keeps: tuple[str, ...] = ()
    tunings: tuple[str, ...] = ()
    declared: Mapping[str, declared.Parameter] = field(default_factory=dict)


def read_all(project: Project) -> list[Chapter]:
    """All chapters of a project, sorted by name.

    Raises: ParameterError, if a notebook or its parameters cell cannot be read.
    """
    paths = sorted(project.book.rglob("*.ipynb"))
    shown = [path for path in paths if not any(part[0] in "._" for part in path.relative_to(project.book).parts)]
    return [read(path, project.book) for path in shown]


def read(path: Path, book: Path) -> Chapter:
    """One chapter.

    Raises: ParameterError, if the notebook, its metadata or its parameters cell cannot be read.
    """
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        cells = [(cell["cell_type"], _text(cell["source"]), _stable(cell)) for cell in notebook["cells"]]
        metadata = notebook.get("metadata", {})
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ParameterError(f"{path} cannot be read as a notebook of format 4: {error}.") from None
    tagged = [source for _, source, meta in cells if "parameters" in meta.get("tags", [])]
    if len(tagged) > 1:
        raise ParameterError(f"{path} has {len(tagged)} cells tagged 'parameters', and papermill sees only the first.")
    name = path.relative_to(book).with_suffix("").as_posix()
    own = metadata.get("fusionlib", {})
    configurations, last = _restrictions(name, own, path)
    cell = declared.parameters(tagged[0], str(path)) if tagged else {}
    parameters = {name: parameter.default for name, parameter in cell.items()}
    return Chapter(
        path=path,
        name=name,
        parameters=parameters,
        configurations=configurations,
        last=last,
        identity=digest([cells, own]),
        keeps=_keeps(own, parameters, path),
        tunings=_tunings(own, path),
        declared=cell,
    )


def select(chapters: list[Chapter], patterns: tuple[str, ...], project: Project) -> list[Chapter]:
    """Chapters that match one of the patterns, all if there is no pattern.

    Args:
        patterns: with ``*`` or without: a name ("methods/ties_merging"), its last part, or a path.

    Raises: ParameterError, if a pattern matches none.
    """
    if not patterns:
        return chapters
    chosen: set[str] = set()
    for pattern in patterns:
        names = {chapter.name for chapter in chapters if _matches(chapter, pattern, project)}
        if not names:
            # what was typed without a folder is compared with names without one, or the folder hides the likeness
            spelt = [c.name if "/" in pattern else c.name.rpartition("/")[2] for c in chapters]
            raise ParameterError(f"no chapter matches {pattern!r}.{suggest(pattern, spelt)}")
        chosen |= names
    return [chapter for chapter in chapters if chapter.name in chosen]


def _matches(chapter: Chapter, pattern: str, project: Project) -> bool:
    spellings = (
        chapter.name,
        chapter.name.rpartition("/")[2],
        chapter.path.relative_to(project.root).as_posix(),
        chapter.path.as_posix(),
    )
    typed = pattern.replace("\\", "/").removeprefix("./").rstrip("/")
    if any(fnmatch(spelling, typed) for spelling in spellings):
        return True
    try:
        return Path(pattern).resolve() == chapter.path
    except (OSError, ValueError):  # too long for a path, or with a NUL
        return False


def _restrictions(name: str, own: Any, path: Path) -> tuple[str | tuple[str, ...], bool]:
    folder = name.split("/")[0]
    configurations = own.get("configurations", "all" if folder == "methods" else "first")
    after = own.get("after", "all" if folder == "results" else None)
    if isinstance(configurations, list) and all(isinstance(item, str) for item in configurations):
        configurations = tuple(configurations)
    elif configurations not in ("all", "first", "backbones"):
        raise ParameterError(
            f"{path}: the metadata fusionlib.configurations is {configurations!r}; allowed are 'all', 'first', "
            "'backbones' and a list of names of configurations."
        )
    if after not in (None, "all"):
        raise ParameterError(f"{path}: the metadata fusionlib.after is {after!r}; the only value allowed is 'all'.")
    return configurations, after == "all"


def _keeps(own: Mapping[str, Any], parameters: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    keeps = own.get("keeps", [])
    if not isinstance(keeps, list) or not set(keeps) <= parameters.keys():
        raise ParameterError(
            f"{path}: the metadata fusionlib.keeps is {keeps!r}; allowed is a list of names out of its parameters "
            f"cell, {', '.join(parameters)}."
        )
    return tuple(keeps)


def _tunings(own: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    tunings = own.get("tunings", [])
    if not isinstance(tunings, list) or not set(tunings) <= {"full", "lora", "l-lora"}:
        raise ParameterError(
            f"{path}: the metadata fusionlib.tunings is {tunings!r}; allowed is a list out of 'full', 'lora' and "
            "'l-lora'."
        )
    return tuple(tunings)


def _stable(cell: dict[str, Any]) -> dict[str, Any]:
    """The metadata of a cell without what editors and runs write into it."""
    return {key: value for key, value in cell.get("metadata", {}).items() if key not in _VOLATILE}


def _text(source: str | list[str]) -> str:
    return source if isinstance(source, str) else "".join(source)
