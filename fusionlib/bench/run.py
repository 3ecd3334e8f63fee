"""``run``: fuse, evaluate, measure, and leave a record; or read the record, if the question was asked before."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from fusionlib import methods
from fusionlib.bench import batch_norm, records
from fusionlib.bench.calibration import calibration
from fusionlib.bench.evaluate import measure_all
from fusionlib.bench.hyperparameters import Method, complete
from fusionlib.bench.log import logger
from fusionlib.bench.measure import Measured
from fusionlib.bench.questions import answer, question
from fusionlib.core import FusionMethod, ParameterError, Record, StateDict
from fusionlib.ops.variances import unchecked_variances
from fusionlib.zoo.suite import Suite


def fuse(method: Method, suite: Suite, **hyperparameters: Any) -> nn.Module:
    """The fused model of a suite, on its device, in evaluation mode.

    Args:
        method: a name in ``fusionlib.methods``, or a module with ``card`` and ``fuse``.
        hyperparameters: keyword arguments of ``fuse``; ``batch_norm="reestimate"`` (``fl.reestimate_batch_norm``).
    Raises: UnknownName for the method; ParameterError for a hyper-parameter that is unknown, missing or out
        of range, naming the close match; KeyMismatch, NonFiniteError from the weights; NegativeVariance, unless
        BatchNorm's statistics are measured again.
    """
    known = methods.get(method)
    again, given = batch_norm.split_choice(hyperparameters)
    return _as_model(_fuser(known, suite, complete(method, given), again)(), suite, again)


def run(
    method: Method,
    suite: Suite,
    *,
    split: str = "test",
    limit: int | None = None,
    selected_on: str | None = None,
    tried: Mapping[str, Sequence[Any]] | None = None,
    **hyperparameters: Any,
) -> Record:
    """Fuses, evaluates on every task of the suite, measures, and stores the record.

    If this very question was answered before (same weights, data, code, versions, hyper-parameters), the
    record is read instead, and a line on stderr says so.

    Args:
        split: what to evaluate on.
        limit: only the first examples of each task; None means all.
        selected_on: the split on which the hyper-parameters were chosen, if they were.
        tried: hyper-parameter -> values among which they were chosen, where neither ``fl.tune`` nor ``fl.sweep`` has
            left records of the trials; tables then say which choice was the last value tried.
    Returns: the record, with raw counts; scores are computed when it is read.
    """
    if tried and selected_on is None:
        raise ParameterError("`tried` says among what a choice was made; say on which split with `selected_on` too.")
    record, hit = measured(method, suite, split, limit, selected_on, hyperparameters, tried)
    if hit:
        when = record.provenance["created"][:10]
        logger.info("read record %s (%s, %s), measured %s", record.key, record.method, split, when)
    return record


def measured(
    method: Method,
    suite: Suite,
    split: str,
    limit: int | None,
    selected_on: str | None,
    given: Mapping[str, Any],
    tried: Mapping[str, Sequence[Any]] | None = None,
) -> tuple[Record, bool]:
    """As ``run``, without a word: (record, whether it was read)."""
    known = methods.get(method)
    again, own = batch_norm.split_choice(given)
    hyperparameters = complete(method, own)
    asked = {**hyperparameters, batch_norm.KEYWORD: batch_norm.CHOICES[1]} if again else hyperparameters

    def measure(asked_for: Record) -> Record:
        if tried:
            noted = records.json_value({name: list(values) for name, values in tried.items()})
            asked_for = dataclasses.replace(asked_for, provenance={**asked_for.provenance, "tried": noted})
        # the same model on the same examples, only chosen in another way, needs no second look
        twin = question(known, suite, split, limit, "val" if selected_on is None else None, asked)
        same = records.find(twin.key, twin)
        if same is not None:
            noted = {**same.provenance, **({"tried": asked_for.provenance["tried"]} if tried else {})}
            return dataclasses.replace(same, key=asked_for.key, selected_on=selected_on, provenance=noted)
        fusion = Measured(_fuser(known, suite, hyperparameters, again), suite.device)
        model = _as_model(fusion.value, suite, again)
        start = time.perf_counter()
        counts, metrics = measure_all(model, suite, split, limit)
        stored = getattr(model, "stored_parameters", None) or sum(p.numel() for p in model.parameters())
        return dataclasses.replace(
            asked_for,
            counts=counts,
            metrics=metrics,
            stored_parameters=stored,
            active_parameters=getattr(model, "active_parameters", stored),
            fusion_seconds=fusion.seconds,
            evaluation_seconds=time.perf_counter() - start,
            peak_memory=fusion.peak_memory,
        )

    return answer(question(known, suite, split, limit, selected_on, asked), measure)


def _fuser(
    method: FusionMethod, suite: Suite, hyperparameters: Mapping[str, Any], again: bool
) -> Callable[[], StateDict | nn.Module | list[StateDict]]:
    """The call to ``fuse`` alone, to be measured; its inputs are prepared before."""
    alone = method.card.fuses == "pretrained"
    if not suite.finetuned and not alone:
        raise ParameterError('the suite was loaded with tuning="none" and has no fine-tuned models to fuse.')
    pretrained, finetuned = suite.weights if method.card.takes == "weights" else suite.models
    needs = method.card.needs_with(hyperparameters)
    given = {**hyperparameters, "data": calibration(suite, needs)} if needs else hyperparameters

    def call() -> StateDict | nn.Module | list[StateDict]:
        with nullcontext() if needs else torch.no_grad(), unchecked_variances() if again else nullcontext():
            return method.fuse(pretrained, [] if alone else finetuned, **given)

    return call


def _as_model(fused: StateDict | nn.Module | list[StateDict], suite: Suite, again: bool) -> nn.Module:
    if isinstance(fused, list):
        raise ParameterError(
            f"the method returned {len(fused)} models, and one can be measured; call its `fuse` for all of them."
        )
    model = fused.eval() if isinstance(fused, nn.Module) else suite.model(fused)
    return batch_norm.reestimate_batch_norm(model, suite) if again else model
