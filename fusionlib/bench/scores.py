"""From raw counts to scores: accuracy, intervals, normalised accuracy, seeds. Computed whenever records are read."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fusionlib.core import ParameterError, Record

Z = 1.959964  # 97.5 % point of the normal distribution: two-sided 95 %


def wilson(correct: float, total: int) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927), which stays within [0, 1] and is right for small counts too."""
    p, z2 = correct / total, Z * Z / total
    centre, spread = p + z2 / 2, Z * (p * (1 - p) / total + z2 / (4 * total)) ** 0.5
    # the ends of the interval are exact there, which floating point misses by a bit
    low = 0.0 if correct == 0 else (centre - spread) / (1 + z2)
    return low, 1.0 if correct == total else (centre + spread) / (1 + z2)


def accuracy(counts: Mapping[str, tuple[float, int]]) -> float:
    """Average over tasks of the accuracy, in [0, 1], each task counting the same.

    Args:
        counts: task -> (correct, total), from ``fl.evaluate``.
    """
    return statistics.fmean(correct / total for correct, total in counts.values())


def average_half_width(record: Record) -> float:
    """Half the width of the 95 % interval of the average over tasks.

    The tasks' test examples are independent binomials, so the variance of the average of T accuracies is
    sum of p(1 - p)/n over T squared; the normal approximation is good because the counts add up to many.
    """
    variance = sum((c / n) * (1 - c / n) / n for c, n in record.counts.values()) / len(record.counts) ** 2
    return Z * variance**0.5


@dataclass(frozen=True)
class Row:
    """The same measurement over one or more seeds.

    Attributes:
        records: one per seed.
        normalized: normalised accuracy averaged over tasks and seeds; None without fine-tuned records to divide by.
    """

    records: tuple[Record, ...]
    normalized: float | None

    @property
    def first(self) -> Record:
        """The record of the first seed: for everything that is the same over seeds."""
        return self.records[0]

    @property
    def accuracy(self) -> dict[str, float]:
        """Accuracy per task, averaged over seeds."""
        return {task: statistics.fmean(record.accuracy[task] for record in self.records) for task in self.first.counts}

    @property
    def average(self) -> float:
        """Accuracy averaged over tasks and seeds."""
        return statistics.fmean(record.average for record in self.records)

    @property
    def worst(self) -> tuple[str, float]:
        """The task with the lowest accuracy, and that accuracy."""
        return min(self.accuracy.items(), key=lambda item: item[1])

    @property
    def spread(self) -> float:
        """Of the average: standard deviation over seeds, or with one seed half its 95 % interval."""
        if len(self.records) > 1:
            return statistics.stdev(record.average for record in self.records)
        return average_half_width(self.first)


def rows(records: Iterable[Record]) -> list[Row]:
    """Groups records over seeds, in order of first appearance; of one question and seed the last counts.

    Raises: ParameterError, if the records differ in what they were measured on, so that their numbers are not
        comparable, or if one question and seed was put to different checkpoints.
    """
    unique: dict[tuple[str, int], Record] = {}
    for record in records:
        asked = _question(record), record.seed
        before = unique.get(asked, record)
        _check_measured_on_the_same(next(iter(unique.values()), record), record)
        if before.provenance["suite"] != record.provenance["suite"]:
            raise ParameterError(
                f"two records of {record.method}, seed {record.seed}, were made with different checkpoints or data, "
                "and one row cannot show both. Give load_suite another seed= for one, or leave one out."
            )
        unique[asked] = record
    ceilings = {r.seed: r for r in unique.values() if r.method == "finetuned"}
    groups: dict[str, list[Record]] = {}
    for (question, _), record in unique.items():
        groups.setdefault(question, []).append(record)
    return [Row(tuple(group), _normalized(group, ceilings)) for group in groups.values()]


def without_repeats(found: Sequence[Row]) -> list[Row]:
    """Leaves out what was run as given and was then also chosen on validation: one row says it all."""

    def setting(row: Row) -> tuple:
        return row.first.method, row.first.hyperparameters, {record.seed for record in row.records}

    chosen = [setting(row) for row in found if row.first.selected_on]
    return [row for row in found if row.first.selected_on or setting(row) not in chosen]


def normalized_accuracy(record: Record, finetuned: Record) -> dict[str, float]:
    """Accuracy divided by that of each task's own fine-tuned model; 1 where both are 0."""
    ceiling = finetuned.accuracy
    return {task: value / ceiling[task] if ceiling[task] else 1.0 for task, value in record.accuracy.items()}


def kept(records: Iterable[Record]) -> dict[str, float]:
    """What is left of the gain of fine-tuning, in percent: 0 is the pretrained model, 100 the fine-tuned ones.

    Args:
        records: one suite's, one of each method, and its references "pretrained" and "finetuned".
    Returns: method -> share of the difference between the averages of the two references; below 0 where less is left
        than before.
    Raises: ParameterError, if a reference is missing, or fine-tuning gained nothing.
    """
    found = {record.method: record for record in records}
    if not {"pretrained", "finetuned"} <= found.keys():
        raise ParameterError("records of the references pretrained and finetuned are needed; add fl.references(suite).")
    low = found.pop("pretrained").average
    gain = found.pop("finetuned").average - low
    if gain <= 0:
        raise ParameterError(f"fine-tuning gained {100 * gain:.1f} points, of which no share can be kept.")
    found.pop("multitask", None)
    return {method: 100 * (record.average - low) / gain for method, record in found.items()}


def _normalized(group: Sequence[Record], ceilings: dict[int, Record]) -> float | None:
    found = [ceilings.get(record.seed) for record in group]
    if any(ceiling is None for ceiling in found):
        return None
    return statistics.fmean(
        statistics.fmean(normalized_accuracy(record, ceiling).values())
        for record, ceiling in zip(group, found, strict=True)
        if ceiling is not None
    )


def _check_measured_on_the_same(first: Record, other: Record) -> None:
    for name in ("backbone", "tasks", "tuning", "split", "limit"):
        one, two = getattr(first, name), getattr(other, name)
        if one != two:
            raise ParameterError(
                f"a table or figure shows records with one value of {name}, but these have {one!r} and {two!r}. "
                f"Choose some: [r for r in records if r.{name} == {one!r}]."
            )


def _question(record: Record) -> str:
    return json.dumps([record.method, record.hyperparameters, record.selected_on], sort_keys=True)
