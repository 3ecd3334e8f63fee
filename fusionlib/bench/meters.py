"""What is counted on a task: one meter per kind of measurement, chosen by ``Task.metric``.

A meter collects on the device and gives (score, examples), from which every accuracy of the book is made, and
further measurements by name. A score is a number of right answers where an example is right or wrong, and a sum of
scores in [0, 1] where it can be right in part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from fusionlib.bench.dense_meters import Depth, Normal, Segmentation
from fusionlib.core import UnknownName, suggest

Count: TypeAlias = tuple[float, int]


class Meter(Protocol):
    """Collects outputs and labels batch by batch; reads nothing back from the device before ``result``."""

    def update(self, output: Tensor, labels: Tensor) -> None:
        """One batch: the head's output, and the labels of its examples."""
        ...

    def result(self) -> tuple[Count, dict[str, float]]:
        """(score, number of examples), and further measurements by name."""
        ...


class Accuracy:
    """Right answers: the highest of the logits (B, classes) is that of the label (B,)."""

    def __init__(self) -> None:
        self.correct: Tensor | int = 0
        self.total = 0

    def update(self, output: Tensor, labels: Tensor) -> None:
        """Logits (B, classes) and int64 labels (B,)."""
        self.correct = self.correct + (_guess(output) == labels).sum()
        self.total += len(labels)

    def result(self) -> tuple[Count, dict[str, float]]:
        """Right answers, examples; nothing besides."""
        return (int(self.correct), self.total), {}


class Matthews:
    """Accuracy, and the correlation of predicted and true class (Matthews 1975; for CoLA), in [-1, 1]."""

    def __init__(self) -> None:
        self._pairs: list[Tensor] = []

    def update(self, output: Tensor, labels: Tensor) -> None:
        """Logits (B, classes) and int64 labels (B,)."""
        self._pairs.append(torch.stack([_guess(output), labels]))

    def result(self) -> tuple[Count, dict[str, float]]:
        """Right answers, examples; and "matthews", 0 where one of the two sides is constant."""
        guess, truth = torch.cat(self._pairs, dim=1).double()
        correlation = _correlation(guess, truth)
        return (int((guess == truth).sum()), guess.numel()), {"matthews": correlation}


class Spearman:
    """Rank correlation of a predicted and a true number (for STS-B), ties at their mean rank; in [-1, 1]."""

    def __init__(self) -> None:
        self._pairs: list[Tensor] = []

    def update(self, output: Tensor, labels: Tensor) -> None:
        """Predictions (B,) or (B, 1) and labels (B,), real numbers."""
        self._pairs.append(torch.stack([output.reshape(len(labels)).float(), labels.float()]))

    def result(self) -> tuple[Count, dict[str, float]]:
        """The correlation, 0 where negative, times the examples; and "spearman" as it is."""
        guess, truth = torch.cat(self._pairs, dim=1).double()
        correlation = rank_correlation(guess, truth)
        return (max(0.0, correlation) * guess.numel(), guess.numel()), {"spearman": correlation}


class ExactMatch(Accuracy):
    """Accuracy by rank, and how often what the model says of itself is the right answer, word for word.

    The rank of the answers cannot see a model that has lost the form of an answer: it never says anything else.
    """

    def __init__(self) -> None:
        super().__init__()
        self._exact = 0

    def hear(self, said: Sequence[str], wanted: Sequence[str]) -> None:
        """What the model said to one batch, and the right answers."""
        self._exact += sum(one == other for one, other in zip(said, wanted, strict=True))

    def result(self) -> tuple[Count, dict[str, float]]:
        """Examples whose right answer is the likeliest, examples; and "exact_match", in [0, 1]."""
        return (int(self.correct), self.total), {"exact_match": self._exact / max(1, self.total)}


METERS: dict[str, Callable[[], Meter]] = {
    "accuracy": Accuracy,
    "matthews": Matthews,
    "spearman": Spearman,
    "segmentation": Segmentation,
    "depth": Depth,
    "normal": Normal,
    "exact_match": ExactMatch,
}


DENSE = ("segmentation", "depth", "normal")  # outputs (B, channels, H, W), of which some are no scores of classes


def make_meter(metric: str) -> Meter:
    """A new meter; UnknownName if there is none of this name."""
    if metric not in METERS:
        raise UnknownName(f"there is no measurement {metric!r}.{suggest(metric, METERS)}")
    return METERS[metric]()


def rank_correlation(one: Tensor, other: Tensor) -> float:
    """Spearman's, of two rows of numbers, ties at their mean rank; 0 where one side is constant."""
    return _correlation(_ranks(one.double()), _ranks(other.double()))


def _guess(logits: Tensor) -> Tensor:
    """The likeliest class, (B, classes) to (B,); -1, which is none, where a logit is no number."""
    return logits.argmax(dim=-1).masked_fill(logits.isnan().any(dim=-1), -1)


def _ranks(values: Tensor) -> Tensor:
    """Rank of every value from 0 on, equal values at the mean of their ranks."""
    _, where, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts.double() + 1) / 2)[where]


def _correlation(one: Tensor, other: Tensor) -> float:
    """Pearson's, 0 where one side is constant."""
    one, other = one - one.mean(), other - other.mean()
    size = (one.square().sum() * other.square().sum()).sqrt()
    return float((one * other).sum() / size) if size > 0 else 0.0
