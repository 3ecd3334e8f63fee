"""Members' outputs are kept for other rules on the same members and split, and for nothing else."""

import copy

import pytest
from bench_helpers import at, toy_suite

from fusionlib.bench import members
from fusionlib.bench.evaluate import evaluate
from fusionlib.ops.modules import Ensemble, MaxEnsemble


@pytest.fixture
def passes(monkeypatch):
    """Names of the rules whose members were run, batch by batch."""
    monkeypatch.setattr(members, "_kept", type(members._kept)())
    made, features = [], Ensemble.features

    def counted(self, batch):
        made.append(type(self).__name__)
        return features(self, batch)

    monkeypatch.setattr(Ensemble, "features", counted)
    return made


def test_another_rule_over_the_same_members_runs_none_again(passes):
    suite = toy_suite()
    several = suite.models[1]
    fresh = [evaluate(MaxEnsemble(several), suite), evaluate(Ensemble(several, "logits", [1, 3]), suite)]
    assert passes == ["MaxEnsemble", "MaxEnsemble"]  # one batch of each of two tasks
    members._kept.clear()
    assert evaluate(Ensemble(several, "logits", [1, 3]), suite) == fresh[1]
    assert fresh[0] != fresh[1]


@pytest.mark.parametrize("change", ["weights", "split", "limit", "suite"])
def test_any_other_question_is_asked_anew(passes, change):
    suite = toy_suite()
    several = suite.models[1]
    evaluate(Ensemble(several, "logits"), suite)
    if change == "weights":
        other = copy.deepcopy(several)
        other[0].load_state_dict(at(1.25))
        evaluate(Ensemble(other, "logits"), suite)
    else:
        asked = {"split": ("val", None), "limit": ("test", 3), "suite": ("test", None)}[change]
        evaluate(
            Ensemble(several, "logits"),
            toy_suite(fingerprint="f9") if change == "suite" else suite,
            *asked[:1],
            limit=asked[1],
        )
    assert len(passes) == 4


def test_large_members_are_not_kept(passes, monkeypatch):
    monkeypatch.setattr(members, "LARGEST", 1)
    suite = toy_suite()
    for _ in range(2):
        evaluate(Ensemble(suite.models[1], "logits"), suite)
    assert len(passes) == 4 and not members._kept


def test_room_is_bounded(passes, monkeypatch):
    suite = toy_suite()
    evaluate(Ensemble(suite.models[1], "logits"), suite)
    _, second = members._kept.values()
    monkeypatch.setattr(members, "ROOM", second[0].nbytes)
    evaluate(Ensemble(suite.models[1], "logits"), suite, limit=4)
    sizes = [sum(batch.nbytes for batch in batches) for batches in members._kept.values()]
    assert sum(sizes) <= second[0].nbytes
