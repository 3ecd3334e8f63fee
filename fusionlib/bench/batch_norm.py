"""What to do with BatchNorm's running statistics of a merged model: keep their average, or measure them again."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from fusionlib.bench.calibration import calibration
from fusionlib.core import Need, ParameterError
from fusionlib.ops import batch_norm
from fusionlib.ops.coefficients import one_of
from fusionlib.ops.modules import Batch, Ensemble
from fusionlib.zoo.suite import Suite

KEYWORD = "batch_norm"
CHOICES = ("average", "reestimate")


def reestimate_batch_norm(
    model: nn.Module, suite: Suite, *, num_examples: int = 256, batch_size: int = 32
) -> nn.Module:
    """A copy of a merged model whose BatchNorm statistics are measured on training inputs of all the suite's tasks.

    Args:
        model: of one architecture with BatchNorm; left as it was.
        num_examples: inputs drawn per task, without labels.
        batch_size: inputs of a batch, all of one task; every batch counts the same.
    Raises: ParameterError, for an ensemble, a model without BatchNorm, or numbers below 1.
    Source, Deviates: see :func:`fusionlib.ops.batch_norm.reestimate`.
    """
    if isinstance(model, Ensemble):
        raise ParameterError("the members of an ensemble are as they were trained; there is nothing to measure again.")
    data = calibration(suite)

    def batches() -> Iterator[Batch]:
        streams = [data.draw(task, "train", num_examples, batch_size) for task in data.tasks]
        for stream in streams:
            yield from stream

    return batch_norm.reestimate(model, batches())


def split_choice(given: Mapping[str, Any]) -> tuple[bool, dict[str, Any]]:
    """(whether to measure again, the method's own hyper-parameters); ParameterError for an unknown choice."""
    rest = dict(given)
    return one_of(KEYWORD, rest.pop(KEYWORD, CHOICES[0]), CHOICES) == CHOICES[1], rest


def needs(hyperparameters: Mapping[str, Any]) -> frozenset[Need]:
    """The information that the choice uses beyond the weights."""
    return frozenset({"inputs"}) if KEYWORD in hyperparameters else frozenset()


def sources(hyperparameters: Mapping[str, Any]) -> list[str]:
    """Hash of the code that measures again, for the key of a record; nothing where it was not used."""
    used = KEYWORD in hyperparameters
    return [hashlib.sha256(inspect.getsource(batch_norm).encode()).hexdigest()[:16]] if used else []
