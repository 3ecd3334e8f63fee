"""The types every part of the library shares, and the errors it raises. Imports nothing of ours."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, Protocol, TypeAlias

from torch import Tensor

StateDict: TypeAlias = dict[str, Tensor]

Kind = Literal["ensemble", "merge", "mix"]
Need = Literal["inputs", "test-inputs", "labels", "task-id"]
Scope = Literal["element", "tensor", "model"]


class FusionError(Exception):
    """Base of every error that fusionlib raises on purpose."""


class KeyMismatch(FusionError, ValueError):
    """State dicts that should match differ in keys, shapes or kinds of dtype."""


class NonFiniteError(FusionError, ValueError):
    """An input to a fusion, or its result, holds NaN or Inf."""


class ParameterError(FusionError, ValueError):
    """A parameter or hyper-parameter is unknown, mistyped or out of range."""


class NotApplicable(ParameterError):
    """A method is not defined for this kind of model, or for what these tasks ask."""


class NegativeVariance(NotApplicable):
    """These hyper-parameters take a BatchNorm's running variance below 0, so that the merged model would answer NaN."""


class UnknownName(FusionError, LookupError):
    """No method, backbone, task or set of tasks has this name."""


class CheckpointError(FusionError, OSError):
    """A checkpoint, head or data file is missing, incomplete or corrupt."""


def suggest(name: str, allowed: Iterable[str]) -> str:
    """End of an error sentence: the close match, if there is one, then everything allowed."""
    allowed = sorted(allowed)
    close = difflib.get_close_matches(name, allowed, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"{hint} Allowed: {', '.join(allowed) or 'none'}."


@dataclass(frozen=True)
class MethodCard:
    """What a fusion method is, stated once in its file; tables, tests and fact boxes read it.

    Attributes:
        name: the file's name.
        title: as written in prose, "TIES-Merging".
        cite: key in ``book/references.bib``.
        kind: what comes out: several models side by side, one of the same shape, or a new architecture.
        takes: which of the two shapes of ``fuse`` the module has.
        fuses: "finetuned", or "pretrained" for methods that enlarge one model and are given no others.
        needs: the information used beyond the weights; ``run`` hands over exactly this.
        needs_when: (hyper-parameter, value) -> what is needed besides if it has this value.
        scope: the grain at which the method separates (``element``, ``tensor``) or ``model`` if it does not.
        symmetric: whether the order of the models is without effect.
        identity: hyper-parameters at which one fine-tuned model alone comes back; None if there are none.
        grid: what ``tune`` tries, on the validation split only.
        version: raised when the same inputs give other weights.
    """

    name: str
    title: str
    cite: str
    kind: Kind
    takes: Literal["weights", "models"] = "weights"
    fuses: Literal["finetuned", "pretrained"] = "finetuned"
    needs: frozenset[Need] = frozenset()
    needs_when: Mapping[tuple[str, Any], Need] = field(default_factory=lambda: MappingProxyType({}))
    scope: Scope = "model"
    symmetric: bool = True
    identity: Mapping[str, Any] | None = None
    grid: Mapping[str, tuple] = field(default_factory=lambda: MappingProxyType({}))
    version: int = 1

    def needs_with(self, hyperparameters: Mapping[str, Any]) -> frozenset[Need]:
        """The information used beyond the weights at these hyper-parameters."""
        more: set[Need] = {
            need for (name, value), need in self.needs_when.items() if hyperparameters.get(name) == value
        }
        return self.needs | more


class FusionMethod(Protocol):
    """A module of ``fusionlib.methods``: the card, and the function it describes."""

    @property
    def card(self) -> MethodCard:
        """The method's facts."""
        ...

    @property
    def fuse(self) -> Callable[..., Any]:
        """``fuse(pretrained, finetuned, *, hyper-parameters...)``: state dicts or modules, by ``card.takes``."""
        ...


@dataclass(frozen=True)
class Record:
    """One measurement: raw counts and everything needed to know where they came from.

    Attributes:
        key: hash of all that determines the counts; equal keys mean the same measurement.
        method: a card's name, or a reference: ``pretrained``, ``finetuned``, ``multitask``.
        hyperparameters: all of them, defaults included, as JSON values.
        counts: per task (correct, total), or (sum of scores in [0, 1], total) where an example can be right in part.
        selected_on: split on which hyper-parameters were chosen; None where none were.
        stored_parameters: numbers that must be kept to serve all tasks.
        active_parameters: numbers that one prediction reads.
        fusion_seconds: wall time of ``fuse`` alone.
        evaluation_seconds: wall time of the evaluation; less where members' outputs were still in memory.
        peak_memory: bytes beyond the inputs while fusing; None where not measured.
        provenance: method version, source and suite hashes, package versions, device, commit, time.
        metrics: task -> what else was measured on it, by name; only tasks that have more than counts.
    """

    key: str
    method: str
    kind: str
    hyperparameters: dict[str, Any]
    backbone: str
    tasks: tuple[str, ...]
    tuning: str
    seed: int
    split: str
    limit: int | None
    counts: dict[str, tuple[float, int]]
    selected_on: str | None
    needs: tuple[str, ...]
    stored_parameters: int
    active_parameters: int
    fusion_seconds: float
    evaluation_seconds: float
    peak_memory: int | None
    provenance: dict[str, Any]
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def accuracy(self) -> dict[str, float]:
        """Fraction correct per task, in [0, 1]."""
        return {task: correct / total for task, (correct, total) in self.counts.items()}

    @property
    def average(self) -> float:
        """Mean over tasks of the accuracy, each task counting the same."""
        return sum(self.accuracy.values()) / len(self.counts)
