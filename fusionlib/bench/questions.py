"""Records without an answer yet: their key hashes everything that determines the counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fusionlib import methods
from fusionlib.bench import batch_norm, records
from fusionlib.bench.log import logger
from fusionlib.bench.provenance import REFERENCES, digest, own_source_hash, provenance, source_hash, versions
from fusionlib.core import CheckpointError, FusionMethod, ParameterError, Record
from fusionlib.zoo.files import check_writable, hash_tensors
from fusionlib.zoo.suite import Suite


def question(
    asked_of: FusionMethod | str,
    suite: Suite,
    split: str,
    limit: int | None,
    selected_on: str | None,
    hyperparameters: Mapping[str, Any],
) -> Record:
    """A record without an answer, of a method or a reference; its key hashes everything that determines the counts."""
    for task in suite.spec.tasks:
        suite.batches(task, split, limit=limit)  # nothing is read yet, but a split that is missing is said now
    if isinstance(asked_of, str):
        card, name, source = None, asked_of, source_hash(asked_of)
    else:
        card, name = asked_of.card, name_of(asked_of)
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


def answer(asked: Record, measure: Callable[[Record], Record]) -> tuple[Record, bool]:
    """The stored record of this question, or what ``measure`` makes of it, which is stored; whether it was stored.

    Where it can't be kept the measured record is returned all the same, and the log says why it is not kept.
    """
    stored = records.find(asked.key, asked)
    if stored is not None:
        return stored, True
    check_writable(records.folder())  # before what takes long
    record = measure(asked)
    try:
        records.append(record)
    except (CheckpointError, ParameterError) as error:
        logger.warning("this measurement is not kept, and would be made again: %s", error)
    return record, False


def name_of(method: FusionMethod) -> str:
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
