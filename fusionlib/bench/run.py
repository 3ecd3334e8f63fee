"""``run``: fuse, evaluate, measure, and leave a record; or read the record, if the question was asked before."""

from __future__ import annotations

import dataclasses
import inspect
import logging
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from types import ModuleType
from typing import Any

import torch
from torch import nn

from fusionlib import methods
from fusionlib.bench import batch_norm, records
from fusionlib.bench.calibration import calibration
from fusionlib.bench.evaluate import measure_task
from fusionlib.bench.measure import Measured
from fusionlib.bench.meters import Count
from fusionlib.bench.provenance import REFERENCES, digest, own_source_hash, provenance, source_hash, versions
from fusionlib.core import FusionMethod, ParameterError, Record, StateDict, suggest
from fusionlib.ops.statedict import num_parameters
from fusionlib.zoo.files import hash_tensors
from fusionlib.zoo.suite import Suite

Method = str | ModuleType | FusionMethod
_Measurements = tuple[dict[str, Count], dict[str, dict[str, float]]]


class _Stderr(logging.StreamHandler):
    """Writes to whatever ``sys.stderr`` is now: a notebook replaces it."""

    @property
    def stream(self) -> Any:
        return sys.stderr

    @stream.setter
    def stream(self, value: Any) -> None:
        pass


logger = logging.getLogger("fusionlib")
if not logger.handlers:
    logger.addHandler(_Stderr())
    logger.setLevel(logging.INFO)


def fuse(method: Method, suite: Suite, **hyperparameters: Any) -> nn.Module:
    """The fused model of a suite, on its device, in evaluation mode.

    Args:
        method: a name in ``fusionlib.methods``, or a module with ``card`` and ``fuse``.
        hyperparameters: keyword arguments of ``fuse``; ``batch_norm="reestimate"`` (``fl.reestimate_batch_norm``).
    Raises: UnknownName for the method; ParameterError for a hyper-parameter that is unknown, missing or out
        of range, naming the close match; KeyMismatch, NonFiniteError from the weights.
    """
    known = methods.get(method)
    again, given = batch_norm.split_choice(hyperparameters)
    return _as_model(_fuser(known, suite, complete(method, given))(), suite, again)


def run(
    method: Method,
    suite: Suite,
    *,
    split: str = "test",
    limit: int | None = None,
    selected_on: str | None = None,
    **hyperparameters: Any,
) -> Record:
    """Fuses, evaluates on every task of the suite, measures, and stores the record.

    If this very question was answered before (same weights, data, code, versions, hyper-parameters), the
    record is read instead, and a line on stderr says so.

    Args:
        split: what to evaluate on.
        limit: only the first examples of each task; None means all.
        selected_on: the split on which the hyper-parameters were chosen, if they were.
    Returns: the record, with raw counts; scores are computed when it is read.
    """
    record, hit = measured(method, suite, split, limit, selected_on, hyperparameters)
    if hit:
        when = record.provenance["created"][:10]
        logger.info("read record %s (%s, %s), measured %s", record.key, record.method, split, when)
    return record


def measured(
    method: Method, suite: Suite, split: str, limit: int | None, selected_on: str | None, given: Mapping[str, Any]
) -> tuple[Record, bool]:
    """As ``run``, without a word: (record, whether it was read)."""
    known = methods.get(method)
    again, own = batch_norm.split_choice(given)
    hyperparameters = complete(method, own)
    asked = {**hyperparameters, batch_norm.KEYWORD: batch_norm.CHOICES[1]} if again else hyperparameters

    def measure(question: Record) -> Record:
        # the same model on the same examples, only chosen in another way, needs no second look
        twin = _question(known, suite, split, limit, "val" if selected_on is None else None, asked)
        same = records.find(twin.key, twin)
        if same is not None:
            return dataclasses.replace(same, key=question.key, selected_on=selected_on)
        fusion = Measured(_fuser(known, suite, hyperparameters), suite.device)
        model = _as_model(fusion.value, suite, again)
        start = time.perf_counter()
        counts, metrics = _measure(model, suite, split, limit)
        stored = getattr(model, "stored_parameters", None) or sum(p.numel() for p in model.parameters())
        return dataclasses.replace(
            question,
            counts=counts,
            metrics=metrics,
            stored_parameters=stored,
            active_parameters=getattr(model, "active_parameters", stored),
            fusion_seconds=fusion.seconds,
            evaluation_seconds=time.perf_counter() - start,
            peak_memory=fusion.peak_memory,
        )

    return _answer(_question(known, suite, split, limit, selected_on, asked), measure)


def references(suite: Suite, *, split: str = "test", limit: int | None = None) -> list[Record]:
    """The bounds to compare with: ``pretrained`` and, where the suite has them, ``finetuned`` and ``multitask``.

    ``finetuned`` asks each task's own model. Its stored parameters count tensors that no fine-tune changed once.
    """
    single = num_parameters(suite.backbone.weights)
    changed = sum(_num_changed(suite.pretrained, state) for state in suite.finetuned.values())

    def whole(state: StateDict) -> Callable[[], _Measurements]:
        return lambda: _measure(suite.model(state), suite, split, limit)

    def each_its_own() -> _Measurements:
        own = suite.finetuned.items()
        return _gather({task: measure_task(suite.model(w), suite, task, split, limit=limit) for task, w in own})

    asked: list[tuple[str, Callable[[], _Measurements], int]] = [("pretrained", whole(suite.pretrained), single)]
    if suite.finetuned:
        asked.append(("finetuned", each_its_own, single + changed))
    if suite.multitask is not None:
        asked.append(("multitask", whole(suite.multitask), single))

    def answer(name: str, count: Callable[[], _Measurements], stored: int) -> Record:
        def measure(question: Record) -> Record:
            start = time.perf_counter()
            counts, metrics = count()
            return dataclasses.replace(
                question,
                counts=counts,
                metrics=metrics,
                stored_parameters=stored,
                active_parameters=single,
                evaluation_seconds=time.perf_counter() - start,
            )

        return _answer(_question(name, suite, split, limit, None, {}), measure)[0]

    return [answer(*question) for question in asked]


def complete(method: Method, given: Mapping[str, Any]) -> dict[str, Any]:
    """All hyper-parameters of the method, defaults included.

    Raises: ParameterError for one that is unknown (naming the close match) or missing.
    """
    known = methods.get(method)
    title = known.card.name
    takes = {
        name: parameter
        for name, parameter in inspect.signature(known.fuse).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and name != "data"
    }
    for name in given:
        if name not in takes:
            raise ParameterError(f"{title} has no hyper-parameter {name!r}.{suggest(name, takes)}")
    missing = [n for n, p in takes.items() if p.default is inspect.Parameter.empty and n not in given]
    if missing:
        raise ParameterError(f"{title} needs a value for {', '.join(map(repr, missing))}, which has no default.")
    defaults = {name: parameter.default for name, parameter in takes.items()}
    return {name: _as_default(given.get(name, default), default) for name, default in defaults.items()}


def _as_default(value: Any, default: Any) -> Any:
    """1 where the default is 1.0 is the same question, and so must be the same number."""
    return float(value) if type(value) is int and isinstance(default, float) else value


def _name(method: FusionMethod) -> str:
    """The name that records of the method carry: that of its file; ParameterError where two would share one."""
    name = method.card.name
    if name in methods.names() and methods.get(name) is method:
        return name
    own = getattr(method, "__name__", name)
    if own in (*methods.names(), *REFERENCES):
        raise ParameterError(
            f"{own!r} is a name that fusionlib itself uses, and this is another method. Give its file (or, if it has "
            "none, its card) another name, so that their records can be told apart."
        )
    return own


def _fuser(
    method: FusionMethod, suite: Suite, hyperparameters: Mapping[str, Any]
) -> Callable[[], StateDict | nn.Module | list[StateDict]]:
    """The call to ``fuse`` alone, to be measured; its inputs are prepared before."""
    alone = method.card.fuses == "pretrained"
    if not suite.finetuned and not alone:
        raise ParameterError('the suite was loaded with tuning="none" and has no fine-tuned models to fuse.')
    pretrained, finetuned = suite.weights if method.card.takes == "weights" else suite.models
    needs = method.card.needs_with(hyperparameters)
    given = {**hyperparameters, "data": calibration(suite, needs)} if needs else hyperparameters

    def call() -> StateDict | nn.Module | list[StateDict]:
        with nullcontext() if needs else torch.no_grad():
            return method.fuse(pretrained, [] if alone else finetuned, **given)

    return call


def _as_model(fused: StateDict | nn.Module | list[StateDict], suite: Suite, again: bool) -> nn.Module:
    if isinstance(fused, list):
        raise ParameterError(
            f"the method returned {len(fused)} models, and one can be measured; call its `fuse` for all of them."
        )
    model = fused.eval() if isinstance(fused, nn.Module) else suite.model(fused)
    return batch_norm.reestimate_batch_norm(model, suite) if again else model


def _question(
    asked_of: FusionMethod | str,
    suite: Suite,
    split: str,
    limit: int | None,
    selected_on: str | None,
    hyperparameters: Mapping[str, Any],
) -> Record:
    """A record without an answer, of a method or a reference; its key hashes everything that determines the counts."""
    if isinstance(asked_of, str):
        card, name, source = None, asked_of, source_hash(asked_of)
    else:
        card, name = asked_of.card, _name(asked_of)
        source = source_hash(name) if name in methods.names() else own_source_hash(asked_of)
    values = records.json_value(dict(hyperparameters))
    spec = suite.spec
    asked = [name, values, spec.backbone, spec.tasks, spec.tuning, spec.seed, split, limit, selected_on]
    determined_by = [source, suite.fingerprint, versions(), suite.device.type]
    if name == "multitask" and suite.multitask is not None:
        # No fusion reads the jointly trained weights, so the suite's fingerprint leaves them out.
        determined_by.append(hash_tensors(suite.multitask))
    determined_by += batch_norm.sources(values)
    return Record(
        key=digest([asked, determined_by]),
        method=name,
        kind="reference" if card is None else card.kind,
        hyperparameters=values,
        backbone=spec.backbone,
        tasks=spec.tasks,
        tuning=spec.tuning,
        seed=spec.seed,
        split=split,
        limit=limit,
        counts={},
        selected_on=selected_on,
        needs=() if card is None else tuple(sorted(card.needs_with(hyperparameters) | batch_norm.needs(values))),
        stored_parameters=0,
        active_parameters=0,
        fusion_seconds=0.0,
        evaluation_seconds=0.0,
        peak_memory=None,
        provenance=provenance(1 if card is None else card.version, source, suite.fingerprint, suite.device),
    )


def _answer(question: Record, measure: Callable[[Record], Record]) -> tuple[Record, bool]:
    stored = records.find(question.key, question)
    if stored is not None:
        return stored, True
    record = measure(question)
    records.append(record)
    return record, False


def _measure(model: nn.Module, suite: Suite, split: str, limit: int | None) -> _Measurements:
    return _gather({task: measure_task(model, suite, task, split, limit=limit) for task in suite.spec.tasks})


def _gather(measured: Mapping[str, tuple[Count, dict[str, float]]]) -> _Measurements:
    """Counts of every task, and the further measurements of those that have some."""
    more = {task: metrics for task, (_, metrics) in measured.items() if metrics}
    return {task: count for task, (count, _) in measured.items()}, more


def _num_changed(pretrained: StateDict, state: StateDict) -> int:
    changed = {key: value for key, value in state.items() if not torch.equal(value, pretrained[key])}
    return num_parameters(changed)
