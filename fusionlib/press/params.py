"""Configurations: the flat YAML files of ``params/`` and what the command line changes in them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from fusionlib.bench.notebook import nested
from fusionlib.core import ParameterError, suggest
from fusionlib.press.chapters import Chapter
from fusionlib.press.project import Project
from fusionlib.press.trial import out_of_range
from fusionlib.press.values import SHARED, impossible, mismatch

DEFAULT = "tiny-clip"
_SCALARS = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null")}


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
        if not path.is_file() and not named.is_file():
            raise ParameterError(f"there is no file of parameters {name!r}.{suggest(path.stem, there)}")
        found.append(path.resolve() if path.is_file() else named)
    if not found:
        raise ParameterError(f"there is no file of parameters in {project.params}: write params/tiny-clip.yaml.")
    stems = [path.stem for path in found]
    twice = sorted({stem for stem in stems if stems.count(stem) > 1})
    if twice:
        raise ParameterError(f"configurations given twice, or two files with one name: {', '.join(twice)}.")
    return found


def read(path: Path) -> Configuration:
    """A file of parameters.

    Raises: ParameterError, with the line, if it is malformed, nested, not a mapping, or has a key twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        raise ParameterError(f"{path} cannot be read: {error}.") from None
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}" if error.problem_mark else "the file"
        raise ParameterError(f"{path.name}: {line} is not YAML: {error.problem}.") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ParameterError(f"{path.name} is not YAML: {error}.") from None
    if not isinstance(node, yaml.MappingNode):
        raise ParameterError(f"{path.name} must hold `name: value` lines, the names of a parameters cell.")
    lines: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if key.tag != "tag:yaml.org,2002:str":
            raise ParameterError(f"{path.name}, line {line}: the key {key.value!r} is not a name; put it in quotes.")
        if key.value in lines:
            raise ParameterError(f"{path.name}: {key.value!r} is set on line {lines[key.value]} and on line {line}.")
        if not _flat(value) and key.value != "tasks":
            raise ParameterError(
                f"{path.name}, line {value.start_mark.line + 1}: {key.value!r} is nested, or a date without quotes. "
                "Parameters are flat: numbers, strings, null, true, false, or a list of them."
            )
        lines[key.value] = line
    return Configuration(name=path.stem, source=path.name, values=values, lines=lines)


def override(configuration: Configuration, pairs: Iterable[tuple[str, str]]) -> Configuration:
    """The configuration with values from the command line, under a name that says so.

    Its executed copies lie in a folder of their own: what is tried with ``-p`` never gets into the book.

    Args:
        pairs: (parameter, value as typed); a value is read as YAML, and None, True, False as Python writes them.
    """
    changed = {key: typed(text) for key, text in pairs}
    if not changed:
        return configuration
    suffix = ",".join(f"{key}={re.sub(r'[^A-Za-z0-9.,_-]+', '_', str(value))}" for key, value in changed.items())
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
                wanted = mismatch(value, chapter.parameters[key]) if key in chapter.parameters else None
                if wanted:
                    problems.append(f"{where}: {key}={value!r} must be {wanted}, as in chapter {chapter.name}.")
                elif refusal := out_of_range(chapter, key, value) if key in chapter.parameters else None:
                    problems.append(f"{where}: {refusal}")
    if problems:
        distinct = list(dict.fromkeys(problems))
        head = f"{len(distinct)} parameters were refused, and nothing was run:\n  " if len(distinct) > 1 else ""
        raise ParameterError(head + "\n  ".join(distinct))


def _flat(node: yaml.Node) -> bool:
    if isinstance(node, yaml.SequenceNode):
        return all(isinstance(item, yaml.ScalarNode) and item.tag in _SCALARS for item in node.value)
    return isinstance(node, yaml.ScalarNode) and node.tag in _SCALARS


def typed(text: str) -> Any:
    """A value as typed on the command line, read as YAML; None, True and False as Python writes them."""
    words = {"None": None, "True": True, "False": False}
    if text in words:
        return words[text]
    try:
        value = float(text) if re.fullmatch(r"[-+]?[0-9.]+[eE][-+]?[0-9]+", text) else yaml.safe_load(text)
        json.dumps(value)  # what is not JSON, such as a date, is meant as text
    except (yaml.YAMLError, ValueError, TypeError):
        return text
    return value
