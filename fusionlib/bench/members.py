"""The outputs of an ensemble's members, kept from one evaluation to the next.

Ensembles of the same members differ in how they combine what the members say, and the members' passes are nearly all
of the time. So that a chapter can compare rules, what small members said of a split is kept in memory.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from torch import Tensor

from fusionlib.ops.modules import Batch, Ensemble
from fusionlib.ops.statedict import num_parameters
from fusionlib.zoo.files import hash_tensors
from fusionlib.zoo.suite_types import Suite

LARGEST = 2**25  # numbers in all members together: with more, the hash that recognises them would take too long
ROOM = 2**28  # bytes of outputs that are kept; those used longest ago go first

_kept: OrderedDict[tuple, list[Tensor]] = OrderedDict()


def outputs(
    model: Ensemble, suite: Suite, task: str, split: str, limit: int | None, batch_size: int
) -> Iterator[tuple[Tensor, Batch, Tensor]]:
    """Every batch of a split: the members' outputs (T, B, ...), the inputs and the labels."""
    key = _key(model, suite, task, split, limit, batch_size)
    kept = _kept.get(key)
    said = []
    for index, (batch, labels) in enumerate(suite.batches(task, split, limit=limit, batch_size=batch_size)):
        features = model.features(batch) if kept is None else kept[index]
        if key:
            said.append(features)
        yield features, batch, labels
    if key:
        _keep(key, said)


def _keep(key: tuple, said: list[Tensor]) -> None:
    _kept[key] = said
    _kept.move_to_end(key)
    while sum(batch.nbytes for batches in _kept.values() for batch in batches) > ROOM:
        _kept.popitem(last=False)


def _key(model: Ensemble, suite: Suite, task: str, split: str, limit: int | None, batch_size: int) -> tuple:
    """What determines the outputs; empty, which means that they are not kept, where the members are large."""
    state = model.state_dict()
    state.pop("weights")  # how members are combined is no part of what they say
    if num_parameters(state) > LARGEST:
        return ()
    return type(model).features, hash_tensors(state), suite.fingerprint, suite.device, task, split, limit, batch_size
