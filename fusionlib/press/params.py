"""Configurations: the flat YAML files of ``params/`` and what the command line changes in them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fusionlib.bench import yaml_values
from fusionlib.bench.notebook import nested
from fusionlib.core import ParameterError, suggest
from fusionlib.ops.values import shown
from fusionlib.press.chapters import Chapter
from fusionlib.press.files import digest
from fusionlib.press.project import Project
from fusionlib.press.trial import out_of_range
from fusionlib.press.values import SHARED, impossible, mismatch

DEFAULT = "tiny-clip"


@dataclass(frozen=True)
class Configuration:
    """Values for parameters of chapters.

    Attributes:
        name: the file's name without suffix, plus the overrides; names the folder of the executed copies.
        source: the file, as shown in errors.
        values: parameter -> value.
        lines: parameter -> line in the file; absent for overrides.
    """

    name: str
    source: str
    values: Mapping[str, Any]
    lines: Mapping[str, int]

    def where(self, key: str) -> str:
        """Where a value comes from, to begin a sentence with."""
        return f"{self.source}, line {self.lines[key]}" if key in self.lines else "-p"


def locate(names: Iterable[str], project: Project) -> list[Path]:
    """Files of configurations, given by path or by name ("smoke"); the default one if none is given.

    Raises: ParameterError, if a file is missing (says which exist) or two have one name.
    """
    there = sorted(path.stem for path in project.params.glob("*.yaml"))
    given = list(names)
    found = []
    for name in given or [DEFAULT] * (DEFAULT in there) or there[:1]:
        path = Path(name)
        named = project.params / f"{name}.yaml"
        if not _is_file(path) and not _is_file(named):
            raise ParameterError(f"there is no file of parameters {shown(name)}.{suggest(path.stem, there)}")
        found.append(path.resolve() if _is_file(path) else named)
    if not found:
        raise ParameterError(f"there is no file of parameters in {project.params}: write params/tiny-clip.yaml.")
    stems = [path.stem for path in found]
    twice = sorted({stem for stem in stems if stems.count(stem) > 1})
    if twice:
        raise ParameterError(f"configurations given twice, or two files with one name: {', '.join(twice)}.")
    return found


def read(path: Path, project: Project | None = None) -> Configuration:
    """A file of parameters.

    Args:
        path: the file.
        project: one in whose ``params/`` another file may have this name, and what is shown in the book is that one's.

    Raises: ParameterError, with the line, if it is malformed, nested, not a mapping, or has a key twice.
    """
    values, lines = yaml_values.load_file(path)
    if not isinstance(values, dict):
        raise ParameterError(f"{path.name} must hold `name: value` lines, the names of a parameters cell.")
    for key, value in values.items():
        if not _flat(value) and key != "tasks":
            raise ParameterError(
                f"{path.name}, line {lines.get(key, 1)}: {key!r} is nested. "
                "Parameters are flat: numbers, strings, null, true, false, or a list of them."
            )
    return Configuration(name=_name(path, project), source=path.name, values=values, lines=lines)


def _name(path: Path, project: Project | None) -> str:
    """The file's own, or that with its folder's where a file of ``params/`` has it already."""
    own = path.stem
    if not own.strip(".") or own.startswith("."):
        raise ParameterError(
            f"{path.name}: a file of parameters needs a name that doesn't begin with a dot; rename it."
        )
    if project is None or path.parent.resolve() == project.params.resolve():
        return own
    if not (project.params / f"{own}.yaml").is_file():
        return own
    return f"{own}+in_{digest(str(path.resolve()))[:8]}"


def override(configuration: Configuration, pairs: Iterable[tuple[str, str]]) -> Configuration:
    """The configuration with values from the command line, under a name that says so.

    Its executed copies lie in a folder of their own: what is tried with ``-p`` never gets into the book.

    Args:
        pairs: (parameter, value as typed); a value is read as YAML, and None, True, False as Python writes them.

    Raises: ParameterError, if a parameter is given twice.
    """
    changed = given_once(pairs)
    if not changed:
        return configuration
    suffix = ",".join(re.sub(r"[^A-Za-z0-9.,_=-]+", "_", f"{key}={shown(value)}") for key, value in changed.items())
    lines = {key: line for key, line in configuration.lines.items() if key not in changed}
    values = {**configuration.values, **changed}
    return replace(configuration, name=f"{configuration.name}+{suffix}"[:120], values=values, lines=lines)


def check(
    configurations: Iterable[Configuration], chapters: Sequence[Chapter], everything: Sequence[Chapter], root: Path
) -> None:
    """Refuse every wrong value before anything runs.

    Args:
        configurations: what was read from files and the command line.
        chapters: those that will run. A key of ``-p`` that is none of the shared six must be declared by one of them.
        everything: the whole book. A key of a file must be declared by one of its chapters.
        root: the folder in which notebooks run.

    Raises: ParameterError, one sentence per problem.
    """
    problems: list[str] = []
    for configuration in configurations:
        for key, value in configuration.values.items():
            where = configuration.where(key)
            whose, candidates = ("", everything) if key in configuration.lines else (" chosen", chapters)
            if key in SHARED:
                problem = impossible(key, value, root)
                problems += [f"{where}: {problem}"] if problem else []
                continue
            known = {*SHARED, *(name for chapter in candidates for name in chapter.parameters)}
            if key not in known:
                problems.append(
                    f"{where}: no{whose} chapter has a parameter {key!r}.{nested(key) or suggest(key, known)}"
                )
            for chapter in chapters:
                if key not in chapter.parameters:
                    continue
                undeclared = chapter.declared[key].allowed is None
                wanted = mismatch(value, chapter.parameters[key]) if undeclared else None
                if wanted:
                    problems.append(f"{where}: {key}={shown(value)} must be {wanted}, as in chapter {chapter.name}.")
                elif refusal := out_of_range(chapter, key, configuration.values):
                    problems.append(f"{where}: {refusal}")
    if problems:
        distinct = list(dict.fromkeys(problems))
        head = f"{len(distinct)} parameters were refused, and nothing was run:\n  " if len(distinct) > 1 else ""
        raise ParameterError(head + "\n  ".join(distinct))


def given_once(pairs: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Parameter -> value, of what was typed after ``-p``; ParameterError, if one was typed twice."""
    values: dict[str, Any] = {}
    for key, text in pairs:
        if key in values:
            raise ParameterError(f"-p {key} is given twice, as {shown(values[key])} and as {text}; give it once.")
        values[key] = typed(text, f"-p {key}")
    return values


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name too long
        return False


def _flat(value: Any) -> bool:
    items = value if isinstance(value, list) else [value]
    return not any(isinstance(item, (list, dict)) for item in items)


def typed(text: str, where: str = "-p") -> Any:
    """A value as typed on the command line, read as YAML; None, True and False as Python writes them."""
    words = {"None": None, "True": True, "False": False}
    if text in words:
        return words[text]
    try:
        return yaml_values.load(text, where)[0]
    except ParameterError:
        if text.lstrip()[:1] in ("[", "{"):  # a list or mapping that is none; anything else is meant as text
            raise
        return text
