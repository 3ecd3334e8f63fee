"""A suite small enough to work out by hand, and records with chosen counts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from html.parser import HTMLParser
from types import MappingProxyType

import torch
from torch import Tensor, nn

from fusionlib.bench.provenance import source_hash
from fusionlib.core import Record
from fusionlib.zoo.suite_types import Batch, Suite, SuiteSpec
from fusionlib.zoo.task import Task

TEST = {
    "a": ([-1.0, 0.5, 1.5, 2.5], [1, 1, 0, 0]),
    "b": ([-1.0, 0.5, 1.5, 2.5, 3.5], [1, 1, 1, 1, 0]),
}
VAL = {"a": ([0.5, 1.5], [1, 0]), "b": ([1.5, 2.5], [1, 1])}


class Threshold(nn.Module):
    """Answers 1 where a number lies below its one weight, else 0."""

    def __init__(self) -> None:
        super().__init__()
        self.threshold = nn.Parameter(torch.zeros(1))

    def forward(self, numbers: Tensor) -> Tensor:
        return torch.stack([numbers, self.threshold.expand_as(numbers)], dim=1)


class FeaturesAsLogits(nn.Module):
    def forward(self, features: Tensor, batch: Batch) -> Tensor:
        return features


class ToyBackbone:
    name = "toy"

    @property
    def weights(self) -> dict[str, Tensor]:
        return at(0.0)

    def build(self, state: dict[str, Tensor] | None = None) -> nn.Module:
        model = Threshold()
        model.load_state_dict(at(0.0) if state is None else state)
        return model.eval()


@dataclass(frozen=True)
class ToySuite(Suite):
    """A suite whose examples are single numbers; ``poisoned`` names a split that must not be read."""

    data: Mapping[str, Mapping[str, tuple[list[float], list[int]]]] = field(default_factory=dict)
    poisoned: str = ""

    def batches(
        self, task: str, split: str, *, limit: int | None = None, batch_size: int = 256
    ) -> Iterator[tuple[Batch, Tensor]]:
        assert split != self.poisoned, f"the {split} split of {task} was read"
        numbers, labels = (torch.tensor(column)[:limit].to(self.device) for column in self.data[split][task])
        for part, answers in zip(numbers.split(batch_size), labels.split(batch_size), strict=True):
            yield {"numbers": part}, answers


def at(threshold: float) -> dict[str, Tensor]:
    """The weights of a model with this threshold."""
    return {"threshold": torch.tensor([threshold])}


def toy_suite(**changes) -> ToySuite:
    """Thresholds 0 (pretrained), 1 (fine-tuned on a) and 3 (on b); each is right on all its own examples.

    Their average is 2; task arithmetic is 4 * scale.
    """
    fields = {
        "spec": SuiteSpec("toy", ("a", "b"), None, "full", 0),
        "tasks": tuple(Task(name, ("no", "yes"), splits={}, prompts=(), templates=()) for name in ("a", "b")),
        "pretrained": at(0.0),
        "finetuned": MappingProxyType({"a": at(1.0), "b": at(3.0)}),
        "heads": {"a": FeaturesAsLogits(), "b": FeaturesAsLogits()},
        "device": torch.device("cpu"),
        "fingerprint": "f0",
        "backbone": ToyBackbone(),
        "data": {"test": TEST, "val": VAL},
    }
    return ToySuite(**{**fields, **changes})


def make_record(method: str = "task_arithmetic", counts: Mapping[str, tuple[int, int]] | None = None, **changes):
    """A record with everything but its question and answer filled in; its key follows from the rest."""
    reference = method in ("pretrained", "finetuned", "multitask")
    defaults = {"task_arithmetic": {"scale": 0.3}, "simple_ensemble": {"average": "logits"}}
    fields = {
        "method": method,
        "kind": "reference" if reference else "ensemble" if method == "simple_ensemble" else "merge",
        "hyperparameters": defaults.get(method, {}),
        "backbone": "toy",
        "tuning": "full",
        "seed": 0,
        "split": "test",
        "limit": None,
        "counts": {"a": (80, 100), "b": (60, 100)} if counts is None else dict(counts),
        "selected_on": None,
        "needs": (),
        "stored_parameters": 10,
        "active_parameters": 10,
        "fusion_seconds": 0.5,
        "evaluation_seconds": 1.0,
        "peak_memory": None,
        "provenance": {"suite": "f0", "source": "s0", "created": "2026-01-01T00:00:00+00:00"},
    } | changes
    fields.setdefault("tasks", tuple(fields["counts"]))
    asked = ("method", "hyperparameters", "seed", "split", "limit", "selected_on", "backbone", "tasks", "tuning")
    return Record(**{"key": repr([fields[name] for name in asked]), **fields})


class _Grid(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.marks: list[list[str]] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
            self.marks.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self.marks[-1].append("")
        elif tag in ("strong", "u"):
            self.marks[-1][-1] = {"strong": "best", "u": "second"}[tag]

    def handle_data(self, data: str) -> None:
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data


def parse_table(shown) -> tuple[list[dict[str, str]], list[dict[str, str]], list[str]]:
    """(texts, marks, all tags) of what a notebook shows for a table, each row by column title."""
    html = shown._repr_html_().split('<p class="fusion-note">')[0]
    grid = _Grid()
    grid.feed(html)
    head, *body = grid.rows
    texts = [dict(zip(head, row, strict=True)) for row in body]
    return texts, [dict(zip(head, row, strict=True)) for row in grid.marks[1:]], grid.tags


def stored(**changes):
    """A record as the present code would make it."""
    method = changes.get("method", "task_arithmetic")
    known = {"suite": "f0", "source": source_hash(method), "created": "2026-01-01T00:00:00+00:00"}
    return make_record(**{**changes, "provenance": {**known, **changes.get("provenance", {})}})
