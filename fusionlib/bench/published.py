"""Numbers that others have published, read from the package's data; nothing is measured here.

Where they come from is said in ``fusionlib/zoo/data/published/README.md`` and in the last column of every row.
"""

from __future__ import annotations

import csv
import functools
import json
import re
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fusionlib.bench import meters
from fusionlib.bench.provenance import REFERENCES
from fusionlib.core import ParameterError, suggest
from fusionlib.zoo.files import DATA

FOLDER = DATA.parent / "published"
SCORES = ("accuracy_x100", "exact_match_x100", "spearman_x100")  # what averages over tasks are made of
ROUNDING = 0.1  # an average rounded to 0.1 of numbers rounded to 0.1 may be this far from their exact mean
_AVERAGE = "average"
_SWEEPS = ("hyperparameter_sweeps", "magmax")
_NOT_MEASURED = "anomalies"  # the file of remarks on the others


@dataclass(frozen=True)
class Row:
    """One published number.

    Attributes:
        file: the file it is in, without its ending.
        suite, method, setting, task, metric: as published, in the words of the data's README.
        value: in the unit of the metric; accuracy is in percent.
        source: repository, commit, file and line.
    """

    file: str
    suite: str
    method: str
    setting: str
    task: str
    value: float
    metric: str
    source: str


@dataclass(frozen=True)
class Entry:
    """The published numbers of one method at one setting: a line of a published table.

    Attributes:
        values: task -> percent.
        published: the average as published; None if none was.
    """

    suite: str
    method: str
    setting: str
    source: str
    values: Mapping[str, float]
    published: float | None

    @property
    def mean(self) -> float:
        """The average over tasks, computed from ``values``, in percent; less rounded than the published one."""
        return statistics.fmean(self.values.values())

    @property
    def agrees(self) -> bool:
        """Whether the published average follows from the tasks' numbers, up to rounding; True without one."""
        return self.published is None or abs(self.published - self.mean) <= ROUNDING + 1e-9

    @property
    def card(self) -> str | None:
        """The name of our card or reference for this method; None if we have none."""
        return known_methods().get(self.method, {}).get("card")

    @property
    def short_setting(self) -> str:
        """The setting without where it was published: "λ = 0.3"."""
        parts = [part for part in self.setting.split("; ") if part and not part.startswith(("docs", "examples/"))]
        return ", ".join(part.replace("lambda=", "λ = ").replace("prune=", "pruned ") for part in parts)


@functools.cache
def read(file: str | None = None) -> tuple[Row, ...]:
    """All rows, or those of one file, named without ``.csv``, in their order.

    Raises: ParameterError, if there is no such file.
    """
    names = sorted(path.stem for path in FOLDER.glob("*.csv"))
    if file is None:
        return tuple(row for name in names for row in read(name))
    if file not in names:
        raise ParameterError(f"there are no published numbers in a file {file!r}.{suggest(file, names)}")
    with (FOLDER / f"{file}.csv").open(encoding="utf-8", newline="") as stream:
        return tuple(Row(**{**row, "file": file, "value": float(row["value"])}) for row in csv.DictReader(stream))


def select(rows: Iterable[Row], *, setting: str | None = None, **equal: str) -> list[Row]:
    """Rows whose columns have these values: ``select(rows, suite="gpt2/GLUE7", metric="accuracy_x100")``.

    Args:
        setting: a part of the setting, "docs HEAD"; the other columns are compared as a whole.

    Raises: ParameterError, for a column that there is not.
    """
    for name in equal:
        if name not in Row.__dataclass_fields__ or name == "value":
            raise ParameterError(f"rows have no column {name!r} to select by.{suggest(name, Row.__dataclass_fields__)}")
    return [
        row
        for row in rows
        if (setting is None or setting in row.setting)
        and all(getattr(row, name) == value for name, value in equal.items())
    ]


def entries(rows: Iterable[Row]) -> list[Entry]:
    """Scores grouped into lines of tables: by suite, method, setting and source, in order of first appearance."""
    groups: dict[tuple[str, str, str, str], dict[str, float]] = {}
    for row in rows:
        if row.metric in SCORES or (row.task == _AVERAGE and row.metric.startswith("mean_x100")):
            groups.setdefault((row.suite, row.method, row.setting, row.source), {})[row.task] = row.value
    found = []
    for key, values in groups.items():
        tasks = {task: value for task, value in values.items() if task != _AVERAGE}
        if tasks:
            found.append(Entry(*key, values=tasks, published=values.get(_AVERAGE)))
    return found


def lines(suite: str, setting: str = "docs HEAD", *, file: str | None = None) -> list[Entry]:
    """The lines of a suite's published table: those whose setting has this part, without sweeps.

    Args:
        file: take them from this file alone, which may be a sweep's.
    """
    found = [row for row in read(file) if file or row.file not in (*_SWEEPS, _NOT_MEASURED)]
    return entries(select(found, suite=suite, setting=setting))


def curve(file: str, suite: str, method: str, setting: str = "docs HEAD") -> dict[float, float]:
    """A published sweep: hyper-parameter, the last number of a setting, -> average over tasks in percent.

    Where the numbers by task were published the average is computed from them.
    """
    found = select(read(file), suite=suite, method=method, setting=setting)
    averages = {row.setting: row.value for row in found if row.task == _AVERAGE}
    averages |= {entry.setting: entry.mean for entry in entries(found)}
    return dict(sorted((float(text.rpartition("=")[2]), value) for text, value in averages.items()))


def revisions(old: str = "docs June-2024", new: str = "docs HEAD") -> list[tuple[Entry, Entry]]:
    """Pairs of lines of two states of the documentation with the same suite, method, setting and tasks."""
    found = [entry for entry in entries(read()) if entry.setting.startswith((old, new))]
    newest = {(e.suite, e.method, e.short_setting, frozenset(e.values)): e for e in found if e.setting.startswith(new)}
    asked = [entry for entry in found if entry.setting.startswith(old)]
    keys = [(e.suite, e.method, e.short_setting, frozenset(e.values)) for e in asked]
    return [(entry, newest[key]) for entry, key in zip(asked, keys, strict=True) if key in newest]


def number(entry: Entry, name: str) -> float:
    """The number that an entry's setting gives a name: 0.3 for "lambda" in "docs HEAD; lambda=0.3".

    Raises: ParameterError, if the setting does not have it.
    """
    found = re.search(rf"\b{re.escape(name)}=([0-9.]+)", entry.setting)
    if found is None:
        raise ParameterError(f"the setting {entry.setting!r} of {entry.method} says nothing of {name!r}.")
    return float(found[1])


@functools.cache
def known_methods() -> dict[str, dict[str, Any]]:
    """Published name -> our card, with the hyper-parameters in which the published rows differ from our defaults."""
    return json.loads((FOLDER / "methods.json").read_text(encoding="utf-8"))


def suite_facts(suite: str) -> dict[str, str]:
    """Title of a suite, and the backbone and tuning of records that measured the same; empty if none could have."""
    known = _suites()
    facts = known.get(suite, {})
    return known[facts["same as"]] if "same as" in facts else facts


@functools.cache
def _suites() -> dict[str, dict[str, str]]:
    return json.loads((FOLDER / "suites.json").read_text(encoding="utf-8"))


def is_reference(entry: Entry) -> bool:
    """Whether it is a floor or ceiling (pretrained, fine-tuned, multi-task) and no fusion."""
    return entry.card in REFERENCES


def rank_correlation(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    """Spearman's rank correlation over the names that both have, in [-1, 1]; equal values share their rank.

    Raises: ParameterError, for fewer than two common names, or where all the values of one are equal.
    """
    common = [name for name in one if name in other]
    if min(len({values[name] for name in common}) for values in (one, other)) < 2:
        raise ParameterError(f"ranks can't be compared over {common}: two different values are needed on each side.")
    return meters.rank_correlation(
        *(torch.tensor([values[name] for name in common], dtype=torch.float64) for values in (one, other))
    )
